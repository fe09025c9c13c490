/**
 * Starts child processes and sees to it that nothing of them is left.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as ChildProcess from "effect/process/ChildProcess"
import type * as Scope from "effect/Scope"
import * as Spawn from "./internal/spawn.ts"
import type { Process } from "./Process.ts"
import type { ProcessError } from "./ProcessError.ts"
import { ProcessHost } from "./ProcessHost.ts"
import type { SpawnOptions } from "./SpawnOptions.ts"
import { SupervisorGuard } from "./SupervisorGuard.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class ProcessSpawner extends Context.Service<ProcessSpawner, {
  /**
   * Starts a command. Closing the scope ends it, by its policy, and takes away all that was made for it.
   *
   * In a pipeline (`ChildProcess.pipeTo`) each command is a process of its own in the same scope, and the handle is that
   * of the last.
   *
   * **Gotchas**
   *
   * - `argv[0]` is the path of the file that was found.
   * - In a cgroup, variables whose names no shell can have (`a.b`) pass through the command line of the short-lived shell
   *   that enters it, where others may see them for a moment. Secrets in such variables are refused.
   * - `detached` of the command defaults to `true`: the child has its own session, and the terminal's Ctrl-C does not
   *   reach it.
   * - Processes of one scope end one after the other, last first, as whatever is acquired in a scope. `Process.releasedTogether`
   *   has many end at the same time.
   */
  readonly spawn: (
    command: ChildProcess.Command,
    options?: SpawnOptions
  ) => Effect.Effect<Process, ProcessError, Scope.Scope>
}>()("effect-microvm-runtime/process/ProcessSpawner") {}

/**
 * The spawner over any host and guard, with other defaults for `SpawnOptions`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  defaults: SpawnOptions
): Layer.Layer<ProcessSpawner, never, ProcessHost | SupervisorGuard> =>
  Layer.effect(
    ProcessSpawner,
    Effect.gen(function*() {
      const spawn = yield* Spawn.make(yield* ProcessHost, yield* SupervisorGuard)
      return ProcessSpawner.of({
        spawn: Effect.fn("ProcessSpawner.spawn")((command, options) => spawn(command, { ...defaults, ...options }))
      })
    })
  )

/**
 * The spawner over any host and guard.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<ProcessSpawner, never, ProcessHost | SupervisorGuard> = layerWith({})
