/**
 * The way out of this host for the packets of machines: by which interface, how large they may be, and does the host forward
 * them at all? That is its default route; a host without one may still lead to where its machines are to get.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Cidr from "./Cidr.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import { LINKS } from "./internal/forwardRules.ts"
import * as IpJson from "./internal/ipJson.ts"
import { destination, isReachable } from "./internal/reach.ts"
import { acceptRa, variable } from "./internal/settingNames.ts"
import { KernelSettings } from "./KernelSettings.ts"

/**
 * The way out for one family.
 *
 * - `dev`: the interface.
 * - `mtu`: in bytes, that of the route where it has one, else the interface's; the least, where there are several ways.
 * - `gateway`: absent where all the world is on the link.
 * - `source`: the host's own address there.
 *
 * @category models
 * @since 0.1.0
 */
export interface Egress {
  readonly dev: string
  readonly mtu: number
  readonly gateway?: Cidr.Address
  readonly source?: Cidr.Address
}

/**
 * What there is for one family. `forwarding` is false where the kernel does not know the family.
 *
 * @category models
 * @since 0.1.0
 */
export interface Way {
  readonly egress: Option.Option<Egress>
  readonly forwarding: boolean
}

/**
 * `mtu`: what a machine's link should have, the least of the ways out; 1500 where there is none.
 *
 * @category models
 * @since 0.1.0
 */
export interface Facts {
  readonly ipv4: Way
  readonly ipv6: Way
  readonly mtu: number
}

/**
 * - `forwarding`: `"check"` refuses a host that does not forward, and says what to type. `"enable"` switches it on, and it stays
 *   on: others may have come to rely on it.
 * - `families`: those that are needed. Default all that have a way out, and at least one.
 * - `towards`: as for `facts`.
 * - `seen`: `facts` of a moment ago. Default: it is looked now.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly forwarding: "check" | "enable"
  readonly families?: ReadonlyArray<Cidr.Family> | undefined
  readonly towards?: ReadonlyArray<Cidr.Cidr> | undefined
  readonly seen?: Facts | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class Routes extends Context.Service<Routes, {
  /**
   * How it is. Nothing is changed. Where there is no default route, the ways out are those to the networks that are `towards`, or
   * by IPv4, to a part of them; by IPv6, only to the whole of one. Default none.
   */
  readonly facts: (towards?: ReadonlyArray<Cidr.Cidr>) => Effect.Effect<Facts, HostError.HostError>
  /**
   * Sees to it that packets can leave. Fails with `Unavailable` when there is no route for a family that is needed, or the host
   * does not forward it and is not to be told to.
   *
   * **Gotchas**
   *
   * - A host that forwards IPv6 takes no more router advertisements, and loses a default route that it has by one, unless
   *   `accept_ra` of that interface is 2 (Documentation/networking/ip-sysctl.rst). `"enable"` sets that first, for the interface
   *   that leads out, where it was 1.
   */
  readonly prepare: (options: Options) => Effect.Effect<Facts, HostError.HostError>
}>()("effect-microvm-runtime/host/Routes") {}

/** Addresses that are nobody's neighbours. They are looked up in the kernel's table: nothing is sent. */
const farAway = { 4: "1.1.1.1", 6: "2606:4700:4700::1111" } as const

const forwardingOf = { 4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding" } as const

const usualMtu = 1_500

const Route = Schema.Struct({
  ...IpJson.Route.fields,
  metrics: Schema.optionalKey(Schema.Array(Schema.Struct({ mtu: Schema.optionalKey(Schema.Int) })))
})

const address = (text: string | undefined): Cidr.Address | undefined =>
  text === undefined ? undefined : Result.getOrUndefined(Cidr.parseAddress(text))

const leadsOut = ({ dev, type = "unicast" }: typeof Route.Type): boolean =>
  dev !== undefined && dev !== "lo" && !dev.startsWith(LINKS) && type === "unicast"

/**
 * The route to each of the networks: the closest that leads to all of it, or for IPv4, any that leads to a part. A part by IPv6
 * is mostly a bridge or a tunnel of this host's own, and to forward IPv6 for it would cost other interfaces their addresses.
 */
const choose = (routes: ReadonlyArray<typeof Route.Type>, towards: ReadonlyArray<Cidr.Cidr>) => {
  const known = routes.filter(leadsOut).flatMap((route) => {
    const where = destination(route.dst ?? "default")
    return where === undefined || !isReachable(where) ? [] : [{ route, where }]
  }).toSorted((one, other) => other.where.prefix - one.where.prefix)
  return towards.flatMap((network) => {
    const whole = known.find(({ where }) => Cidr.contains(where, network))
    const found = whole ??
      (network.family === 6 ? undefined : known.find(({ where }) => Cidr.contains(network, where)))
    return found === undefined ? [] : [found.route]
  })
}

const findEgress = Effect.fnUntraced(function*(family: Cidr.Family, towards: ReadonlyArray<Cidr.Cidr>) {
  const what = `to look for the way out by IPv${family}`
  const far = yield* IpJson.list(Route, ["route", "get", farAway[family]], what).pipe(
    // The kernel's answer where it has no route, or one that says no.
    Effect.catchIf(
      ({ reason }) => reason._tag === "CommandFailed" && reason.stderr.includes("RTNETLINK answers:"),
      () => Effect.succeed([])
    )
  )
  const out = far.find(leadsOut)
  const near = towards.filter((network) => network.family === family)
  const ways = out !== undefined
    ? [out]
    : near.length === 0
    ? []
    : choose(yield* IpJson.list(Route, [`-${family}`, "route", "show", "table", "all"], what), near)
  const mtus = yield* Effect.forEach(ways, ({ dev = "", metrics = [] }) => {
    const own = metrics.find(({ mtu }) => mtu !== undefined)?.mtu
    return own === undefined
      ? Effect.map(IpJson.list(IpJson.Link, ["link", "show", "dev", dev], what), ([link]) => link?.mtu ?? usualMtu)
      : Effect.succeed(own)
  })
  const [first] = ways
  if (first === undefined) return Option.none<Egress>()
  const gateway = address(first.gateway)
  const source = address(first.prefsrc)
  return Option.some<Egress>({
    dev: first.dev ?? "",
    mtu: Math.min(...mtus),
    ...(gateway === undefined ? {} : { gateway }),
    ...(source === undefined ? {} : { source })
  })
})

const make = Effect.gen(function*() {
  const commands = yield* HostCommands
  const settings = yield* KernelSettings

  const way = Effect.fnUntraced(function*(family: Cidr.Family, towards: ReadonlyArray<Cidr.Cidr>) {
    const forwarding = yield* settings.read(forwardingOf[family])
    const egress = Option.isNone(forwarding) ? Option.none<Egress>() : yield* findEgress(family, towards)
    return { egress, forwarding: Option.contains(forwarding, "1") }
  }, Effect.provideService(HostCommands, commands))

  const facts = Effect.fn("Routes.facts")(function*(towards: ReadonlyArray<Cidr.Cidr> = []) {
    const [ipv4, ipv6] = yield* Effect.all([way(4, towards), way(6, towards)], { concurrency: 2 })
    const mtus = [ipv4, ipv6].flatMap(({ egress }) => Option.isSome(egress) ? [egress.value.mtu] : [])
    return { ipv4, ipv6, mtu: mtus.length === 0 ? usualMtu : Math.min(...mtus) }
  })

  /** The settings that make the host forward, in the order in which they have to be made. */
  const missing = Effect.fnUntraced(function*(family: Cidr.Family, { egress, forwarding }: Way) {
    if (forwarding) return []
    const changes: Array<readonly [string, string]> = []
    if (family === 6 && Option.isSome(egress)) {
      const setting = acceptRa(egress.value.dev)
      if (Option.contains(yield* settings.read(setting), "1")) changes.push([setting, "2"])
    }
    return [...changes, [forwardingOf[family], "1"] as const]
  })

  return Routes.of({
    facts,
    prepare: Effect.fn("Routes.prepare")(function*({ families, forwarding, seen, towards = [] }) {
      const found = seen ?? (yield* facts(towards))
      const ways = [[4, found.ipv4], [6, found.ipv6]] as const
      const wanted = ways.filter(([family, { egress }]) => families?.includes(family) ?? Option.isSome(egress))
      const lacking = wanted.find(([, { egress }]) => Option.isNone(egress))?.[0] ??
        (wanted.length === 0 ? 4 : undefined)
      if (lacking !== undefined) {
        const places = [farAway[lacking], ...towards.filter(({ family }) => family === lacking).map(Cidr.format)]
        return yield* HostError.fail(
          new HostError.Unavailable({
            what: `a way out by IPv${lacking}`,
            why: `this host has no route to ${places.join(" or ")}`,
            remedy: `ip -${lacking} route add default via GATEWAY dev INTERFACE`
          })
        )
      }
      const changes = (yield* Effect.forEach(wanted, ([family, one]) => missing(family, one))).flat()
      if (changes.length === 0) return found
      if (forwarding === "check") {
        const off = wanted.filter(([, one]) => !one.forwarding).map(([family]) => `IPv${family}`)
        return yield* HostError.fail(
          new HostError.Unavailable({
            what: `forwarding of ${off.join(" and ")}`,
            why: "it is switched off on this host",
            remedy: `sysctl -w ${changes.map(([setting, value]) => `${variable(setting)}=${value}`).join(" ")}`
          })
        )
      }
      yield* Effect.forEach(changes, ([setting, value]) => settings.write([setting], value), { discard: true })
      return yield* facts(towards)
    })
  })
})

/**
 * Routes of the host that `HostCommands` works in.
 *
 * ```ts import.meta.vitest
 * import { HostCommands, KernelSettings, Routes } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const commands = HostCommands.layerScripted(({ args }) =>
 *   Effect.succeed(args.includes("1.1.1.1") ? `[{"dst":"1.1.1.1","dev":"eth0"}]` : `[{"ifname":"eth0","mtu":1400}]`)
 * )
 * const settings = KernelSettings.layerMemory(new Map([["net/ipv4/ip_forward", "0"]]))
 * const routes = Routes.layer.pipe(Layer.provide([commands, settings]))
 * const refused = Routes.Routes.use((routes) => Effect.flip(routes.prepare({ forwarding: "check" })))
 * const { message } = await Effect.runPromise(Effect.provide(refused, routes))
 * message // => "forwarding of IPv4 cannot be had, it is switched off on this host: sysctl -w net.ipv4.ip_forward=1"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Routes, never, HostCommands | KernelSettings> = Layer.effect(Routes, make)
