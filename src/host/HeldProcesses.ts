/**
 * Processes that are held for a machine, as a kind of claim.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { type ResourceKind, Verdict } from "../journal/ResourceKind.ts"
import { type Destruction, ProcessHolder } from "../process/ProcessHolder.ts"
import { isNamedAfter } from "./internal/ownName.ts"

/**
 * The data of a claim of the kind `held-process`: where the process is held. The name of the directory holds the owner's token.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Data = Schema.Struct({ directory: Schema.String })

/**
 * @category models
 * @since 0.1.0
 */
export type Data = typeof Data.Type

const toVerdict = (fate: Destruction): Verdict => {
  switch (fate._tag) {
    case "Absent":
      return Verdict.Absent()
    case "Destroyed":
      return Verdict.Released()
    case "Foreign":
      return Verdict.Foreign({ why: fate.why })
    case "Stuck":
      return Verdict.Stuck({ why: fate.why, remedy: "end what is left of it, and recover again" })
  }
}

/**
 * Claims of the kind `held-process`: kills the process and what its kill scope reaches, and sees its holder end, all at once. A
 * directory without the owner's token in its name is not ours.
 *
 * ```ts import.meta.vitest
 * import { HeldProcesses } from "effect-microvm-runtime/host"
 * import { NodeProcessHolder, NodeProcessHost } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * const owner = { id: "web-1", token: "0123456789abcdef", bootId: "b" }
 * const program = HeldProcesses.kind.reclaim([
 *   { owner, data: { directory: "/nowhere/web-1-0123456789abcdef-1" } },
 *   { owner, data: { directory: "/nowhere/web-1" } }
 * ], { dryRun: false })
 * const layer = Layer.provide(NodeProcessHolder.layer, NodeProcessHost.layer)
 * const verdicts = await Effect.runPromise(Effect.provide(program, layer))
 * verdicts.map((verdict) => verdict._tag) // => ["Absent", "Foreign"]
 * ```
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<Data, ProcessHolder> = {
  kind: "held-process",
  data: Data,
  describe: ({ directory }) => `the process that is held in ${directory}`,
  reclaim: (claims, { dryRun }) =>
    ProcessHolder.use((holder) =>
      Effect.forEach(claims, ({ data: { directory }, owner }) =>
        isNamedAfter(owner, directory)
          ? Effect.map(holder.destroy({ directory, dryRun }), toVerdict)
          : Effect.succeed(Verdict.Foreign({ why: `the name of ${directory} is not one that ${owner.id} gives` })), {
        concurrency: "unbounded"
      })
    )
}
