/**
 * What nobody has use for any more: clones without a machine, and templates without a clone.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Owner } from "../journal/ResourceKind.ts"
import * as ProcessIdentity from "../process/ProcessIdentity.ts"
import * as DiskClones from "./DiskClones.ts"
import { Templates } from "./Templates.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface CollectOptions {
  /**
   * Every machine that has a record, whatever state directory it is in: the clones of all others are for nobody, unless the
   * process that made them lives.
   */
  readonly machines: ReadonlyArray<Pick<Owner, "id" | "token">>
  /** Templates that something besides a clone refers to, such as the label of a machine. Default none. */
  readonly stacks?: ReadonlyArray<string> | undefined
  /** What was made, or used, more recently is left alone. Default 1 day. */
  readonly olderThan?: Duration.Input | undefined
  /** Only tell. Default `true`. */
  readonly dryRun?: boolean | undefined
}

/**
 * One clone or template, and why it stays or goes.
 *
 * - `Unused`: would be removed, were this no dry run.
 * - `Removed`: is gone.
 * - `Used`, `Recent`: stays.
 * - `Foreign`: is nothing that we made, so it stays.
 * - `Stuck`: could not be removed.
 *
 * @category models
 * @since 0.1.0
 */
export interface Collected {
  readonly what: "clone" | "template"
  readonly name: string
  /** What it takes on the disk; blocks that clones share with a template count for each. */
  readonly bytes: number
  readonly verdict: "Unused" | "Removed" | "Used" | "Recent" | "Foreign" | "Stuck"
  readonly why: string
}

type Judged = Pick<Collected, "verdict" | "why">

/**
 * Judges all clones, then all templates, and removes what is unused, unless this is a dry run. One that cannot be removed keeps
 * none of the others.
 *
 * @category operations
 * @since 0.1.0
 */
export const collect = Effect.fn("DiskCollection.collect")(function*(options: CollectOptions) {
  const clones = yield* DiskClones.DiskClones
  const templates = yield* Templates
  const { dryRun = true, machines, stacks = [] } = options
  const now = yield* Clock.currentTimeMillis
  const age = Duration.fromInputUnsafe(options.olderThan ?? "1 day")
  const recent = (since: number, verb: string): Judged | undefined =>
    now - since < Duration.toMillis(age)
      ? { verdict: "Recent", why: `it was ${verb} less than ${Duration.format(age)} ago` }
      : undefined

  const removeClone = Effect.fnUntraced(function*(directory: string, marker: DiskClones.Marker, why: string) {
    const claims = [{ owner: marker, data: { directory } }]
    const [verdict] = yield* DiskClones.kind.reclaim(claims, { dryRun })
    if (verdict?._tag === "Stuck" || verdict?._tag === "Foreign") return { verdict: verdict._tag, why: verdict.why }
    return { verdict: dryRun ? "Unused" : "Removed", why } satisfies Judged
  })

  const judgeClone = Effect.fnUntraced(function*(clone: DiskClones.StoredClone) {
    if (Option.isNone(clone.marker)) {
      return { verdict: "Foreign", why: "nothing in it says whose it is" } satisfies Judged
    }
    const marker = clone.marker.value
    if (machines.some(({ id, token }) => id === marker.id && token === marker.token)) {
      return { verdict: "Used", why: `machine ${marker.id} has a record` } satisfies Judged
    }
    if (yield* ProcessIdentity.isAlive(marker.supervisor)) {
      const why = `process ${ProcessIdentity.format(marker.supervisor)}, which made it, lives`
      return { verdict: "Used", why } satisfies Judged
    }
    const judged = recent(clone.madeAt, "made")
    return judged ?? (yield* removeClone(clone.directory, marker, `no machine ${marker.id} has a record`))
  })

  const ofClones = yield* Effect.forEach(
    yield* clones.list,
    (clone) =>
      Effect.map(judgeClone(clone), (judged) => ({
        stack: Option.getOrUndefined(clone.marker)?.stack,
        collected: { what: "clone", name: clone.name, bytes: clone.bytes, ...judged } satisfies Collected
      }))
  )
  const staying = ofClones.filter(({ collected: { verdict } }) => verdict !== "Removed" && verdict !== "Unused")

  const removeTemplate = (stack: string): Effect.Effect<Judged> => {
    const why = "nothing refers to it"
    if (dryRun) return Effect.succeed({ verdict: "Unused", why })
    return Effect.match(templates.remove(stack), {
      onFailure: ({ message }) => ({ verdict: "Stuck", why: message }),
      onSuccess: () => ({ verdict: "Removed", why })
    })
  }

  const ofTemplates = yield* Effect.forEach(
    yield* templates.list,
    Effect.fnUntraced(function*({ bytes, isAdded, lastUsed, stack }) {
      const clone = staying.find((one) => one.stack === stack)
      const judged: Judged = !isAdded
        ? { verdict: "Foreign", why: "it was put there by hand" }
        : stacks.includes(stack)
        ? { verdict: "Used", why: "it is referred to" }
        : clone !== undefined
        ? { verdict: "Used", why: `the disk of machine ${clone.collected.name} is a copy of it` }
        : recent(lastUsed, "used") ?? (yield* removeTemplate(stack))
      return { what: "template", name: stack, bytes, ...judged } satisfies Collected
    })
  )
  return [...ofClones.map(({ collected }) => collected), ...ofTemplates]
})
