/**
 * The network interfaces of machines: made by one `ip -batch` for all links of all machines that are asked for at once, and
 * removed by another one.
 *
 * A link says by its alias (`ip link show`) whose it is: `effect-microvm TOKEN ID NAME`. It is told from others by that, and
 * not by its name. One that has no alias yet is known by flags that nobody else's has, so whoever is killed at any moment leaves nothing
 * that could be taken for somebody else's, and nothing of somebody else is ever removed.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { Claim } from "../journal/MachineRecord.ts"
import { type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import { gather } from "./internal/gather.ts"
import * as IpJson from "./internal/ipJson.ts"
import * as Plan from "./internal/linkPlan.ts"
import { KernelSettings } from "./KernelSettings.ts"
import type { LinkSpec } from "./LinkSpec.ts"

/**
 * A link that is there.
 *
 * - `tap`: what the monitor opens.
 * - `netns`: the file of the network namespace that the TAP is in, absent for the host's own.
 * - `enter`: what a command line begins with to be run where the TAP is: empty, or `nsenter --net=… --`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Link {
  readonly name: string
  readonly tap: string
  readonly netns?: string
  readonly enter: ReadonlyArray<string>
}

/**
 * A TAP that the caller made. `user` and `group` are those who may open it, by name where they have one; with neither, it is
 * whoever may open `/dev/net/tun`.
 *
 * @category models
 * @since 0.1.0
 */
export interface CallersTap {
  readonly name: string
  readonly mtu: number
  readonly isUp: boolean
  readonly isMultiQueue: boolean
  readonly user?: string
  readonly group?: string
}

/**
 * The data of a claim of the kind `link`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const LinkData = Schema.Struct({
  name: Schema.String,
  /** Has its owner a network namespace? */
  netns: Schema.Boolean
})

/**
 * @category services
 * @since 0.1.0
 */
export class Links extends Context.Service<Links, {
  /**
   * Makes all of them, or none. Fails with `InvalidArgument` before anything is made, with `Conflict` when an interface has one
   * of the names, and else as `HostCommands` does: what was made until then is removed again.
   *
   * All links of a machine have to be made in one call. Calls at the same time are one `ip`.
   */
  readonly make: (links: ReadonlyArray<LinkSpec>) => Effect.Effect<ReadonlyArray<Link>, HostError.HostError>
  /**
   * Looks at a TAP that the caller made: nothing is changed, now or later. Fails with `InvalidArgument` when there is none of
   * that name, or it is no TAP.
   */
  readonly check: (name: string) => Effect.Effect<CallersTap, HostError.HostError>
}>()("effect-microvm-runtime/host/Links") {}

/**
 * What to write down before a link is made.
 *
 * @category constructors
 * @since 0.1.0
 */
export const claim = ({ name, topology }: LinkSpec): Claim => ({
  kind: "link",
  data: { name, netns: topology?._tag === "Namespace" }
})

const batch = (
  args: ReadonlyArray<string>,
  lines: ReadonlyArray<string>,
  what: string,
  removes?: ReadonlyArray<string>
) =>
  HostCommands.use(({ run }) =>
    run({ program: "ip", args: [...args, "-batch", "-"], input: `${lines.join("\n")}\n`, what, removes })
  )

const nameOf = (links: ReadonlyArray<{ readonly name: string }>): string =>
  links.length === 1 ? `link ${links.map(({ name }) => name).join("")}` : `${links.length} links`

const netnsPath = (token: string): string => `/run/netns/${Plan.netnsName(token)}`

const toLink = ({ name, owner, topology }: LinkSpec): Link => {
  if (topology?._tag !== "Namespace") return { name, tap: name, enter: [] }
  const netns = netnsPath(owner.token)
  return { name, tap: name, netns, enter: ["nsenter", `--net=${netns}`, "--"] }
}

/** The kernel's words for a name that is taken, and for what we may not do, as reasons of their own. */
const explain = (error: HostError.HostError): HostError.HostError => {
  const { reason } = error
  if (reason._tag !== "CommandFailed") return error
  if (/Operation not permitted|Permission denied/.test(reason.stderr)) {
    const [why, remedy] = ["ip may not make them for us", "run this as root, or with CAP_NET_ADMIN"]
    return HostError.make(new HostError.Unavailable({ what: "links for machines", why, remedy }))
  }
  if (!/File exists|Device or resource busy/.test(reason.stderr)) return error
  const what = reason.line === undefined ? "a link" : `"${reason.line}"`
  const remedy = "choose another name, or remove that one if it is not needed"
  return HostError.make(new HostError.Conflict({ what, with: "an interface of this host", remedy }))
}

interface Wanted {
  readonly owner: { readonly token: string }
  readonly data: typeof LinkData.Type
}

const listLinks = IpJson.list(IpJson.Link, ["link", "show"], "to look for links")
const listDetails = IpJson.list(IpJson.Link, ["-d", "link", "show"], "to look for links that are half made")
const listNetns = IpJson.list(IpJson.Netns, ["netns", "list"], "to look for network namespaces")

/** What of this is there: the names of our links, and those in the way. */
const look = Effect.fnUntraced(function*(claims: ReadonlyArray<Wanted>) {
  const links = yield* listLinks
  const spaces = claims.some(({ data }) => data.netns)
    ? new Set((yield* listNetns).map(({ name }) => name))
    : new Set<string>()
  const { byKey, byName } = Plan.index(links)
  const hasNoAlias = (name: string): boolean => {
    const link = byName.get(name)
    return link !== undefined && link.ifalias === undefined
  }
  const details = claims.some(({ data }) => !data.netns && hasNoAlias(data.name)) ? yield* listDetails : []
  const halfMade = new Set(details.filter(Plan.isHalfMade).map(({ ifname }) => ifname))
  const groups = new Set(links.map(({ group }) => group))
  const found = claims.map(({ data, owner: { token } }) => {
    const temporary = Plan.temporaryName(token)
    const unfinished = hasNoAlias(temporary)
      ? temporary
      : !data.netns && halfMade.has(data.name)
      ? data.name
      : undefined
    const ours = [byKey.get(Plan.keyOf(token, data.name)), unfinished].flatMap((name) => name ?? [])
    const space = Plan.netnsName(token)
    return { links: ours, netns: data.netns && spaces.has(space) ? [space] : [], other: byName.get(data.name) }
  })
  return { found, groups }
})

const isThere = ({ links, netns }: { readonly links: ReadonlyArray<string>; readonly netns: ReadonlyArray<string> }) =>
  links.length + netns.length > 0

/** A group of links that has no member yet. */
const freeGroup = (groups: ReadonlySet<string | undefined>): Effect.Effect<number> =>
  Effect.repeat(Random.nextIntBetween(2 ** 16, 2 ** 31 - 1), { while: (group) => groups.has(String(group)) })

const reclaim = Effect.fn("Links.reclaim")(function*(
  claims: ReadonlyArray<Wanted>,
  { dryRun }: { readonly dryRun: boolean }
) {
  if (claims.length === 0) return []
  const all = (verdict: Verdict) => claims.map(() => verdict)
  const before = yield* Effect.result(look(claims))
  if (Result.isFailure(before)) {
    return all(Verdict.Stuck({ why: before.failure.message, remedy: "ip link show, and then reclaim again" }))
  }
  const { found, groups } = before.success
  const links = Arr.dedupe(found.flatMap((one) => one.links))
  const netns = Arr.dedupe(found.flatMap((one) => one.netns))
  let left = found.map(() => false)
  let why = ""
  if (!dryRun && links.length + netns.length > 0) {
    const lines = Plan.removal(links, netns, yield* freeGroup(groups))
    const removed = yield* Effect.result(
      batch(
        ["-force"],
        lines,
        `to remove ${nameOf(links.map((name) => ({ name })))}`,
        netns.length === 0 ? links : undefined
      )
    )
    if (Result.isFailure(removed)) {
      why = removed.failure.message
      const after = yield* Effect.result(look(claims))
      left = Result.isFailure(after) ? found.map(isThere) : after.success.found.map(isThere)
    }
  }
  return found.map((one, index): Verdict => {
    if (left[index] === true) {
      const remedy = [
        ...one.links.map((name) => `ip link del dev ${name}`),
        ...one.netns.map((name) => `ip netns del ${name}`)
      ].join("; ")
      return Verdict.Stuck({ why, remedy })
    }
    if (isThere(one)) return Verdict.Released()
    if (one.other === undefined) return Verdict.Absent()
    const { ifalias, ifname } = one.other
    return Verdict.Foreign({
      why: `${ifname} is not ours: its alias is ${ifalias === undefined ? "empty" : JSON.stringify(ifalias)}`
    })
  })
})

/** The bridges are the caller's: are they there? */
const checkBridges = Effect.fnUntraced(function*(links: ReadonlyArray<LinkSpec>) {
  const wanted = links.flatMap(({ topology }, index) =>
    topology?._tag === "Port" ? [{ bridge: topology.bridge, field: `links[${index}].topology.bridge` }] : []
  )
  if (wanted.length === 0) return []
  const there = yield* IpJson.list(IpJson.Link, ["link", "show", "type", "bridge"], "to look for bridges")
  return wanted.filter(({ bridge }) => !there.some(({ ifname }) => ifname === bridge))
    .map(({ bridge, field }) => ({ field, value: bridge, remedy: `make it first: ip link add ${bridge} type bridge` }))
})

const make = Effect.gen(function*() {
  const commands = yield* HostCommands
  const settings = yield* KernelSettings

  const build = Effect.fnUntraced(function*(links: ReadonlyArray<LinkSpec>) {
    const what = `to make ${nameOf(links)}`
    yield* batch([], Plan.outside(links), what)
    yield* settings.write(Plan.settings(links), "0")
    yield* Effect.forEach(
      Plan.inside(links),
      ([netns, lines]) => batch(["-netns", netns], lines, what),
      { concurrency: 4, discard: true }
    )
  })

  const undo = (links: ReadonlyArray<LinkSpec>) =>
    reclaim(
      links.map(({ name, owner, topology }) => ({ owner, data: { name, netns: topology?._tag === "Namespace" } })),
      { dryRun: false }
    ).pipe(Effect.provideService(HostCommands, commands))

  const makeAll = gather({
    keyOf: ({ name }: LinkSpec) => name,
    undo,
    make: (links) =>
      build(links).pipe(
        Effect.onError((cause) => {
          const reason = Option.map(Cause.findErrorOption(cause), (error) => error.reason)
          const line = Option.isSome(reason) && reason.value._tag === "CommandFailed" ? reason.value.line : undefined
          return undo(Plan.madeBefore(links, line))
        }),
        Effect.mapError(explain),
        Effect.provideService(HostCommands, commands)
      )
  })

  return Links.of({
    make: Effect.fn("Links.make")(function*(links) {
      const faults = Plan.check(links)
      if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
      if (links.length === 0) return []
      const missing = yield* Effect.provideService(checkBridges(links), HostCommands, commands)
      if (missing.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults: missing }))
      yield* makeAll(links)
      return links.map(toLink)
    }),
    check: Effect.fn("Links.check")(function*(name) {
      const refuse = (remedy: string) =>
        HostError.fail(new HostError.InvalidArgument({ faults: [{ field: "tap", value: name, remedy }] }))
      const faults = Plan.checkName("tap", name)
      if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
      const found = yield* IpJson.list(IpJson.Link, ["-d", "link", "show", "dev", name], `to look at ${name}`).pipe(
        Effect.catchIf(
          ({ reason }) => reason._tag === "CommandFailed" && reason.stderr.includes("does not exist"),
          () => Effect.succeed([])
        ),
        Effect.provideService(HostCommands, commands)
      )
      const link = found[0]
      if (link === undefined) return yield* refuse(`make it first: ip tuntap add dev ${name} mode tap user USER`)
      const { info_data: data = {}, info_kind } = link.linkinfo ?? {}
      if (info_kind !== "tun" || data.type !== "tap") {
        return yield* refuse("give a TAP device: that one is something else")
      }
      return {
        name,
        mtu: link.mtu ?? 1_500,
        isUp: link.flags?.includes("UP") ?? false,
        isMultiQueue: data.multi_queue ?? false,
        ...(data.user === undefined ? {} : { user: String(data.user) }),
        ...(data.group === undefined ? {} : { group: String(data.group) })
      }
    })
  })
})

/**
 * Links of the host that `HostCommands` works in.
 *
 * ```ts import.meta.vitest
 * import { HostCommands, KernelSettings, Links, LinkSpec } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const host = Layer.merge(HostCommands.layerScripted(() => Effect.succeed("")), KernelSettings.layerMemory(new Map()))
 * const owner = { id: "web-1", token: "00f1e2d3c4b5a697" }
 * const program = Links.Links.use((links) => links.make([{ name: "mv3fa2-1", owner, topology: LinkSpec.Topology.Namespace() }]))
 * const [link] = await Effect.runPromise(program.pipe(Effect.provide(Links.layer.pipe(Layer.provide(host)))))
 * link?.enter // => ["nsenter", "--net=/run/netns/effect-microvm-00f1e2d3c4b5a697", "--"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Links, never, HostCommands | KernelSettings> = Layer.effect(Links, make)

/**
 * Claims of the kind `link`. A hundred links are removed in little more time than one.
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<typeof LinkData.Type, HostCommands> = {
  kind: "link",
  data: LinkData,
  describe: ({ name, netns }) => netns ? `link ${name} and its network namespace` : `link ${name}`,
  reclaim
}
