/** The lines of `ip -batch` that make links and remove them. All of it is text. */
import * as Cidr from "../Cidr.ts"
import type { Fault } from "../HostError.ts"
import type { LinkSpec } from "../LinkSpec.ts"
import type { Link } from "./ipJson.ts"
import { acceptRa } from "./settingNames.ts"

/** IFNAMSIZ of netdevice(7), without what iproute2 or the kernel's settings give a meaning of its own. */
const interfaceName = /^(?!\.{1,2}$|all$|default$)[A-Za-z0-9_.][A-Za-z0-9._-]{0,14}$/

export const aliasOf = ({ name, owner }: Pick<LinkSpec, "name" | "owner">): string =>
  `effect-microvm ${owner.token} ${owner.id} ${name}`

/** The token and the name in an alias of ours. */
const keyOfAlias = (alias: string | undefined): string | undefined => {
  const [, token, name] = /^effect-microvm ([0-9a-f]{16}) \S+ (\S+)$/.exec(alias ?? "") ?? []
  return token === undefined || name === undefined ? undefined : keyOf(token, name)
}

export const keyOf = (token: string, name: string): string => `${token} ${name}`

/**
 * A veth pair is made under this name, since it cannot be made with an alias: whoever is killed then leaves one that names its owner
 * all the same, by 52 of the token's 64 random bits. With its alias it gets the name that others could have given to theirs.
 */
export const temporaryName = (token: string): string => `mv${token.slice(0, 13)}`

export const netnsName = (token: string): string => `effect-microvm-${token}`

export const checkName = (field: string, name: string): ReadonlyArray<Fault> =>
  interfaceName.test(name) ? [] : [{
    field,
    value: name,
    remedy: "give the name of an interface: 1 to 15 letters, digits, \".\", \"_\" and \"-\", the first no \"-\""
  }]

const isNumber = (value: number | undefined, from: number, to: number): boolean =>
  value === undefined || (Number.isSafeInteger(value) && value >= from && value <= to)

export const check = (links: ReadonlyArray<LinkSpec>): ReadonlyArray<Fault> => {
  const names = new Set<string>()
  return links.flatMap(({ addresses = [], group, mtu, name, owner, topology, user }, index) => {
    const field = (which: string) => `links[${index}].${which}`
    const faults: Array<Fault> = [...checkName(field("name"), name)]
    const add = (which: string, value: unknown, remedy: string) => faults.push({ field: field(which), value, remedy })
    if (names.has(name)) add("name", name, "give each link a name of its own")
    names.add(name)
    if (!/^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/.test(owner.id)) {
      add("owner.id", owner.id, "give 1 to 64 letters, digits and \"-\", the first no \"-\"")
    }
    if (!/^[0-9a-f]{16}$/.test(owner.token)) add("owner.token", owner.token, "give 16 hexadecimal digits")
    // The least that IPv6 runs on (RFC 8200, 5), if there is any.
    const least = addresses.some(({ address }) => address.family === 6) ? 1_280 : 68
    if (!isNumber(mtu, least, 65_521)) add("mtu", mtu, `give a number of bytes from ${least} to 65521`)
    if (!isNumber(user, 0, 2 ** 32 - 2)) add("user", user, "give the number of a user")
    if (!isNumber(group, 0, 2 ** 32 - 2)) add("group", group, "give the number of a group")
    addresses.forEach(({ address, prefix }, at) => {
      const most = address.family === 4 ? 32 : 128
      if (!isNumber(prefix, 1, most)) add(`addresses[${at}].prefix`, prefix, `give a number from 1 to ${most}`)
    })
    if (topology?._tag === "Port") {
      faults.push(...checkName(field("topology.bridge"), topology.bridge))
      if (addresses.length > 0) {
        add("addresses", addresses.length, "leave them away: at a bridge, it is the bridge that has addresses")
      }
    }
    return faults
  })
}

const tap = ({ group, name, user }: LinkSpec): string =>
  `tuntap add dev ${name} mode tap${user === undefined ? "" : ` user ${user}`}${
    group === undefined ? "" : ` group ${group}`
  }`

/**
 * A TAP is made under its own name, as to rename it costs a fourth of all else: the kernel makes its settings anew, and waits until
 * nobody reads the name. It cannot be made with an alias, either, so until it has one, two flags that nobody sets together say that it is
 * one of ours: `ip` and all monitors turn packet information off, and few others know of the header. Whoever opens it sets both anew.
 */
const markedTap = (link: LinkSpec): string => `${tap(link)} pi vnet_hdr`

/** A TAP of ours that has no alias yet, seen in detail. */
export const isHalfMade = ({ flags = [], ifalias, linkinfo: { info_data: data = {} } = {} }: Link): boolean =>
  ifalias === undefined && data.type === "tap" && data.pi === true && data.vnet_hdr === true && !flags.includes("UP")

/** What may be there of these after a line has failed: others of the name may be as half-made as ours would be. */
export const madeBefore = <L extends LinkSpec>(links: ReadonlyArray<L>, line: string | undefined): ReadonlyArray<L> => {
  const at = line === undefined ? -1 : links.findIndex((link) => markedTap(link) === line)
  return at < 0 ? links : links.slice(0, at)
}

const mtuOf = ({ mtu = 1_500 }: LinkSpec): string => `mtu ${mtu}`

/** There is nobody else at the link whose address it could be, so IPv6 need not ask. */
const addressLines = ({ addresses = [], name }: LinkSpec): ReadonlyArray<string> =>
  addresses.map(({ address, prefix }) =>
    `addr add ${Cidr.formatAddress(address)}/${prefix} dev ${name}${address.family === 6 ? " nodad" : ""}`
  )

/**
 * The lines for the host's side. The addresses of all come last: for 100 links the kernel takes a fifth less than when it goes from one
 * thing to the next for each.
 */
export const outside = (links: ReadonlyArray<LinkSpec>): ReadonlyArray<string> => {
  const netns = new Map<string, number>()
  const made = links.flatMap((link) => {
    const { name, owner, topology } = link
    const lines: Array<string> = []
    let first = name
    if (topology?._tag === "Namespace") {
      const space = netnsName(owner.token)
      const at = netns.get(space) ?? 0
      if (at === 0) lines.push(`netns add ${space}`)
      netns.set(space, at + 1)
      first = temporaryName(owner.token)
      lines.push(`link add dev ${first} type veth peer name up${at} netns ${space}`)
    } else {
      lines.push(markedTap(link))
    }
    const isPort = topology?._tag === "Port"
    // One message to the kernel, so that no link is up without its alias. No address of its own accord, hence no router
    // solicitations: only those of the lines below.
    const rename = first === name ? "" : ` name ${name}`
    lines.push(
      `link set dev ${first} alias "${aliasOf(link)}"${rename} ${mtuOf(link)} addrgenmode none${isPort ? "" : " up"}`
    )
    if (isPort) {
      lines.push(`link set dev ${name} master ${topology.bridge}`)
      lines.push(`link set dev ${name} type bridge_slave isolated on`)
      lines.push(`link set dev ${name} up`)
    }
    return lines
  })
  return [...made, ...links.flatMap(addressLines)]
}

/** The lines for the inside of each network namespace: a TAP, and a bridge between it and the way out. */
export const inside = (links: ReadonlyArray<LinkSpec>): ReadonlyMap<string, ReadonlyArray<string>> => {
  const spaces = new Map<string, Array<string>>()
  const counts = new Map<string, number>()
  for (const link of links) {
    if (link.topology?._tag !== "Namespace") continue
    const space = netnsName(link.owner.token)
    const at = counts.get(space) ?? 0
    counts.set(space, at + 1)
    const bridge = `br${at}`
    spaces.set(space, [
      ...(spaces.get(space) ?? []),
      `link add dev ${bridge} type bridge forward_delay 0 mcast_snooping 0`,
      `link set dev ${bridge} addrgenmode none`,
      tap(link),
      ...[`up${at}`, link.name].map((port) =>
        `link set dev ${port} master ${bridge} ${mtuOf(link)} addrgenmode none up`
      ),
      `link set dev ${bridge} up`
    ])
  }
  return spaces
}

/**
 * The lines that remove links: one wait of the kernel for all of them, by way of a group that nobody else uses. With `-force`, so
 * that one that is gone meanwhile holds up nothing.
 */
export const removal = (
  links: ReadonlyArray<string>,
  netns: ReadonlyArray<string>,
  group: number
): ReadonlyArray<string> => [
  ...(links.length === 1
    ? links.map((name) => `link del dev ${name}`)
    : links.map((name) => `link set dev ${name} group ${group}`)),
  ...(links.length > 1 ? [`link del group ${group}`] : []),
  ...netns.map((name) => `netns del ${name}`)
]

/**
 * Router advertisements of a guest would give the host a route by way of it. A packet that says by itself where it goes next
 * (RFC 791, 3.1) would pass the firewall as one for the host, and then go there.
 */
export const settings = (links: ReadonlyArray<LinkSpec>): ReadonlyArray<string> =>
  links.flatMap(({ name }) => [acceptRa(name), `net/ipv4/conf/${name}/accept_source_route`])

/** What of the host's links is whose. */
export const index = (links: ReadonlyArray<Link>) => {
  const byKey = new Map<string, string>()
  const byName = new Map<string, Link>()
  for (const link of links) {
    byName.set(link.ifname, link)
    const key = keyOfAlias(link.ifalias)
    if (key !== undefined) byKey.set(key, link.ifname)
  }
  return { byKey, byName }
}
