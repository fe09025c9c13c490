/**
 * What is around a run: the place where it is written down, the supervisor of its machine, and what the machine gets of the
 * host.
 *
 * @since 0.1.0
 */
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { PlatformError } from "effect/PlatformError"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type { HostError } from "../host/HostError.ts"
import type { JournalError } from "../journal/JournalError.ts"
import type { RunReport } from "../lifecycle/RunReport.ts"
import type { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import type * as Supervisor from "../supervisor/Supervisor.ts"
import type { RunDirectoryError } from "./RunDirectory.ts"
import type { RunOptions } from "./RunOptions.ts"

/**
 * The place of one run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Place {
  readonly supervisor: Supervisor.Supervisor["Service"]
  /** What its machine is to have of the host. */
  readonly resources: ReadonlyArray<Supervisor.Resource>
  /** Where a run in the background leaves what its command and its machine's console say, for `microvm logs`. */
  readonly logs?: {
    readonly output: Sink.Sink<void, Uint8Array>
    readonly console: Sink.Sink<void, Uint8Array>
    /** Adds what of the console's last text nobody has written there: while its machine had no supervisor. */
    readonly catchUp: (console: string) => Effect.Effect<void>
  }
  /** Leaves the report, for `microvm wait`; while the machine still `stops`, for the case that we are killed meanwhile. */
  readonly conclude: (report: RunReport, options?: { readonly stops?: boolean }) => Effect.Effect<void>
  /** Sees to what runs that were killed have left, once, however often it is run. It is for when there is nothing else to do. */
  readonly tidy: Effect.Effect<void>
}

/**
 * What may be wrong with a place.
 *
 * @category errors
 * @since 0.1.0
 */
export type RunHostError = Config.ConfigError | HostError | JournalError | PlatformError | RunDirectoryError

/**
 * @category services
 * @since 0.1.0
 */
export class RunHost extends Context.Service<RunHost, {
  /**
   * Takes the place of the run of this id, until the scope closes. Fails with `StillUp` or `LeftBehind` when there is such a run
   * already. With `resume`, the place is one that another process has left.
   */
  readonly open: (
    id: string,
    options: RunOptions & { readonly resume?: boolean | undefined }
  ) => Effect.Effect<Place, RunHostError, MicroVmProvider | Scope.Scope>
  /**
   * Sees to what a run of a process that is gone has left, and lets go of it again. Fails with `LeaseHeld` while the process lives.
   */
  readonly recover: (
    id: string,
    options: Supervisor.RecoverOptions
  ) => Effect.Effect<ReadonlyArray<Supervisor.Recovered>, RunHostError, MicroVmProvider>
}>()("effect-microvm-runtime/cli/RunHost") {}
