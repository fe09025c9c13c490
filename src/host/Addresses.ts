/**
 * Addresses for machines, from a pool that many supervisors share.
 *
 * A pool is a directory. A place in it is a number that names its owner, whoever is killed at whatever moment. From the number come
 * a pair of IPv4 addresses (a /31, RFC 3021), a pair of IPv6 addresses (a /127, RFC 6164), a MAC address and the name of an
 * interface: nothing is a hash, so no two machines have the same.
 *
 * The places are given out in turn and not the lowest first. One that was freed comes again after all the others: what is still
 * on its way to the machine before, replies to its flows above all, is not for the next one.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { Claim } from "../journal/MachineRecord.ts"
import type { ResourceKind } from "../journal/ResourceKind.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as Cidr from "./Cidr.ts"
import type { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import * as Plan from "./internal/addressPlan.ts"
import { failed } from "./internal/diskFailure.ts"
import * as IpJson from "./internal/ipJson.ts"
import * as Slots from "./internal/slots.ts"

/**
 * The two addresses of a link: the host's, which is the guest's gateway, and the guest's.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pair {
  readonly host: Cidr.Address
  readonly guest: Cidr.Address
  readonly prefix: number
}

/**
 * What a place in the pool stands for.
 *
 * - `index`: from 1 on.
 * - `tap`: the name of the host's interface, `mv`, the pool's id, `-` and the index: 15 bytes at most.
 * - `mac`: the guest's, a locally administered unicast address.
 * - `v4`, `v6`: a /31 and a /127. The host has the even address.
 *
 * @category models
 * @since 0.1.0
 */
export interface Allocation {
  readonly index: number
  readonly tap: string
  readonly mac: string
  readonly v4: Pair
  readonly v6: Pair
}

/**
 * Whom a place is for.
 *
 * @category models
 * @since 0.1.0
 */
export type Owner = Slots.Owner

/**
 * - `directory`: where the pool is kept. All supervisors of a host should share one: `/var/lib/effect-microvm/addresses`, say.
 * - `ipv4`: default the first of 172.30.0.0/16, 10.172.0.0/16 and 198.18.0.0/16 that nothing of this host overlaps.
 * - `ipv6`: default a /64 of a unique local prefix that is drawn at random (RFC 4193, 3.2.2).
 *
 * Both are fixed when the pool is first opened. What is wrong with them is told with the variables by which `microvm run` is given them,
 * `MICROVM_NETWORK_IPV4` and `MICROVM_NETWORK_IPV6`.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly directory: string
  readonly ipv4?: string | undefined
  readonly ipv6?: string | undefined
}

/**
 * A pool, open.
 *
 * @category services
 * @since 0.1.0
 */
export class Addresses extends Context.Service<Addresses, {
  /** `id`: four random hexadecimal digits. `size`: how many machines there is room for, 32,767 in a /16. */
  readonly pool: {
    readonly directory: string
    readonly id: string
    readonly ipv4: Cidr.Cidr
    readonly ipv6: Cidr.Cidr
    readonly size: number
  }
  /** To be claimed before `allocate`. It stands for all that is allocated to the owner, once or more often. */
  readonly claim: Claim
  /** Takes a place. Fails with `Exhausted`, `InvalidArgument`, `NoSpace` and `IoFailed`. */
  readonly allocate: (owner: Owner) => Effect.Effect<Allocation, HostError.HostError>
  /** All that is taken, by whom. */
  readonly allocations: Effect.Effect<
    ReadonlyArray<{ readonly owner: Owner; readonly allocation: Allocation }>,
    HostError.HostError
  >
}>()("effect-microvm-runtime/host/Addresses") {}

/**
 * The data of a claim of the kind `addresses`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Data = Schema.Struct({ directory: Schema.String })

/** What the host routes, and the addresses that it has, be their interfaces down. */
const occupied = Effect.gen(function*() {
  const routes = yield* IpJson.list(IpJson.Route, ["route", "show", "table", "all"], "to look for routes in the way")
  const links = yield* IpJson.list(IpJson.Addresses, ["addr", "show"], "to look for addresses in the way")
  const found: Array<Plan.Occupied> = []
  const add = (text: string, dev: string, what: string) => {
    const address = Result.map(
      Cidr.parseAddress(text),
      (one) => Cidr.network(one, one.family === 4 ? 32 : 128)
    )
    const where = text.includes("/") ? Cidr.parse(text) : address
    if (Result.isSuccess(where)) found.push({ dev, where: where.success, what })
  }
  for (const { dev = "", dst = "default" } of routes) {
    add(dst, dev, `the route to ${dst}${dev === "" ? "" : ` by ${dev}`}`)
  }
  for (const { addr_info = [], ifname = "" } of links) {
    for (const { local } of addr_info) if (local !== undefined) add(local, ifname, `the address ${local} of ${ifname}`)
  }
  return found
})

/** A network of a pool that others need. What helps is another one, and that can be typed. */
const variable = { 4: "MICROVM_NETWORK_IPV4", 6: "MICROVM_NETWORK_IPV6" } as const

const conflict = (cidr: Cidr.Cidr, found: Plan.Occupied, remedy: string) =>
  HostError.make(
    new HostError.Conflict({ what: `the pool ${Cidr.format(cidr)}`, with: `${found.what} of this host`, remedy })
  )

const randomBits = (bits: number) => Random.nextIntBetween(0, 2 ** bits, { halfOpen: true })

/** Those that were asked for, or the first that fit. */
const choose = Effect.fnUntraced(function*(
  wanted: { readonly ipv4: Cidr.Cidr | undefined; readonly ipv6: Cidr.Cidr | undefined },
  others: ReadonlyArray<Plan.Occupied>
) {
  const id = (yield* randomBits(16)).toString(16).padStart(4, "0")
  const random = BigInt(yield* randomBits(20)) << 20n | BigInt(yield* randomBits(20))
  const fitting = Plan.CANDIDATES.find((one) => Plan.collision(one, others, undefined) === undefined)
  return {
    id,
    ipv4: wanted.ipv4 ?? fitting ?? Plan.CANDIDATES[0],
    ipv6: wanted.ipv6 ?? Plan.uniqueLocal(random)
  }
})

const another = ({ family }: Cidr.Cidr, others: ReadonlyArray<Plan.Occupied>): string =>
  family === 6
    ? `unset ${variable[6]}`
    : `export ${variable[4]}=${Option.match(Plan.free(others), { onNone: () => "NETWORK", onSome: Cidr.format })}`

const find = Effect.fnUntraced(function*({ directory, ipv4, ipv6 }: Options) {
  const wanted4 = ipv4 === undefined ? undefined : Plan.check4(ipv4)
  const wanted6 = ipv6 === undefined ? undefined : Plan.check6(ipv6)
  const faults = [wanted4, wanted6].flatMap((one) => one !== undefined && Result.isFailure(one) ? [one.failure] : [])
  if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
  const wanted = {
    ipv4: wanted4 === undefined ? undefined : Result.getOrUndefined(wanted4),
    ipv6: wanted6 === undefined ? undefined : Result.getOrUndefined(wanted6)
  }

  const path = `${directory}/pool`
  const others = yield* occupied
  const text = yield* Slots.linkText(path)
  if (Option.isNone(text)) {
    const chosen = yield* choose(wanted, others)
    for (const cidr of [chosen.ipv4, chosen.ipv6]) {
      const found = Plan.collision(cidr, others, undefined)
      if (found !== undefined) return yield* conflict(cidr, found, another(cidr, others))
    }
    return { pool: chosen, isKept: false }
  }
  const pool = Plan.read(text.value)
  if (pool === undefined) {
    return yield* HostError.fail(
      new HostError.Conflict({
        what: `the pool in ${directory}`,
        with: `${path}, which is no pool: ${JSON.stringify(text.value)}`,
        remedy: `rm ${path}`
      })
    )
  }
  const moved = (["ipv4", "ipv6"] as const).flatMap((field) => {
    const cidr = wanted[field]
    if (cidr === undefined || Cidr.format(cidr) === Cidr.format(pool[field])) return []
    const remedy = `the pool in ${directory} has ${Cidr.format(pool[field])} already: unset ${variable[cidr.family]}`
    return [{ field, value: Cidr.format(cidr), remedy }]
  })
  if (moved.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults: moved }))
  for (const cidr of [pool.ipv4, pool.ipv6]) {
    const found = Plan.collision(cidr, others, Plan.prefixOf(pool.id))
    if (found !== undefined) {
      // Whoever has a place in it would not be found in a new one.
      const taken = (yield* Effect.orElseSucceed(Slots.scan(directory), () => [])).map(({ owner }) => owner.id)
      const first = taken.length === 0 ? "" : `end ${[...new Set(taken)].join(", ")} first, then `
      return yield* conflict(cidr, found, `${first}rm ${path}, and the next machine makes a new pool`)
    }
  }
  return { pool, isKept: true }
})

const open = Effect.fnUntraced(function*(options: Options) {
  const { directory } = options
  const slots = Slots.slotsOf(directory)
  const found = yield* find(options)
  yield* Effect.mapError(OwnedFiles.ensureDirectory(slots), failed("make directory", slots))
  if (found.isKept) return found.pool
  const path = `${directory}/pool`
  // Another process may have been faster, and then its pool is ours.
  yield* Effect.mapError(Slots.linkOnce(Plan.write(found.pool), path), failed("symlink", path))
  yield* Effect.mapError(OwnedFiles.sync(directory), failed("sync", directory))
  return (yield* find(options)).pool
})

/**
 * Which networks a pool has, or would have if it were opened now, and nothing is changed: `isKept` says which. Fails as `layer`
 * does.
 *
 * @category accessors
 * @since 0.1.0
 */
export const inspect = Effect.fn("Addresses.inspect")((options: Options) =>
  Effect.map(find(options), ({ isKept, pool: { ipv4, ipv6 } }) => ({ ipv4, ipv6, isKept }))
)

const make = Effect.fnUntraced(function*(options: Options) {
  const { directory } = options
  const fs = yield* FileSystem.FileSystem
  const pool = yield* open(options)
  const size = Plan.sizeOf(pool)
  const exhausted = new HostError.Exhausted({
    what: `places of the address pool ${Cidr.format(pool.ipv4)} in ${directory}`,
    size,
    remedy: "end machines, recover those of dead supervisors, or give a larger network in another directory"
  })
  const allocate = Effect.fn("Addresses.allocate")((owner: Owner) =>
    Slots.take({ directory, first: 1, count: size, owner, start: Effect.succeed(1), exhausted }).pipe(
      Effect.map((index) => Plan.allocation(pool, index)),
      Effect.provideService(FileSystem.FileSystem, fs)
    )
  )

  return Addresses.of({
    pool: { ...pool, directory, size },
    claim: { kind: "addresses", data: { directory } },
    allocate,
    allocations: Slots.scan(directory).pipe(
      Effect.mapError(failed("read directory", Slots.slotsOf(directory))),
      Effect.map((found) =>
        found.map(({ name, owner }) => ({ owner, allocation: Plan.allocation(pool, Number(name)) }))
          .toSorted((one, other) => one.allocation.index - other.allocation.index)
      ),
      Effect.provideService(FileSystem.FileSystem, fs)
    )
  })
})

/**
 * Opens a pool, and makes it when it is not there. Fails with `Conflict` when a network of it overlaps a route or an address of
 * this host that is not of our own links, and with `InvalidArgument` when the pool is there and is another one.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Addresses, Cidr, HostCommands } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const host = HostCommands.layerScripted(() => Effect.succeed("[]"))
 * const program = Effect.gen(function*() {
 *   const directory = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
 *   const allocate = Addresses.Addresses.use((addresses) => addresses.allocate({ id: "web-1", token: "00f1e2d3c4b5a697" }))
 *   const { v4 } = yield* Effect.provide(allocate, Addresses.layer({ directory, ipv4: "172.30.0.0/16" }))
 *   return [v4.host, v4.guest].map(Cidr.formatAddress)
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide([host, NodeServices.layer]))) // => ["172.30.0.2", "172.30.0.3"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<Addresses, HostError.HostError, FileSystem.FileSystem | HostCommands> =>
  Layer.effect(Addresses, make(options))

/**
 * What `MachineSpec.networks` of the port wants to know of a link. The name server is the host's side of it.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toNetwork = ({ mac, tap, v4, v6 }: Allocation) => ({
  tap,
  mac,
  address: `${Cidr.formatAddress(v4.guest)}/${v4.prefix}`,
  gateway: Cidr.formatAddress(v4.host),
  address6: `${Cidr.formatAddress(v6.guest)}/${v6.prefix}`,
  gateway6: Cidr.formatAddress(v6.host),
  nameserver: Cidr.formatAddress(v4.host)
})

/**
 * Claims of the kind `addresses`: all places of the owner's token in the directory.
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<typeof Data.Type, FileSystem.FileSystem> = {
  kind: "addresses",
  data: Data,
  describe: ({ directory }) => `addresses from ${directory}`,
  reclaim: Effect.fn("Addresses.reclaim")(Slots.reclaim)
}
