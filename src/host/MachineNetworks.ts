/**
 * A machine's network, from its address to the names it may ask for: what `Addresses`, `Firewall`, `Links` and `DnsRelay` do, in
 * the order in which nothing is open before it is meant to be.
 *
 * ```
 *   route, forwarding ▸ address ▸ rules and link ▸ relay for names ▸ the monitor opens the link
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { Entry } from "../journal/Journal.ts"
import type { JournalError } from "../journal/JournalError.ts"
import * as Addresses from "./Addresses.ts"
import * as Cidr from "./Cidr.ts"
import { DnsRelay } from "./DnsRelay.ts"
import * as EgressRule from "./EgressRule.ts"
import { Firewall, type Machine } from "./Firewall.ts"
import type * as HostError from "./HostError.ts"
import * as Links from "./Links.ts"
import type { Topology } from "./LinkSpec.ts"
import { NetworkMetrics } from "./NetworkMetrics.ts"
import { Routes } from "./Routes.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** What the machine may reach. Without any it reaches nothing, and only answers what comes back. */
  readonly allow: ReadonlyArray<EgressRule.EgressRule>
  /**
   * Who opens the TAP: the user that the monitor runs as. Default 65534, nobody, as the backends have it when we are root and no user
   * was asked for; by `NodeMachineNetworks`, we ourselves when we are not.
   */
  readonly user?: number | undefined
  /** Default: that of the interface that leads out, which is the default route's, or where there is none, that to what is allowed. */
  readonly mtu?: number | undefined
  /**
   * Default `Routed`: no machine shares a link with another. Machines that are ports of a bridge are the business of `Links`
   * alone: the rules do not see what stays on the bridge.
   */
  readonly topology?: Exclude<Topology, { readonly _tag: "Port" }> | undefined
}

/**
 * A network that a machine has.
 *
 * @category models
 * @since 0.1.0
 */
export interface Attached {
  /** What the machine is to be launched with. */
  readonly network: ReturnType<typeof Addresses.toNetwork> & { readonly mtu: number }
  /** The file of the network namespace that the TAP is in; absent for the host's own. */
  readonly netns?: string
  readonly control: NetworkControl
}

/**
 * @category models
 * @since 0.1.0
 */
export interface NetworkControl {
  /**
   * From now on this may be reached, and nothing else. Flows whose rule is gone are cut. One call after the other; when the firewall
   * fails, all is as it was.
   */
  readonly allow: (
    rules: ReadonlyArray<EgressRule.EgressRule>
  ) => Effect.Effect<void, HostError.HostError | JournalError>
}

/**
 * @category services
 * @since 0.1.0
 */
export class MachineNetworks extends Context.Service<MachineNetworks, {
  /** Gives a machine a network. Its claims are written down first; the relay is the scope's, and all else the claims'. */
  readonly attach: (
    entry: Entry,
    options: Options
  ) => Effect.Effect<Attached, HostError.HostError | JournalError, Scope.Scope>
  /** Serves a machine that was adopted, by the rules that were last written for it. None where it has no network. */
  readonly resume: (
    entry: Entry
  ) => Effect.Effect<Option.Option<NetworkControl>, HostError.HostError | JournalError, Scope.Scope>
}>()("effect-microvm-runtime/host/MachineNetworks") {}

/**
 * The label of a record that says which network namespace its machine's links and rules are in: nothing of them is found from
 * another.
 *
 * @category constants
 * @since 0.1.0
 */
export const namespaceLabel = "network-namespace"

/** The label of a record that says what its machine may reach. */
const allowLabel = "network-allow"
const AllowLabel = Schema.fromJsonString(Schema.Array(Schema.String))

const toMachine = (
  { id, token }: Pick<Entry, "id" | "token">,
  { mac, tap, v4, v6 }: Addresses.Allocation,
  rules: ReadonlyArray<EgressRule.EgressRule>
): Machine => ({
  id,
  token,
  link: tap,
  mac,
  v4: { guest: v4.guest, gateway: v4.host },
  v6: { guest: v6.guest, gateway: v6.host },
  rules,
  offers: EgressRule.names(rules).length === 0
    ? []
    : [{ protocol: "udp", port: 53 }, { protocol: "tcp", port: 53 }]
})

const make = Effect.fnUntraced(function*(settings: Settings) {
  const addresses = yield* Addresses.Addresses
  const firewall = yield* Firewall
  const links = yield* Links.Links
  const relay = yield* DnsRelay
  const routes = yield* Routes

  const writeAllowed = (entry: Entry, rules: ReadonlyArray<EgressRule.EgressRule>) =>
    entry.label({ [allowLabel]: JSON.stringify(rules.map(EgressRule.format)) })

  const serve = Effect.fnUntraced(function*(
    entry: Entry,
    allocation: Addresses.Allocation,
    first: ReadonlyArray<EgressRule.EgressRule>
  ) {
    let now = toMachine(entry, allocation, first)
    const { gateway, gateway6 } = Addresses.toNetwork(allocation)
    const served = yield* relay.serve({
      machine: entry.id,
      addresses: [gateway, gateway6],
      clients: [allocation.v4.guest, allocation.v6.guest].map(Cidr.formatAddress),
      names: EgressRule.names(first),
      learn: (learned) => Effect.suspend(() => firewall.learn(now, learned)),
      mayLearn: (address: Cidr.Address) => firewall.mayLearn(now, address)
    })
    const changing = Semaphore.makeUnsafe(1)
    const metrics = yield* Effect.serviceOption(NetworkMetrics)
    if (Option.isSome(metrics)) {
      yield* metrics.value.watch({ machine: entry.id, token: entry.token, firewall, names: served.counters })
    }
    const control: NetworkControl = {
      // Whoever adopts the machine goes by what is written, so it is not to be left behind by a change that was not made.
      allow: Effect.fn("MachineNetworks.allow")(
        function*(rules) {
          const next = toMachine(entry, allocation, rules)
          yield* writeAllowed(entry, rules)
          const change = Effect.catchReason(
            firewall.replace(now, next),
            "HostError",
            "CommandFailed",
            // Somebody has flushed the host's rules: nothing is there that could be changed.
            () => firewall.install([next])
          )
          yield* Effect.onError(change, () => Effect.ignore(writeAllowed(entry, now.rules)))
          now = next
          yield* served.replace(EgressRule.names(rules))
        },
        Effect.uninterruptible,
        Semaphore.withPermit(changing)
      )
    }
    return control
  })

  return MachineNetworks.of({
    attach: Effect.fn("MachineNetworks.attach")(function*(entry, options) {
      const { allow, topology, user = 65_534 } = options
      const towards = allow.flatMap(({ target }) => target._tag === "Network" ? [target.cidr] : [])
      const seen = yield* routes.facts(towards)
      const { ipv6 } = seen
      const has6 = Option.isSome(ipv6.egress) && (ipv6.forwarding || settings.forwarding === "enable")
      const only6 = has6 && allow.length > 0 && towards.length === allow.length &&
        towards.every((one) => one.family === 6)
      const facts = yield* routes.prepare({
        seen,
        towards,
        forwarding: settings.forwarding ?? "check",
        // A host without IPv6 of its own, or one that does not pass it on, is no reason to do without a network; and one without IPv4
        // is none for a machine that is to reach nothing by it.
        families: [
          ...(only6 && Option.isNone(seen.ipv4.egress) ? [] : [4 as const]),
          ...(has6 ? [6 as const] : [])
        ]
      })
      const mtu = options.mtu ?? facts.mtu
      yield* entry.update({
        claim: [addresses.claim],
        labels: {
          [allowLabel]: JSON.stringify(allow.map(EgressRule.format)),
          ...(settings.namespace === undefined ? {} : { [namespaceLabel]: settings.namespace })
        }
      })
      const allocation = yield* addresses.allocate(entry)
      const { tap, v4, v6 } = allocation
      const machine = toMachine(entry, allocation, allow)
      const spec = {
        name: tap,
        owner: entry,
        user,
        mtu,
        addresses: [{ address: v4.host, prefix: v4.prefix }, { address: v6.host, prefix: v6.prefix }],
        topology
      }
      yield* entry.update({
        claim: [firewall.claim(machine), Links.claim(spec)],
        labels: { address: Addresses.toNetwork(allocation).address }
      })
      // Nothing comes by a link before the monitor opens it. Rules first: nft works on them while the ip for the link is started.
      const [, [link]] = yield* Effect.all([firewall.install([machine]), links.make([spec])], { concurrency: 2 })
      const control = yield* serve(entry, allocation, allow)
      return {
        network: { ...Addresses.toNetwork(allocation), mtu },
        ...(link?.netns === undefined ? {} : { netns: link.netns }),
        control
      }
    }),
    resume: Effect.fn("MachineNetworks.resume")(function*(entry) {
      const { labels } = yield* entry.record
      const texts = Schema.decodeUnknownOption(AllowLabel)(labels[allowLabel])
      if (Option.isNone(texts)) return Option.none()
      const found = (yield* addresses.allocations).find(({ owner }) => owner.token === entry.token)
      if (found === undefined) return Option.none()
      const rules = yield* Effect.fromResult(EgressRule.parseAll(texts.value))
      // Whoever was killed may have written them and no more, and somebody may have flushed the host's rules since.
      yield* firewall.install([toMachine(entry, found.allocation, rules)])
      return Option.some(yield* serve(entry, found.allocation, rules))
    })
  })
})

/**
 * @category options
 * @since 0.1.0
 */
export interface Settings {
  /** Is a host that does not forward packets to be made to? Default `check`: it is told what to type. */
  readonly forwarding?: "check" | "enable" | undefined
  /** The network namespace that the host's commands work in, as `/proc/self/ns/net` names it. Default: it is not written down. */
  readonly namespace?: string | undefined
}

/**
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  settings: Settings = {}
): Layer.Layer<MachineNetworks, never, Addresses.Addresses | DnsRelay | Firewall | Links.Links | Routes> =>
  Layer.effect(MachineNetworks, make(settings))
