/**
 * What the machines of a host may reach, and who may reach them: nothing and nobody, but what a rule allows.
 *
 * All machines share one nft(8) table, those of other supervisors too: a packet is looked up by its link in one map, however many
 * machines there are, and not once per supervisor. A machine's part is found by its token. Each change is one transaction, which
 * the kernel takes whole or not at all.
 *
 * - **Closed is the default**, for IPv4 and IPv6 alike, and in both directions: nobody opens a connection to a machine, neither
 *   from outside nor from the host. TCP that is refused is answered with a reset, so that programs fail at once; all else is
 *   dropped, because ICMP errors come out of one budget for the whole host.
 * - **Packets are the machine's own**: those with another MAC or source address are dropped before a connection is looked up, and
 *   so is its ARP for others. Frames that are neither IP nor ARP have nobody on a routed link who takes them.
 * - **A rule that goes takes its connections with it**: each packet is looked up, in either direction, by where the connection
 *   leads. Those of rules that stay go on.
 * - **What routers say of a machine's flows arrives** (ICMP errors): without it, packets that are too large for a link on the way
 *   vanish (RFC 4890, 4.3.1).
 * - **The host, other machines and metadata are closed** also to rules such as `0.0.0.0/0`. What is there is open only to a rule
 *   that means it: the address of the host itself, a network within the pool, a network within `closed`.
 * - **Names** are open for as long as the answers to them are, and to connections that were opened then.
 * - **A machine has 4,096 flows at most**, those to the host included, so that it cannot fill the table of the whole host. Those
 *   that were closed do not count.
 * - **Outside, machines have the host's address** (masquerading), whatever interface they leave by.
 *
 * A link is to be up only after `install` and away before `uninstall`. Links whose name begins with `prefix` and that no machine
 * has are closed as long as the table is there.
 *
 * **Gotchas**
 *
 * - The table only ever says no: what another table of the host drops (Docker's policy for `FORWARD`, say) is dropped.
 * - Packets have to arrive by the machine's own link. On a bridge they seem to arrive by the bridge, and none of this holds.
 * - Whoever is root can flush it: `nft flush ruleset`, as some scripts do, opens everything. `list` tells what is there.
 * - DNAT and `iptables` of the host see machines like any other network. A rule is held against the address after DNAT.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { Claim } from "../journal/MachineRecord.ts"
import { type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import * as Cidr from "./Cidr.ts"
import * as EgressRule from "./EgressRule.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import * as Sets from "./internal/egressSets.ts"
import * as List from "./internal/nftList.ts"
import * as Nft from "./internal/nftRun.ts"
import * as Text from "./internal/nftText.ts"

/**
 * The two ends of a machine's link.
 *
 * @category models
 * @since 0.1.0
 */
export interface Side {
  readonly guest: Cidr.Address
  /** The host's, where the guest sends what is for others. */
  readonly gateway: Cidr.Address
}

/**
 * A machine as the firewall has to know it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Machine {
  /** For people. */
  readonly id: string
  /** Of its journal record: sixteen hexadecimal digits. All that is its has them in its name. */
  readonly token: string
  /** The interface of the host by which its packets arrive: its TAP. It need not be there yet. */
  readonly link: string
  /** The only one its packets may come from. */
  readonly mac: string
  readonly v4?: Side | undefined
  readonly v6?: Side | undefined
  readonly rules: ReadonlyArray<EgressRule.EgressRule>
  /** What the host serves to it, on the addresses of its gateway. Default nothing; pings of the gateway are answered always. */
  readonly offers?: ReadonlyArray<{ readonly protocol: EgressRule.Protocol; readonly port: number }> | undefined
  /** Is it seen outside by the host's address? Default `true`; without, others need a route back to it. */
  readonly masquerade?: boolean | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * The name of the table, of `inet` and of `arp`. Who shares it is to have the same `prefix` and `pool`, so the default has the
   * prefix in it: `effect-microvm-mv1a2b`, or `effect-microvm`.
   */
  readonly table?: string | undefined
  /** Links that begin with it are machines', and closed unless one is installed: `mv1a2b-`. Default: none are. */
  readonly prefix?: string | undefined
  /** Where machines have their addresses. */
  readonly pool?: ReadonlyArray<Cidr.Cidr> | undefined
}

/**
 * Packets and bytes of a kind, since `install`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Count {
  readonly packets: number
  readonly bytes: number
}

/**
 * `Out` is from the machine, `In` is to it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Counters {
  readonly allowedOut: Count
  readonly allowedIn: Count
  readonly deniedOut: Count
  readonly deniedIn: Count
}

/**
 * Addresses of a name. `rules` are the names of rules that allow it, `keep` is for how long from now.
 *
 * @category models
 * @since 0.1.0
 */
export interface Learned {
  readonly rules: ReadonlyArray<string>
  readonly addresses: ReadonlyArray<Cidr.Address>
  readonly keep: Duration.Input
}

/**
 * Fails with `InvalidArgument` before anything is done, `Conflict` when another machine has the link, `Unavailable` when we may
 * not use nft or there is none, and else `CommandFailed` and `CommandHung`: then nothing has changed, or all of it has.
 *
 * @category services
 * @since 0.1.0
 */
export class Firewall extends Context.Service<Firewall, {
  readonly table: string
  /** What to write into the journal before. */
  readonly claim: (machine: Machine) => Claim
  /** Closes these links but for the rules, all at once. Doing it again brings back what somebody has removed. */
  readonly install: (machines: ReadonlyArray<Machine>) => Effect.Effect<void, HostError.HostError>
  /** Other rules and offers, without a gap. What is open by both goes on; addresses of names that stay are known still. */
  readonly replace: (before: Machine, after: Machine) => Effect.Effect<void, HostError.HostError>
  /** May a name lead there? Not to the host, machines, metadata and private networks, unless a rule is for a network there. */
  readonly mayLearn: (machine: Machine, address: Cidr.Address) => boolean
  /** Opens addresses that a name was found to have, from when this succeeds. Those that may not be learned are left out. */
  readonly learn: (machine: Machine, learned: Learned) => Effect.Effect<void, HostError.HostError>
  /** Removes all of them at once, and the table with the last machine. What is not there is passed over. */
  readonly uninstall: (machines: ReadonlyArray<Machine>) => Effect.Effect<void, HostError.HostError>
  /** By token, of all machines in the table. */
  readonly counters: Effect.Effect<ReadonlyMap<string, Counters>, HostError.HostError>
  /** All machines in the table. */
  readonly list: Effect.Effect<ReadonlyArray<{ readonly token: string; readonly link: string }>, HostError.HostError>
}>()("effect-microvm-runtime/host/Firewall") {}

const network = (text: string): Cidr.Cidr => Result.getOrThrow(Cidr.parse(text))

/**
 * What no wide rule opens: this host (RFC 1122), link-local addresses (RFC 3927, RFC 4291), multicast and broadcast, and where
 * clouds have their metadata: 169.254.169.254 and fd00:ec2::254 (AWS), fd20:ce::254 (Google), 168.63.129.16 (Azure),
 * 100.100.100.200 (Alibaba); 169.254.0.0/16 also as NAT64 has it (RFC 6052).
 *
 * @category constants
 * @since 0.1.0
 */
export const closed: ReadonlyArray<Cidr.Cidr> = [
  "0.0.0.0/8",
  "127.0.0.0/8",
  "169.254.0.0/16",
  "168.63.129.16/32",
  "100.100.100.200/32",
  "224.0.0.0/4",
  "255.255.255.255/32",
  "::/127",
  "::fffe:0:0/95",
  "64:ff9b::a9fe:0/112",
  "fd00:ec2::254/128",
  "fd20:ce::254/128",
  "fe80::/10",
  "ff00::/8"
].map(network)

/** As NAT64 has it by its well-known prefix (RFC 6052). */
const translated = ({ first, prefix }: Cidr.Cidr): Cidr.Cidr => ({
  family: 6,
  first: (0x64ff9bn << 96n) | first,
  prefix: prefix + 96
})

const inner4 = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "240.0.0.0/4"].map(
  network
)

/**
 * Where a name has no business to lead: private networks and those that nobody routes (RFC 1918, RFC 6598, RFC 2544, RFC 1112, RFC
 * 4193, RFC 3879), and the ways there by a translator (RFC 8215).
 */
const inner: ReadonlyArray<Cidr.Cidr> = [
  ...inner4,
  ...[...inner4, ...closed.filter(({ family }) => family === 4)].map(translated),
  ...["64:ff9b:1::/48", "fc00::/7", "fec0::/10"].map(network)
]

/** A machine's bits by which a rule is for one address. */
const isSingle = (cidr: Cidr.Cidr): boolean => cidr.prefix === (cidr.family === 4 ? 32 : 128)

const tablePattern = /^[A-Za-z][A-Za-z0-9._-]{0,47}$/

const tableOf = ({ prefix = "", table }: Options): string =>
  table ?? ["effect-microvm", ...prefix.split(/[^A-Za-z0-9]+/).filter((part) => part !== "")].join("-")

const linkPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$/
const macPattern = /^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/

const checkOptions = ({ prefix, table }: Options): ReadonlyArray<HostError.Fault> => [
  ...(table === undefined || tablePattern.test(table) ? [] : [{
    field: "table",
    value: table,
    remedy: "give 1 to 48 letters, digits, dots, underscores and hyphens, a letter first"
  }]),
  ...(prefix === undefined || /^[A-Za-z0-9][A-Za-z0-9._-]{0,13}$/.test(prefix) ? [] : [{
    field: "prefix",
    value: prefix,
    remedy: "give 1 to 14 letters, digits, dots, underscores and hyphens"
  }])
]

const checkMachine = (machine: Machine): ReadonlyArray<HostError.Fault> => {
  const faults: Array<HostError.Fault> = []
  const check = (right: boolean, field: string, value: unknown, remedy: string): void => {
    if (!right) faults.push({ field: `${machine.id}.${field}`, value, remedy })
  }
  const { link, mac, offers = [], rules, token, v4, v6 } = machine
  check(/^[0-9a-f]{16}$/.test(token), "token", token, "give sixteen hexadecimal digits, as the journal does")
  check(
    linkPattern.test(link),
    "link",
    link,
    "give 1 to 15 letters, digits, dots, underscores and hyphens (netdevice(7): 16 bytes with the last zero)"
  )
  check(
    macPattern.test(mac),
    "mac",
    mac,
    "give one of a single card, in small letters: 02:00:00:00:00:01"
  )
  check(v4 !== undefined || v6 !== undefined, "v4", v4, "give the machine an address, here or in v6")
  for (const [field, family, side] of [["v4", 4, v4], ["v6", 6, v6]] as const) {
    if (side === undefined) continue
    for (const end of ["guest", "gateway"] as const) {
      check(
        side[end].family === family,
        `${field}.${end}`,
        Cidr.formatAddress(side[end]),
        `give an address of IPv${family}`
      )
    }
    check(
      side.guest.value !== side.gateway.value,
      `${field}.guest`,
      Cidr.formatAddress(side.guest),
      "give another one than the gateway has"
    )
  }
  for (const { port } of offers) {
    check(Number.isInteger(port) && port > 0 && port < 65536, "offers", port, "give ports from 1 to 65535")
  }
  for (const [index, rule] of rules.entries()) {
    // Of a network, there is no text that nft could take for something else.
    const read = rule.target._tag === "Name" ? EgressRule.parse(EgressRule.format(rule)) : Result.succeed(rule)
    if (Result.isFailure(read)) check(false, `rules[${index}]`, rule.target, read.failure)
  }
  return faults
}

/** What of the rules is meant for the host itself, for other machines or for what is closed: nothing that is wider. */
const nearRules = ({ rules }: Machine, shut: ReadonlyArray<Cidr.Cidr>): ReadonlyArray<EgressRule.EgressRule> =>
  rules.filter(({ target }) =>
    target._tag === "Network" && (isSingle(target.cidr) || shut.some((one) => Cidr.contains(one, target.cidr)))
  )

/** The text of the addresses. */
const know = ({ link, mac, masquerade = true, token, v4, v6 }: Machine): Text.Known => {
  const ends = ({ gateway, guest }: Side): Text.Side => ({
    guest: Cidr.formatAddress(guest),
    gateway: Cidr.formatAddress(gateway)
  })
  return { token, link, mac, masquerade, ...(v4 && { v4: ends(v4) }), ...(v6 && { v6: ends(v6) }) }
}

const see = (machine: Machine, { pool = [] }: Options): Result.Result<Text.Seen, HostError.HostError> => {
  const shut = [...closed, ...pool]
  const near = nearRules(machine, shut)
  const sets = Result.all([
    Sets.elements(machine.rules, 4),
    Sets.elements(machine.rules, 6),
    Sets.elements(near, 4),
    Sets.elements(near, 6)
  ])
  const isWide = (family: Cidr.Family): boolean =>
    machine.rules.some(({ target }) =>
      target._tag === "Network" && target.cidr.family === family &&
      shut.some((one) => one.prefix > target.cidr.prefix && Cidr.contains(target.cidr, one))
    )
  const faults = checkMachine(machine)
  if (Result.isFailure(sets) || faults.length > 0) {
    const tooMany = Result.isSuccess(sets) ? [] : [{
      field: `${machine.id}.rules`,
      value: machine.rules.length,
      remedy: `give wider networks or ranges of ports that do not overlap: one machine can have ${Sets.most}`
    }]
    return Result.fail(HostError.make(new HostError.InvalidArgument({ faults: [...faults, ...tooMany] })))
  }
  const [outside4, outside6, near4, near6] = sets.success
  return Result.succeed({
    ...know(machine),
    offers: machine.offers ?? [],
    outside: { 4: outside4, 6: outside6 },
    near: { 4: near4, 6: near6 },
    wide: { 4: isWide(4), 6: isWide(6) },
    names: machine.rules.filter(({ target }) => target._tag === "Name")
  })
}

/** Two machines that would have the same. */
const collisions = (machines: ReadonlyArray<Machine>): ReadonlyArray<HostError.Fault> =>
  (["token", "link"] as const).flatMap((field) =>
    [...Map.groupBy(machines, (machine) => machine[field])].flatMap(([value, group]) =>
      group.length === 1 ? [] : [{
        field,
        value,
        remedy: `give each machine its own, not one to ${group.map(({ id }) => id).join(" and ")}`
      }]
    )
  )

const seeAll = (
  machines: ReadonlyArray<Machine>,
  options: Options
): Result.Result<ReadonlyArray<Text.Seen>, HostError.HostError> => {
  const all = machines.map((machine) => see(machine, options))
  const faults = [
    ...checkOptions(options),
    ...collisions(machines),
    ...all.flatMap((one) =>
      Result.isFailure(one) && one.failure.reason._tag === "InvalidArgument" ? one.failure.reason.faults : []
    )
  ]
  return faults.length > 0
    ? Result.fail(HostError.make(new HostError.InvalidArgument({ faults })))
    : Result.all(all)
}

/**
 * What `install` gives to `nft -f -`. Fails with `InvalidArgument` and all that is wrong.
 *
 * ```ts import.meta.vitest
 * import { Cidr, EgressRule, Firewall } from "effect-microvm-runtime/host"
 * import * as Result from "effect/Result"
 * const text = Result.getOrThrow(Firewall.plan([{
 *   id: "web-1",
 *   token: "00000000000000aa",
 *   link: "mv-1",
 *   mac: "02:00:00:00:00:01",
 *   v4: {
 *     guest: Result.getOrThrow(Cidr.parseAddress("172.30.0.1")),
 *     gateway: Result.getOrThrow(Cidr.parseAddress("172.30.0.0"))
 *   },
 *   rules: Result.getOrThrow(EgressRule.parseAll(["10.0.0.0/8:443/tcp"]))
 * }]))
 * const lines = text.slice(text.indexOf("  chain outside-00000000000000aa {")).split("\n").map((line) => line.trim())
 * lines[2] // => "meta l4proto tcp ct reply ip saddr 10.0.0.0/8 ct reply proto-src 443 accept"
 * lines[3] // => "goto deny"
 * lines.at(-3) // => 'add element arp effect-microvm senders { "mv-1" . 02:00:00:00:00:01 . 172.30.0.1 }'
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const plan = (
  machines: ReadonlyArray<Machine>,
  options: Options = {}
): Result.Result<string, HostError.HostError> =>
  Result.map(seeAll(machines, options), (all) => {
    const { pool = [], prefix } = options
    const table = tableOf(options)
    return [
      Text.shared(table, prefix, [...closed, ...pool]),
      ...all.map((machine) => Text.fill(table, machine) + Text.enact(table, machine))
    ]
      .join("")
  })

const Address = Schema.String.check(Schema.isPattern(/^[0-9a-f.:]{2,39}$/))
const Ends = Schema.Struct({ guest: Address, gateway: Address })

const Data = Schema.Struct({
  table: Schema.String.check(Schema.isPattern(tablePattern)),
  link: Schema.String.check(Schema.isPattern(linkPattern)),
  mac: Schema.String.check(Schema.isPattern(macPattern)),
  v4: Schema.optionalKey(Ends),
  v6: Schema.optionalKey(Ends),
  masquerade: Schema.Boolean
})

/**
 * What a machine has in a table: found by the token that its chains and sets have in their names, and to which the table leads
 * from its link. What else the claim says of the link is removed only then.
 *
 * @category resources
 * @since 0.1.0
 */
export const rules: ResourceKind<typeof Data.Encoded, HostCommands> = {
  kind: "rules",
  data: Data,
  describe: ({ link, table }) => `firewall rules of ${link} in table ${table}`,
  reclaim: Effect.fn("Firewall.reclaim")(function*(claims, { dryRun }) {
    const verdicts = new Map<string, Verdict>()
    for (const [table, group] of Map.groupBy(claims, ({ data }) => data.table)) {
      const there = yield* Effect.result(
        Nft.remove(table, group.map(({ data, owner: { token } }) => ({ ...data, token })), dryRun)
      )
      for (const { owner: { token } } of group) {
        verdicts.set(
          `${table} ${token}`,
          Result.isFailure(there)
            ? Verdict.Stuck({ why: there.failure.message, remedy: "recover again as root, with nft installed" })
            : there.success.has(token)
            ? Verdict.Released()
            : Verdict.Absent()
        )
      }
    }
    return claims.map(({ data, owner }) => verdicts.get(`${data.table} ${owner.token}`) ?? Verdict.Absent())
  })
}

/** Nothing but what a rule is for may change. */
const checkSame = (before: Machine, after: Machine): ReadonlyArray<HostError.Fault> =>
  (["token", "link", "mac"] as const).flatMap((field) =>
    before[field] === after[field] ? [] : [{
      field: `${after.id}.${field}`,
      value: after[field],
      remedy: `leave it ${before[field]}: only rules and offers can be replaced`
    }]
  )

const mayLearn = (options: Options) => {
  const guarded = [...closed, ...inner, ...options.pool ?? []]
  return (machine: Machine, address: Cidr.Address): boolean =>
    guarded.every((range) =>
      !Cidr.contains(range, address) ||
      machine.rules.some(({ target }) =>
        target._tag === "Network" && Cidr.contains(target.cidr, address) && Cidr.contains(range, target.cidr)
      )
    )
}

const none: Count = { packets: 0, bytes: 0 }

const plus = (one: Count, other: Count): Count => ({
  packets: one.packets + other.packets,
  bytes: one.bytes + other.bytes
})

const minus = (all: Count, some: Count): Count => ({
  packets: all.packets - some.packets,
  bytes: all.bytes - some.bytes
})

/**
 * The firewall of this host. Nothing is looked at or done before the first `install`. Fails with `InvalidArgument`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<Firewall, HostError.HostError, HostCommands> =>
  Layer.effect(
    Firewall,
    Effect.gen(function*() {
      const faults = checkOptions(options)
      if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
      const table = tableOf(options)
      const commands = yield* HostCommands
      const allowed = mayLearn(options)
      const provide = Effect.provideService(HostCommands, commands)
      return Firewall.of({
        table,
        claim: (machine) => {
          const { token: _, ...data } = know(machine)
          return { kind: rules.kind, data: { table, ...data } }
        },
        install: Effect.fn("Firewall.install")(function*(machines) {
          if (machines.length === 0) return
          const text = yield* Effect.fromResult(plan(machines, options))
          yield* Nft.apply(table, `the rules of ${Nft.people(machines.length)}`, text)
        }, provide),
        replace: Effect.fn("Firewall.replace")(function*(before, after) {
          const changed = checkSame(before, after)
          if (changed.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults: changed }))
          const [old, now] = yield* Effect.fromResult(Result.all([see(before, options), see(after, options)]))
          const what = `other rules for machine ${after.id}`
          // In one step there is a moment in which the new rules find their sets empty.
          yield* Nft.apply(table, what, Text.fill(table, now))
          yield* Nft.apply(table, what, Text.enact(table, now, old))
        }, provide),
        mayLearn: allowed,
        learn: Effect.fn("Firewall.learn")(function*(machine, { addresses, keep, rules: names }) {
          const ours = names.filter((name) =>
            machine.rules.some(({ target }) => target._tag === "Name" && target.name === name.toLowerCase())
          )
          const seconds = Math.max(1, Math.ceil(Duration.toSeconds(keep)))
          const open = addresses.filter((address) =>
            (address.family === 4 ? machine.v4 : machine.v6) !== undefined && allowed(machine, address)
          ).slice(0, Text.mostLearned)
          if (ours.length === 0 || open.length === 0) return
          const text = Text.learn(table, machine.token, ours.map((name) => name.toLowerCase()), open, seconds)
          yield* Nft.apply(table, `addresses of ${ours.join(", ")} for machine ${machine.id}`, text)
        }, provide),
        uninstall: Effect.fn("Firewall.uninstall")(function*(machines) {
          yield* Nft.remove(table, machines.map(know), false)
        }, provide),
        counters: Effect.gen(function*() {
          const read = (name: string, kind: "map" | "set" = "set") =>
            Effect.map(Nft.query(table, "reading the counters", `list ${kind} inet ${table} ${name}`), List.counts)
          // What is denied first: of what has come since, nothing is to be missing from the sums.
          const forged = yield* read("forged")
          const deniedOut = yield* read("denied-out")
          const deniedIn = yield* read("denied-in")
          const from4 = yield* read("sources4", "map")
          const from6 = yield* read("sources6", "map")
          const to = yield* read("to")
          const machines = List.machines(yield* Nft.query(table, "listing machines", `list map inet ${table} outside`))
          return new Map(machines.map(({ link, token }) => {
            const of = (counts: ReadonlyMap<string, Count>): Count => counts.get(link) ?? none
            return [token, {
              allowedOut: minus(plus(of(from4), of(from6)), of(deniedOut)),
              allowedIn: minus(of(to), of(deniedIn)),
              deniedOut: plus(of(deniedOut), of(forged)),
              deniedIn: of(deniedIn)
            }]
          }))
        }).pipe(
          Effect.withSpan("Firewall.counters"),
          provide
        ),
        list: Nft.query(table, "listing machines", `list map inet ${table} outside`).pipe(
          Effect.map(List.machines),
          Effect.withSpan("Firewall.list"),
          provide
        )
      })
    })
  )
