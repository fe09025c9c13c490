/**
 * Addresses for machines, from a pool that many supervisors share.
 *
 * A pool is a directory. A place in it is a symbolic link that is made in one step and is there once only (symlink(2)), and its
 * text is its owner's token and id: whoever is killed at whatever moment, what is taken names its owner. From the number of the
 * place come a pair of IPv4 addresses (a /31, RFC 3021), a pair of IPv6 addresses (a /127, RFC 6164), a MAC address and the name
 * of an interface: nothing is a hash, so no two machines have the same.
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
import type * as PlatformError from "effect/PlatformError"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { type Claim, MachineId } from "../journal/MachineRecord.ts"
import { type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as Cidr from "./Cidr.ts"
import type { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import * as Plan from "./internal/addressPlan.ts"
import * as IpJson from "./internal/ipJson.ts"

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
export interface Owner {
  readonly id: string
  readonly token: string
}

/**
 * - `directory`: where the pool is kept. All supervisors of a host should share one: `/var/lib/effect-microvm/addresses`, say.
 * - `ipv4`: default the first of 172.30.0.0/16, 10.172.0.0/16 and 198.18.0.0/16 that nothing of this host overlaps.
 * - `ipv6`: default a /64 of a unique local prefix that is drawn at random (RFC 4193, 3.2.2).
 *
 * Both are fixed when the pool is first opened.
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
  /** Takes a place. Fails with `Exhausted`, `InvalidArgument` and `IoFailed`. */
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

const failed = (operation: string, path: string) => (cause: PlatformError.PlatformError) =>
  HostError.make(new HostError.IoFailed({ operation, path, cause }))

const absent = (error: PlatformError.PlatformError): boolean => error.reason._tag === "NotFound"

const slotsOf = (directory: string): string => `${directory}/slots`

const writeOwner = ({ id, token }: Owner): string => `${token} ${id}`

const readOwner = (text: string): Option.Option<Owner> => {
  const [, token, id] = /^([0-9a-f]{16}) ([A-Za-z0-9-]{1,64})$/.exec(text) ?? []
  return token === undefined || id === undefined ? Option.none() : Option.some({ id, token })
}

/** Makes a symbolic link; `false` when there is something of that name already. */
const linkOnce = (text: string, path: string) =>
  FileSystem.FileSystem.use((fs) => fs.symlink(text, path)).pipe(
    Effect.as(true),
    Effect.catchIf((error) => error.reason._tag === "AlreadyExists", () => Effect.succeed(false))
  )

/** The text of a symbolic link; none when there is none, or what is there is no symbolic link. */
const linkText = (path: string) => FileSystem.FileSystem.use((fs) => fs.readLink(path)).pipe(Effect.option)

/** All places that are taken by somebody who can be read. */
const scan = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const slots = slotsOf(directory)
  const names = yield* Effect.catchIf(fs.readDirectory(slots), absent, () => Effect.succeed([]))
  const taken = yield* Effect.forEach(
    names,
    (name) => Effect.map(linkText(`${slots}/${name}`), (text) => ({ name, owner: Option.flatMap(text, readOwner) })),
    {
      concurrency: 32
    }
  )
  return taken.flatMap(({ name, owner }) => Option.isSome(owner) ? [{ name, owner: owner.value }] : [])
})

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

const open = Effect.fnUntraced(function*({ directory, ipv4, ipv6 }: Options) {
  const wanted4 = ipv4 === undefined ? undefined : Plan.check4(ipv4)
  const wanted6 = ipv6 === undefined ? undefined : Plan.check6(ipv6)
  const faults = [wanted4, wanted6].flatMap((one) => one !== undefined && Result.isFailure(one) ? [one.failure] : [])
  if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
  const wanted = {
    ipv4: wanted4 === undefined ? undefined : Result.getOrUndefined(wanted4),
    ipv6: wanted6 === undefined ? undefined : Result.getOrUndefined(wanted6)
  }

  const slots = slotsOf(directory)
  yield* Effect.mapError(OwnedFiles.ensureDirectory(slots), failed("make directory", slots))
  const path = `${directory}/pool`
  const others = yield* occupied
  const kept = yield* linkText(path)
  if (Option.isNone(kept)) {
    const chosen = yield* choose(wanted, others)
    for (const cidr of [chosen.ipv4, chosen.ipv6]) {
      const found = Plan.collision(cidr, others, undefined)
      if (found !== undefined) {
        return yield* conflict(cidr, found, `give another ${cidr.family === 4 ? "ipv4" : "ipv6"}`)
      }
    }
    // Another process may have been faster, and then its pool is ours.
    yield* Effect.mapError(linkOnce(Plan.write(chosen), path), failed("symlink", path))
    yield* Effect.mapError(OwnedFiles.sync(directory), failed("sync", directory))
  }
  const text = yield* linkText(path)
  const pool = Option.isSome(text) ? Plan.read(text.value) : undefined
  if (pool === undefined) {
    return yield* HostError.fail(
      new HostError.Conflict({
        what: `the pool in ${directory}`,
        with: `${path}, which is no pool: ${JSON.stringify(Option.getOrElse(text, () => ""))}`,
        remedy: "give another directory"
      })
    )
  }
  const moved = (["ipv4", "ipv6"] as const).flatMap((field) => {
    const cidr = wanted[field]
    if (cidr === undefined || Cidr.format(cidr) === Cidr.format(pool[field])) return []
    const remedy = `the pool in ${directory} has ${Cidr.format(pool[field])}: give that, or another directory`
    return [{ field, value: Cidr.format(cidr), remedy }]
  })
  if (moved.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults: moved }))
  for (const cidr of [pool.ipv4, pool.ipv6]) {
    const found = Plan.collision(cidr, others, Plan.prefixOf(pool.id))
    if (found !== undefined) {
      return yield* conflict(cidr, found, "remove that, or give another directory for a new pool")
    }
  }
  return pool
})

const checkOwner = ({ id, token }: Owner) => {
  const faults: Array<HostError.Fault> = []
  if (!Schema.is(MachineId)(id)) {
    faults.push({ field: "id", value: id, remedy: "give 1 to 64 letters, digits and \"-\", the first no \"-\"" })
  }
  if (!/^[0-9a-f]{16}$/.test(token)) {
    faults.push({ field: "token", value: token, remedy: "give 16 hexadecimal digits" })
  }
  return faults.length === 0 ? Effect.void : HostError.fail(new HostError.InvalidArgument({ faults }))
}

const make = Effect.fnUntraced(function*(options: Options) {
  const { directory } = options
  const fs = yield* FileSystem.FileSystem
  const pool = yield* open(options)
  const size = Plan.sizeOf(pool)
  const slots = slotsOf(directory)
  const next = `${directory}/next`

  /** Where to begin is a hint: it may be lost, and then the lowest are tried first. */
  const remember = (index: number) =>
    Effect.andThen(fs.remove(next, { force: true }), linkOnce(String(index % size + 1), next)).pipe(Effect.ignore)

  const allocate = Effect.fn("Addresses.allocate")(function*(owner: Owner) {
    yield* checkOwner(owner)
    const text = writeOwner(owner)
    while (true) {
      const taken = yield* Effect.mapError(fs.readDirectory(slots), failed("read directory", slots))
      const hint = Number(
        Option.getOrElse(yield* Effect.provideService(linkText(next), FileSystem.FileSystem, fs), () => "1")
      )
      const candidates = Plan.order(size, hint, new Set(taken))
      if (candidates.length === 0) {
        return yield* HostError.fail(
          new HostError.Exhausted({
            what: `places of the address pool ${Cidr.format(pool.ipv4)} in ${directory}`,
            size,
            remedy: "end machines, recover those of dead supervisors, or give a larger network in another directory"
          })
        )
      }
      for (const index of candidates) {
        const path = `${slots}/${index}`
        const isOurs = yield* linkOnce(text, path).pipe(
          Effect.mapError(failed("symlink", path)),
          Effect.provideService(FileSystem.FileSystem, fs)
        )
        if (isOurs) {
          yield* Effect.provideService(remember(index), FileSystem.FileSystem, fs)
          return Plan.allocation(pool, index)
        }
      }
    }
  })

  return Addresses.of({
    pool: { ...pool, directory, size },
    claim: { kind: "addresses", data: { directory } },
    allocate,
    allocations: scan(directory).pipe(
      Effect.mapError(failed("read directory", slots)),
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
  reclaim: Effect.fn("Addresses.reclaim")(function*(claims, { dryRun }) {
    const fs = yield* FileSystem.FileSystem
    const directories = [...new Set(claims.map(({ data }) => data.directory))]
    const scanned = new Map(
      yield* Effect.forEach(
        directories,
        (directory) => Effect.map(Effect.result(scan(directory)), (result) => [directory, result] as const)
      )
    )
    return yield* Effect.forEach(claims, ({ data: { directory }, owner }) =>
      Effect.gen(function*() {
        const found = scanned.get(directory) ?? Result.succeed([])
        if (Result.isFailure(found)) {
          return Verdict.Stuck({ why: found.failure.message, remedy: `see to it that ${directory} can be read` })
        }
        const ours = found.success.filter((one) => one.owner.token === owner.token)
        if (ours.length === 0) return Verdict.Absent()
        if (dryRun) return Verdict.Released()
        const paths = ours.map(({ name }) => `${slotsOf(directory)}/${name}`)
        return yield* Effect.forEach(paths, (path) => fs.remove(path, { force: true })).pipe(
          Effect.as(Verdict.Released()),
          Effect.catch((error) =>
            Effect.succeed(Verdict.Stuck({ why: error.message, remedy: `rm ${paths.join(" ")}` }))
          )
        )
      }), { concurrency: 8 })
  })
}
