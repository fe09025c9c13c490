/**
 * Which process, for ever: a pid alone is used again after at most `pid_max` forks.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as ProcessHost from "./ProcessHost.ts"

/**
 * A process, told apart from every other one that has had or will have the same pid: the boot it runs in
 * (`/proc/sys/kernel/random/boot_id`), its pid, and its start time in clock ticks since boot (proc_pid_stat(5), field 22).
 *
 * Two processes could share an identity only if the pid came round again within one tick of 10 ms.
 *
 * **Gotchas**
 *
 * - A pid means something only inside its pid namespace: do not carry identities across.
 *
 * @category models
 * @since 0.1.0
 */
export const ProcessIdentity = Schema.Struct({
  bootId: Schema.String,
  pid: Schema.Int,
  startTime: Schema.Int
})

/**
 * @category models
 * @since 0.1.0
 */
export type ProcessIdentity = typeof ProcessIdentity.Type

/**
 * Makes an identity of its parts.
 *
 * ```ts import.meta.vitest
 * import { ProcessIdentity } from "effect-microvm-runtime/process"
 * const self = ProcessIdentity.make({ bootId: "b", pid: 7, startTime: 1234 })
 * ProcessIdentity.format(self) // => "7@1234"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (parts: ProcessIdentity): ProcessIdentity => parts

/**
 * Are they the same process?
 *
 * @category guards
 * @since 0.1.0
 */
export const equals = (self: ProcessIdentity, that: ProcessIdentity): boolean =>
  self.pid === that.pid && self.startTime === that.startTime && self.bootId === that.bootId

/**
 * `pid@startTime`, for people.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: ProcessIdentity): string => `${self.pid}@${self.startTime}`

/**
 * The identity of this process.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessHost, ProcessIdentity } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * const program = Effect.flatMap(ProcessIdentity.self, ProcessIdentity.isAlive)
 * await Effect.runPromise(Effect.provide(program, NodeProcessHost.layer)) // => true
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const self: Effect.Effect<ProcessIdentity, never, ProcessHost.ProcessHost> = Effect.gen(function*() {
  const host = yield* ProcessHost.ProcessHost
  const info = yield* host.inspect(host.self)
  return make({
    bootId: host.bootId,
    pid: host.self,
    startTime: Option.match(info, { onNone: () => 0, onSome: ({ startTime }) => startTime })
  })
})

/**
 * Does it still run? One of another boot does not, nor does one that only waits to be reaped.
 *
 * @category guards
 * @since 0.1.0
 */
export const isAlive: (
  identity: ProcessIdentity
) => Effect.Effect<boolean, never, ProcessHost.ProcessHost> = Effect.fnUntraced(function*(identity) {
  const host = yield* ProcessHost.ProcessHost
  if (identity.bootId !== host.bootId) return false
  const info = yield* host.inspect(identity.pid)
  return Option.isSome(info) && info.value.startTime === identity.startTime && ProcessHost.isAlive(info.value)
})
