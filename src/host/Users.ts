/**
 * Users for machines: a number for each, which no other machine has, so that a monitor that was broken out of can do nothing to the
 * others. No account is made: to the kernel, a user is a number (credentials(7)).
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import type { Claim } from "../journal/MachineRecord.ts"
import type { ResourceKind } from "../journal/ResourceKind.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as HostError from "./HostError.ts"
import { failed } from "./internal/diskFailure.ts"
import * as Slots from "./internal/slots.ts"

/**
 * The users of machines.
 *
 * @category services
 * @since 0.1.0
 */
export class Users extends Context.Service<Users, {
  /** To be claimed before `take`. It stands for all that the owner has taken. */
  readonly claim: Claim
  /** Takes a user; its group has the same number. Fails with `Exhausted`, `InvalidArgument`, `NoSpace` and `IoFailed`. */
  readonly take: (owner: Slots.Owner) => Effect.Effect<number, HostError.HostError>
}>()("effect-microvm-runtime/host/Users") {}

/**
 * - `directory`: where it is kept who has which. All supervisors of a host should share one; those that do not should have
 *   ranges of their own.
 * - `first`: default 2,000,000,000, in a range that neither accounts nor containers have (systemd.io/UIDS-GIDS).
 * - `count`: default 65,536.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly directory: string
  readonly first?: number | undefined
  readonly count?: number | undefined
}

/** The number above it stands for none (chown(2)). */
const last = 2 ** 32 - 2

/** Of the overflow user and of accounts, whose processes and files it would get at (user_namespaces(7), login.defs(5)). */
const reserved = 65_536

const check = (first: number, count: number): ReadonlyArray<HostError.Fault> => [
  ...(Number.isSafeInteger(first) && first >= reserved && first <= last
    ? []
    : [{ field: "first", value: first, remedy: `give a number from ${reserved} to ${last}` }]),
  ...(Number.isSafeInteger(count) && count >= 1 && (first > last || first + count - 1 <= last)
    ? []
    : [{ field: "count", value: count, remedy: `give a number from 1 on; the last user is ${last}` }])
]

/**
 * Opens the directory, and makes it when it is not there. Fails with `InvalidArgument` for a range that cannot be.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Users } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * const owner = { id: "web-1", token: "00f1e2d3c4b5a697" }
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const take = Users.Users.use((users) => users.take(owner))
 *   return yield* Effect.provide(take, Users.layer({ directory, first: 300_000, count: 1 }))
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer))) // => 300000
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  { count = 65_536, directory, first = 2_000_000_000 }: Options
): Layer.Layer<Users, HostError.HostError, FileSystem.FileSystem> =>
  Layer.effect(
    Users,
    Effect.gen(function*() {
      const faults = check(first, count)
      if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
      const fs = yield* FileSystem.FileSystem
      const slots = Slots.slotsOf(directory)
      yield* Effect.mapError(OwnedFiles.ensureDirectory(slots), failed("make directory", slots))
      const exhausted = new HostError.Exhausted({
        what: `users from ${first} on in ${directory}`,
        size: count,
        remedy: "end machines, recover those of dead supervisors, or give a larger range"
      })
      // Another directory may have the same range: whoever begins anywhere rarely meets; only ranges of their own never do.
      const start = Random.nextIntBetween(first, first + count, { halfOpen: true })
      return Users.of({
        claim: { kind: "user", data: { directory } },
        take: Effect.fn("Users.take")((owner) =>
          Effect.provideService(
            Slots.take({ directory, first, count, owner, start, exhausted }),
            FileSystem.FileSystem,
            fs
          )
        )
      })
    })
  )

/**
 * The data of a claim of the kind `user`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Data = Schema.Struct({ directory: Schema.String })

/**
 * Claims of the kind `user`: all that the owner's token has in the directory. They are given back once the monitor is gone.
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<typeof Data.Type, FileSystem.FileSystem> = {
  kind: "user",
  data: Data,
  describe: ({ directory }) => `user from ${directory}`,
  reclaim: Effect.fn("Users.reclaim")(Slots.reclaim)
}
