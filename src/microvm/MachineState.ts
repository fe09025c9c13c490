/**
 * Where a machine is in its life, and what may be done to it there.
 *
 * ```
 *   (none) ▸ creating ▸ created          create
 *   (none) ▸ creating ▸ paused           restore, from a snapshot
 *   created ▸ running ⇄ paused           start; pause and resume
 *   running, paused ▸ stopping ▸ stopped stop
 *   any ▸ stopped                        the guest powers off or reboots
 *   any ▸ crashed                        any other end that nobody asked for
 *   stopped, crashed ▸ running           start: the machine boots afresh, or is restored again
 *   any ▸ destroyed                      destroy
 * ```
 *
 * @since 0.1.0
 */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

/**
 * - `creating`: the id is taken, resources are being claimed.
 * - `created`: the virtual machine monitor is up, the guest has not run yet.
 * - `running`: the guest runs.
 * - `paused`: the guest's processors stand still; memory and devices are kept.
 * - `stopping`: a shutdown runs.
 * - `stopped`: ended as asked, by us or by the guest itself.
 * - `crashed`: ended, and nobody asked.
 * - `destroyed`: nothing is left but the name.
 *
 * @category models
 * @since 0.1.0
 */
export const MachineState = Schema.Literals([
  "creating",
  "created",
  "running",
  "paused",
  "stopping",
  "stopped",
  "crashed",
  "destroyed"
])

/**
 * @category models
 * @since 0.1.0
 */
export type MachineState = typeof MachineState.Type

/**
 * What can be asked of a machine that exists.
 *
 * @category models
 * @since 0.1.0
 */
export const Operation = Schema.Literals(["start", "pause", "resume", "snapshot", "stop", "destroy", "rename"])

/**
 * @category models
 * @since 0.1.0
 */
export type Operation = typeof Operation.Type

/**
 * The state a machine is in after an operation has succeeded. An operation that is not listed for a state is refused
 * there, before anything is done. One that fails leaves the state as it was.
 *
 * @category constants
 * @since 0.1.0
 */
export const transitions: {
  readonly [S in MachineState]: { readonly [O in Operation]?: MachineState }
} = {
  creating: { destroy: "destroyed" },
  created: { start: "running", snapshot: "created", destroy: "destroyed", rename: "created" },
  running: { pause: "paused", snapshot: "running", stop: "stopped", destroy: "destroyed", rename: "running" },
  paused: { resume: "running", snapshot: "paused", stop: "stopped", destroy: "destroyed", rename: "paused" },
  stopping: { stop: "stopped", destroy: "destroyed" },
  stopped: { start: "running", destroy: "destroyed", rename: "stopped" },
  crashed: { start: "running", destroy: "destroyed", rename: "crashed" },
  destroyed: {}
}

/**
 * The word for what an operation asks for: the state, or `snapshot` and `renamed` for what is no change of state.
 *
 * @category constants
 * @since 0.1.0
 */
export const goals = {
  start: "running",
  pause: "paused",
  resume: "running",
  snapshot: "snapshot",
  stop: "stopped",
  destroy: "destroyed",
  rename: "renamed"
} as const satisfies { readonly [O in Operation]: string }

/**
 * The state after `operation`; none when it is refused.
 *
 * ```ts import.meta.vitest
 * import { MachineState } from "effect-microvm-runtime/microvm"
 * import * as Option from "effect/Option"
 * MachineState.next("running", "pause") // => Option.some("paused")
 * MachineState.next("created", "pause") // => Option.none()
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const next = (from: MachineState, operation: Operation): Option.Option<MachineState> =>
  Option.fromUndefinedOr(transitions[from][operation])

/**
 * Has the machine's life ended?
 *
 * @category guards
 * @since 0.1.0
 */
export const isOver = (self: MachineState): boolean => self === "stopped" || self === "crashed" || self === "destroyed"

/**
 * The operations that are not refused in this state.
 *
 * ```ts import.meta.vitest
 * import { MachineState } from "effect-microvm-runtime/microvm"
 * MachineState.possible("created") // => ["start", "snapshot", "destroy", "rename"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const possible = (from: MachineState): ReadonlyArray<Operation> =>
  Operation.literals.filter((operation) => transitions[from][operation] !== undefined)
