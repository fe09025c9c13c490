/**
 * What `nft -f` reads: the table that all machines of a host share, and what each machine has in it.
 *
 * Nothing here has a state: what is said of a machine is said whole, and said again it changes nothing (nft(8): `add` is for
 * what may be there). A command that fails takes the whole transaction with it.
 *
 * Sets with ranges are all of concatenated types, of which the family is a part if there is no other: nft reads the elements of
 * every other set with ranges, those of all machines, before it adds one (nft 1.0.6: half a second for 1,000 machines).
 */
import * as Cidr from "../Cidr.ts"
import type { EgressRule, Protocol } from "../EgressRule.ts"
import { aggregate, type Element, type Elements } from "./egressSets.ts"

/** By what a machine's packets are known. */
export interface Known {
  readonly token: string
  readonly link: string
  readonly mac: string
  readonly v4?: Side
  readonly v6?: Side
  readonly masquerade: boolean
}

/** A machine as the rules see it. */
export interface Seen extends Known {
  readonly offers: ReadonlyArray<{ readonly protocol: Protocol; readonly port: number }>
  /** What it may reach, and what of that is meant for the host itself, another machine, or what is closed. */
  readonly outside: Readonly<Record<Cidr.Family, Elements>>
  readonly near: Readonly<Record<Cidr.Family, Elements>>
  readonly names: ReadonlyArray<EgressRule>
  /** Has it rules that are wider than something closed? */
  readonly wide: Readonly<Record<Cidr.Family, boolean>>
}

export type Side = {
  readonly guest: string
  readonly gateway: string
}

/** For how long an open connection may be silent: 2 hours and 4 minutes (RFC 5382, REQ-5). */
const idle = "124m"

/** How many addresses of one name are known at once. */
export const mostLearned = 4096

/**
 * How many flows a machine may have: the kernel keeps those of the whole host in one table, 262,144 by default, and opens none for
 * anybody when it is full. Each new one is compared with all of its machine (8 µs with so many of them), and only by its first
 * packet: until somebody answers, the kernel takes each for new.
 */
const mostFlows = 4096

/**
 * The packet that opens a flow is what makes its link count: whatever counts nothing is removed by the kernel, once a second. So
 * an element that was there before the first flow would be gone when that comes, and the limit with it.
 */
const share = `ct status & confirmed == 0 iifname @covered add @opened { iifname ct count over ${mostFlows} } goto deny`

const families = [4, 6] as const
const protocols = ["tcp", "udp", "any"] as const
const ip = { 4: "ip", 6: "ip6" } as const
const address = { 4: "ipv4_addr", 6: "ipv6_addr" } as const
const nfproto = { 4: "ipv4", 6: "ipv6" } as const

/**
 * By which a machine's connections are told from those of one that has had its addresses before: the kernel keeps these for as long
 * as somebody outside goes on answering. It is what only packets of the machine's link are looked up in, so two machines can even
 * have the same connection; answers are looked up as ever. 0 is everybody's.
 */
const zoneOf = (token: string): number => 1 + Number(BigInt(`0x${token}`) % 65_535n)

const chains = { outside: (token: string) => `outside-${token}`, near: (token: string) => `near-${token}` } as const

/**
 * What counts, by link: all that is sent to machines, and what of all is not let through, be it forged, from a machine or to one.
 * What a machine sends is counted where its source is looked up, so that a packet that passes is not looked up for that alone.
 */
export const counters = ["to", "forged", "denied-out", "denied-in"] as const

export type Counter = typeof counters[number]

/** Of a chain or a set, by its name: whose it is. */
export const tokenOf = (name: string): string | undefined => /-([0-9a-f]{16})$/.exec(name)?.[1]

/** Who answers, whichever way a packet goes, and after whatever the host has made of the address. */
const peer = (family: Cidr.Family): string => `ct reply ${ip[family]} saddr`

/**
 * The shared part. Packets of a machine's link come by `guard` first, before connections are looked up: they are those of a
 * machine that we know, with its own addresses, or they are dropped; their connections are that machine's (`zoneOf`). One look tells
 * both. After that:
 *
 * - `forward`: from a machine to the outside, and what is answered; to a machine only from those that may be near. What is related
 *   to its flows are the errors of routers, which no rule for a protocol would let through.
 * - `input`, `output`: between a machine and the host itself. What the host's kernel sends by itself on each of its links is not
 *   for a machine, nor is it counted as denied: nobody has tried to reach the machine.
 * - `postrouting`: machines are seen outside by the host's own address.
 * - `flows-forward`, `flows-input`: of what all tables have let through, a machine opens so many flows and no more.
 *
 * ARP has a table of its own: a guest could fill the host's table of neighbours, or ask who has an address of the host.
 */
export const shared = (table: string, prefix: string | undefined, closed: ReadonlyArray<Cidr.Cidr>): string => {
  const inet = `inet ${table}`
  const unknown = (key: "iifname" | "oifname"): string => prefix === undefined ? "" : `    ${key} "${prefix}*" drop\n`
  const shut = families.map((family) => {
    const set = `${inet} closed${family}`
    const ranges = aggregate(closed.filter((one) => one.family === family))
    const text = ranges.map((one) => elementText(family, { cidr: one })).join(", ")
    return `flush set ${set}\n${text === "" ? "" : `add element ${set} { ${text} }\n`}`
  })
  return `table ${inet} {
  comment "effect-microvm-runtime: links of machines"
${counters.map((counter) => `  set ${counter} { type ifname; counter; }\n`).join("")}${
    families.map((family) =>
      `  set closed${family} { type ${address[family]} . nf_proto; flags interval; }
  map sources${family} { typeof iifname . ether saddr . ${ip[family]} saddr : ct zone; counter; }
  set gateways${family} { type ifname . ${address[family]}; }
  set masqueraded${family} { type ${address[family]}; }
`
    ).join("")
  }  set covered { type ifname; }
  set opened { type ifname; size 65535; flags dynamic; }
  map outside { type ifname : verdict; }
  map near { type ifname : verdict; }
  chain guard { type filter hook prerouting priority raw; policy accept; }
  chain forward { type filter hook forward priority filter; policy accept; }
  chain input { type filter hook input priority filter; policy accept; }
  chain output { type filter hook output priority filter; policy accept; }
  chain postrouting { type nat hook postrouting priority srcnat; policy accept; }
  chain flows-forward { type filter hook forward priority filter + 10; policy accept; }
  chain flows-input { type filter hook input priority filter + 10; policy accept; }
  chain to-machine { }
  chain between { }
  chain to-host { }
  chain from-host { }
  chain deny { }
}
table arp ${table} {
  set covered { type ifname; }
  set senders { type ifname . ether_addr . ipv4_addr; }
  set gateways { type ifname . ipv4_addr; }
  chain input { type filter hook input priority filter; policy accept; }
}
${[...callers, "deny"].map((chain) => `flush chain ${inet} ${chain}\n`).join("")}flush chain arp ${table} input
${shut.join("")}table ${inet} {
  chain guard {
    ct original zone set iifname . ether saddr . ip saddr map @sources4 accept
    ct original zone set iifname . ether saddr . ip6 saddr map @sources6 accept
    iifname @forged drop
${unknown("iifname")}  }
  chain forward {
    oifname @to goto to-machine
    ct direction original iifname vmap @outside
    iifname @denied-out drop
${unknown("oifname")}  }
  chain to-machine {
    iifname @covered goto between
    ct direction reply ct state related accept
    ct direction reply oifname vmap @outside
    oifname @denied-in drop
  }
  chain between {
    ct direction original iifname vmap @near
    ct direction reply oifname vmap @near
    oifname @denied-in iifname @denied-out drop
  }
  chain input {
    iifname @covered goto to-host
  }
  chain to-host {
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname . ip daddr @gateways4 icmp type echo-request accept
    iifname . ip6 daddr @gateways6 icmpv6 type echo-request accept
    ct direction original iifname vmap @near
    goto deny
  }
  chain output {
    oifname @to goto from-host
${unknown("oifname")}  }
  chain from-host {
    ct direction reply ct state related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    ct direction reply oifname . ip saddr @gateways4 icmp type echo-reply accept
    ct direction reply oifname . ip6 saddr @gateways6 icmpv6 type echo-reply accept
    ct direction reply oifname vmap @near
    icmpv6 type { mld-listener-report, mld-listener-reduction, mld2-listener-report, nd-router-solicit } drop
    oifname @denied-in drop
  }
  chain postrouting {
    ip saddr @masqueraded4 oifname != @covered masquerade
    ip6 saddr @masqueraded6 oifname != @covered masquerade
  }
  chain flows-forward {
    ${share}
  }
  chain flows-input {
    ${share}
  }
  chain deny {
    ct direction reply oifname @denied-in drop
    iifname @denied-out meta l4proto tcp reject with tcp reset
    drop
  }
}
table arp ${table} {
  chain input {
    arp operation reply iifname . arp saddr ether . arp saddr ip @senders accept
    arp operation request iifname . arp saddr ether . arp saddr ip @senders iifname . arp daddr ip @gateways accept
    iifname @covered drop
${unknown("iifname")}  }
}
`
}

/** The shared chains that hold on to others. */
const callers = [
  "guard",
  "forward",
  "input",
  "output",
  "postrouting",
  "flows-forward",
  "flows-input",
  "to-machine",
  "between",
  "to-host",
  "from-host"
] as const

/** FNV-1a of 64 bits: a name for what would be too long for one itself. */
const hash = (text: string): string => {
  let value = 0xcbf29ce484222325n
  for (const letter of text) value = BigInt.asUintN(64, (value ^ BigInt(letter.charCodeAt(0))) * 0x100000001b3n)
  return value.toString(16).padStart(16, "0")
}

const portText = (ports: NonNullable<Element["ports"]>): string =>
  ports.first === ports.last ? String(ports.first) : `${ports.first}-${ports.last}`

const elementText = (family: Cidr.Family, { cidr, ports }: Element): string =>
  `${Cidr.format(cidr)} . ${ports === undefined ? nfproto[family] : portText(ports)}`

/** A set that only one machine has. What is in it is in its name too, or is never said here. */
interface Own {
  readonly name: string
  readonly head: string
  readonly elements: string
}

/** What a machine may reach: how a packet is found to lead there, and the set for that, if there is one. */
interface Way {
  readonly match: string
  readonly set?: Own
}

/**
 * So many networks of a protocol are looked at one by one. A set for them takes longer to make, and the kernel goes through all
 * sets of the table to find one.
 */
const few = 4

const side = (machine: Known, family: Cidr.Family): Side | undefined => family === 4 ? machine.v4 : machine.v6

const present = (machine: Known): ReadonlyArray<Cidr.Family> =>
  families.filter((family) => side(machine, family) !== undefined)

const networkWays = (machine: Seen, place: "outside" | "near"): ReadonlyArray<Way> =>
  present(machine).flatMap((family) =>
    protocols.flatMap((protocol): ReadonlyArray<Way> => {
      const all = machine[place][family][protocol]
      const by = protocol === "any" ? peer(family) : `meta l4proto ${protocol} ${peer(family)}`
      if (all.length <= few) {
        return all.map(({ cidr, ports }) => ({
          match: `${by} ${Cidr.format(cidr)}${ports === undefined ? "" : ` ct reply proto-src ${portText(ports)}`}`
        }))
      }
      const elements = all.map((element) => elementText(family, element)).join(",\n  ")
      const name = `${place}-${protocol}${family}-${hash(elements)}-${machine.token}`
      const head = `type ${address[family]} . ${protocol === "any" ? "nf_proto" : "inet_service"}; flags interval;`
      return [{
        match: `${by} . ${protocol === "any" ? "meta nfproto" : "ct reply proto-src"} @${name}`,
        set: { name, head, elements }
      }]
    })
  )

const learned = (family: Cidr.Family, name: string, token: string): string => `learned${family}-${hash(name)}-${token}`
const used = (family: Cidr.Family, name: string, token: string): string => `used${family}-${hash(name)}-${token}`

/**
 * By name: to an address that was learned and is not yet stale, or on a connection that was opened when it was so. Without
 * the second every connection would end with the TTL of the answer that led to it.
 */
const nameWays = (machine: Seen): ReadonlyArray<Way> =>
  machine.names.flatMap(({ ports, protocol, target }) =>
    target._tag === "Network" ? [] : present(machine).flatMap((family) => {
      const [fresh, open] = [learned(family, target.name, machine.token), used(family, target.name, machine.token)]
      const head = `type ${address[family]}; size ${mostLearned}; flags dynamic, timeout;`
      const comment = `comment "${target.name.slice(0, 100)}";`
      const how = [
        ...(protocol === undefined ? [] : [`meta l4proto ${protocol} `]),
        ...(ports === undefined ? [] : [`ct reply proto-src ${portText(ports)} `])
      ].join("")
      const pass = `update @${open} { ${peer(family)} }`
      return [
        {
          match: `${how}${peer(family)} @${fresh} ${pass}`,
          set: { name: fresh, head: `${head} ${comment}`, elements: "" }
        },
        {
          match: `${how}ct state established ${peer(family)} @${open} ${pass}`,
          set: { name: open, head: `${head} timeout ${idle}; ${comment}`, elements: "" }
        }
      ]
    })
  )

/** What the host serves, on the addresses of the machine's gateway. */
const offerWays = (machine: Seen): ReadonlyArray<Way> =>
  machine.offers.flatMap(({ port, protocol }) =>
    present(machine).map((family) => ({
      match: `meta l4proto ${protocol} ${peer(family)} ${side(machine, family)?.gateway} ct reply proto-src ${port}`
    }))
  )

const ways = (machine: Seen, place: "outside" | "near"): ReadonlyArray<Way> => [
  ...networkWays(machine, place),
  ...(place === "outside" ? nameWays(machine) : offerWays(machine))
]

const ownSets = (machine: Seen): ReadonlyArray<Own> => [
  ...new Map(
    [...ways(machine, "outside"), ...ways(machine, "near")].flatMap(({ set }) =>
      set === undefined ? [] : [[set.name, set] as const]
    )
  ).values()
]

/** An element of a shared set or map. */
interface Member {
  readonly family: "inet" | "arp"
  readonly set: string
  readonly key: string
  readonly value?: string
}

const members = (machine: Known): ReadonlyArray<Member> => {
  const { link, mac, masquerade, token, v4 } = machine
  const name = `"${link}"`
  return [
    ...[...counters, "covered"].map((set) => ({ family: "inet", set, key: name }) as const),
    { family: "inet", set: "outside", key: name, value: `goto ${chains.outside(token)}` },
    { family: "inet", set: "near", key: name, value: `goto ${chains.near(token)}` },
    { family: "arp", set: "covered", key: name },
    ...families.flatMap((family): ReadonlyArray<Member> => {
      const ends = side(machine, family)
      return ends === undefined ? [] : [
        {
          family: "inet",
          set: `sources${family}`,
          key: `${name} . ${mac} . ${ends.guest}`,
          value: String(zoneOf(token))
        },
        { family: "inet", set: `gateways${family}`, key: `${name} . ${ends.gateway}` },
        ...(masquerade ? [{ family: "inet", set: `masqueraded${family}`, key: ends.guest } as const] : [])
      ]
    }),
    ...(v4 === undefined ? [] : [
      { family: "arp", set: "senders", key: `${name} . ${mac} . ${v4.guest}` },
      { family: "arp", set: "gateways", key: `${name} . ${v4.gateway}` }
    ] as const)
  ]
}

/** In one statement for each set: nft takes longer over many. */
const elementsOf = (verb: "add" | "delete", table: string, all: ReadonlyArray<Member>): string =>
  [...Map.groupBy(all, ({ family, set }) => `${family} ${table} ${set}`)].map(([set, group]) => {
    const elements = group.map(({ key, value }) => `${key}${value === undefined ? "" : ` : ${value}`}`)
    return `${verb} element ${set} { ${[...new Set(elements)].join(", ")} }\n`
  }).join("")

/** What is to be there before the rules that speak of it. Nothing looks at it yet. */
export const fill = (table: string, machine: Seen): string =>
  ownSets(machine).map(({ elements, head, name }) =>
    `add set inet ${table} ${name} { ${head} }\n${
      elements === "" ? "" : `add element inet ${table} ${name} { ${elements} }\n`
    }`
  ).join("")

/**
 * The rules, by which the link is closed from now on. What was filled is there, and what `before` had and this has not is
 * removed.
 */
export const enact = (table: string, now: Seen, before: Seen = now): string => {
  const inet = `inet ${table}`
  const [outside, near] = [chains.outside(now.token), chains.near(now.token)]
  const names = new Set(ownSets(now).map(({ name }) => name))
  const sets = ownSets(before).filter(({ name }) => !names.has(name))
  const rules = (place: "outside" | "near"): string =>
    [
      `ct original zone != ${zoneOf(now.token)} goto deny`,
      // What is closed to wide rules is open to those that are as narrow as is asked of near ones.
      ...present(now).flatMap((family) =>
        place === "outside" && now.wide[family]
          ? [`${peer(family)} . meta nfproto @closed${family} goto ${near}`]
          : []
      ),
      ...ways(now, place).map(({ match }) => `${match} accept`),
      "goto deny"
    ].map((line) => `    ${line}\n`).join("")
  return [
    `add chain ${inet} ${outside}\nadd chain ${inet} ${near}\nflush chain ${inet} ${outside}\nflush chain ${inet} ${near}\n`,
    `table ${inet} {\n  chain ${outside} {\n${rules("outside")}  }\n  chain ${near} {\n${rules("near")}  }\n}\n`,
    elementsOf("add", table, members(now)),
    // It cannot be told whether they are there, and what is not cannot be deleted.
    ...sets.map(({ head, name }) => `add set ${inet} ${name} { ${head} }\ndelete set ${inet} ${name}\n`)
  ].join("")
}

/** The addresses are open from now on for so many seconds, whatever was said of them before. */
export const learn = (
  table: string,
  token: string,
  names: ReadonlyArray<string>,
  addresses: ReadonlyArray<Cidr.Address>,
  seconds: number
): string =>
  families.map((family) => {
    const ours = addresses.filter((one) => one.family === family).map(Cidr.formatAddress)
    return ours.length === 0 ? "" : names.map((name) => {
      const set = `element inet ${table} ${learned(family, name, token)}`
      const all = ours.join(", ")
      // An element that is there keeps its time when it is added again, before Linux 6.12.
      return `add ${set} { ${all} }\ndelete ${set} { ${all} }\nadd ${set} { ${
        ours.map((one) => `${one} timeout ${seconds}s`).join(", ")
      } }\n`
    }).join("")
  }).join("")

/** What of a machine was found in the table. */
export interface Found {
  readonly machine: Known
  /** Those that it has for itself. */
  readonly sets: ReadonlyArray<string>
}

/** What of it is not there is added first, so that there is something to delete. */
export const remove = (table: string, found: ReadonlyArray<Found>): string => {
  const inet = `inet ${table}`
  const own = found.flatMap(({ machine: { token } }) => [chains.outside(token), chains.near(token)])
  const all = found.flatMap(({ machine }) => members(machine))
  return [
    elementsOf("add", table, all),
    elementsOf("delete", table, all),
    ...own.map((chain) => `flush chain ${inet} ${chain}\n`),
    ...own.map((chain) => `delete chain ${inet} ${chain}\n`),
    ...found.flatMap(({ sets }) => sets.map((set) => `delete set ${inet} ${set}\n`))
  ].join("")
}

/**
 * Away with the table and these machines, unless another one is in it: then its chain holds on to `deny`, and the kernel refuses
 * all of this.
 */
export const removeTable = (table: string, machines: ReadonlyArray<Known>): string =>
  `${
    [...callers, ...machines.flatMap(({ token }) => [chains.outside(token), chains.near(token)])]
      .map((chain) => `flush chain inet ${table} ${chain}\n`).join("")
  }delete chain inet ${table} deny
delete table inet ${table}
delete table arp ${table}
`
