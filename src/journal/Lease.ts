/**
 * The lock that says who may act on a state directory. The kernel drops it with the process that has it, however that ends.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

/**
 * The lock's file cannot be used.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockFailed extends Data.TaggedError("LockFailed")<{ readonly file: string; readonly cause: unknown }> {
  override get message(): string {
    const why = this.cause instanceof Error ? this.cause.message : String(this.cause)
    return `${this.file} cannot be locked: ${why}`
  }
}

/**
 * The real one is `NodeLease`.
 *
 * @category services
 * @since 0.1.0
 */
export class Lease extends Context.Service<Lease, {
  /** The user that files made by us belong to. */
  readonly user: number
  /**
   * Takes the lock on a file, which is made if there is none, until the scope closes. Does not wait: `false` when it is taken,
   * by another process or by this one.
   */
  readonly lock: (file: string) => Effect.Effect<boolean, LockFailed, Scope.Scope>
}>()("effect-microvm-runtime/journal/Lease") {}

/**
 * Locks that are known to this layer alone. It makes no files, and says that we are `user`.
 *
 * ```ts import.meta.vitest
 * import { Lease } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * const take = Lease.Lease.use((lease) => lease.lock("/state/lease"))
 * const program = Effect.all([Effect.scoped(Effect.all([take, take])), Effect.scoped(take)])
 * await Effect.runPromise(Effect.provide(program, Lease.layerMemory(1000))) // => [[true, false], true]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory = (user: number): Layer.Layer<Lease> =>
  Layer.sync(Lease, () => {
    const taken = new Set<string>()
    return {
      user,
      lock: (file) =>
        Effect.acquireRelease(
          Effect.sync(() => !taken.has(file) && taken.add(file).has(file)),
          (isOurs) => Effect.sync(() => isOurs && taken.delete(file))
        )
    }
  })
