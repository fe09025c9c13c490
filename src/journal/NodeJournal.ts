/**
 * The journal of this host.
 *
 * @since 0.1.0
 */
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import * as Journal from "./Journal.ts"
import type { JournalError } from "./JournalError.ts"
import * as NodeLease from "./NodeLease.ts"

/**
 * `Journal.layer` with the locks of the kernel and the real process table.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { Journal, NodeJournal } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 * import * as Layer from "effect/Layer"
 * const program = Effect.gen(function*() {
 *   const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
 *   const journal = () => Effect.provide(NodeJournal.layer({ directory: `${directory}/state` }), { local: true })
 *   yield* Journal.Journal.use((one) => one.open({ id: "web-1", keep: true, spec: {} })).pipe(journal())
 *   const entries = yield* Journal.Journal.use((one) => one.entries).pipe(journal())
 *   return entries.map(({ id }) => id)
 * })
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(NodeServices.layer))) // => ["web-1"]
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Journal.Options
): Layer.Layer<Journal.Journal, JournalError, FileSystem.FileSystem | Path.Path> =>
  Journal.layer(options).pipe(Layer.provide([NodeLease.layer, NodeProcessHost.layer]))
