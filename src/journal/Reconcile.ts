/**
 * What is done about the claims of machines that are no more: those that were ended in order, and those of a supervisor that was
 * killed. It is the same for both.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Entry } from "./Journal.ts"
import type { Claim, MachineRecord, Phase } from "./MachineRecord.ts"
import * as Reclaimer from "./Reclaimer.ts"
import type { Owner } from "./ResourceKind.ts"

/**
 * What became of a claim: see `ResourceKind.Verdict`. On a dry run, what would.
 *
 * @category schemas
 * @since 0.1.0
 */
export const ClaimReport = Schema.Struct({
  kind: Schema.String,
  /** For people. */
  what: Schema.String,
  verdict: Schema.TaggedUnion({
    Released: {},
    Absent: {},
    Foreign: { why: Schema.String },
    Stuck: { why: Schema.String, remedy: Schema.String }
  })
})

/**
 * @category models
 * @since 0.1.0
 */
export type ClaimReport = typeof ClaimReport.Type

/**
 * What became of a machine's claims.
 *
 * - `claims`: in the order in which they were released.
 * - `left`: how many of them could not be released, and stay in the journal.
 * - `trouble`: why the journal could not be written. What was released is gone all the same, and is found absent the next time.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Released = Schema.Struct({
  id: Schema.String,
  claims: Schema.Array(ClaimReport),
  left: Schema.Int,
  trouble: Schema.optionalKey(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Released = typeof Released.Type

/**
 * Claims of one kind, of all machines.
 *
 * @category models
 * @since 0.1.0
 */
export interface Batch<R = never> {
  readonly reclaimer: Reclaimer.Reclaimer<R>
  /** Those of one stage are released at the same time. */
  readonly stage: number
  readonly claims: ReadonlyArray<{
    /** Which of the records. */
    readonly machine: number
    readonly owner: Owner
    readonly claim: Claim
  }>
}

/**
 * Kinds of resources, in the order in which they are acquired. Those in a list of their own do not depend on each other.
 *
 * @category models
 * @since 0.1.0
 */
export type Kinds<R = never> = ReadonlyArray<Reclaimer.Reclaimer<R> | ReadonlyArray<Reclaimer.Reclaimer<R>>>

/** What has to be known of a record for that. */
type Claiming = Pick<MachineRecord, "bootId" | "claims" | "id" | "token">

/**
 * What is to be released, and in which order. Kinds come in the order in which their resources are acquired: those that are
 * acquired last are released first, and of a kind, what a machine has claimed last. Claims of other kinds come before all.
 *
 * ```ts import.meta.vitest
 * import { Reclaimer, Reconcile } from "effect-microvm-runtime/journal"
 * const record = {
 *   id: "web-1",
 *   token: "0123456789abcdef",
 *   bootId: "b",
 *   claims: [{ kind: "tap", data: 1 }, { kind: "rules", data: 2 }, { kind: "tap", data: 3 }]
 * }
 * const plan = Reconcile.plan([record], [Reclaimer.missing("tap"), Reclaimer.missing("rules")])
 * plan.map((batch) => batch.claims.map(({ claim }) => claim.data)) // => [[2], [3, 1]]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const plan = <R>(
  records: ReadonlyArray<Claiming>,
  kinds: Kinds<R>
): ReadonlyArray<Batch<R>> => {
  const claimed = records.flatMap(({ bootId, claims, id, token }, machine) =>
    claims.toReversed().map((claim) => ({ machine, owner: { id, token, bootId }, claim }))
  )
  const stages = kinds.map((one): ReadonlyArray<Reclaimer.Reclaimer<R>> => "kind" in one ? [one] : one)
  const known = stages.flat().map(({ kind }) => kind)
  const twice = known.find((kind, index) => known.indexOf(kind) !== index)
  if (twice !== undefined) throw new Error(`two kinds of resources are called "${twice}"`)
  const unknown = Arr.dedupe(claimed.map(({ claim }) => claim.kind)).filter((kind) => !known.includes(kind))
  const order = [...stages, ...unknown.map((kind): ReadonlyArray<Reclaimer.Reclaimer<R>> => [Reclaimer.missing(kind)])]
  return order.toReversed().flatMap((reclaimers, stage) =>
    reclaimers.toReversed().flatMap((reclaimer) => {
      const some = claimed.filter(({ claim }) => claim.kind === reclaimer.kind)
      return some.length === 0 ? [] : [{ reclaimer, stage, claims: some }]
    })
  )
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Looks, removes nothing and writes nothing. Default false. */
  readonly dryRun?: boolean | undefined
  /** How each of them ended. By default, a record with nothing left to release is removed; with this, it stays and says so. */
  readonly over?: Extract<Phase, { readonly _tag: "Over" }> | undefined
}

/** Writes down what became of one machine, once. */
const settle = Effect.fnUntraced(function*(
  entry: Entry,
  gone: ReadonlyArray<Claim>,
  { over }: Options
) {
  const remaining = Arr.difference((yield* entry.record).claims, gone)
  const write = over === undefined && remaining.length === 0 ? entry.close : entry.update({ forget: gone, phase: over })
  return yield* Effect.match(write, {
    onFailure: (error) => ({ trouble: error.message }),
    onSuccess: () => ({})
  })
})

/**
 * Releases what these machines have claimed, all at once: kind by kind, in the order of `plan`. What cannot be released does not
 * keep the rest from it. What was released, was not there, or is somebody else's, is forgotten, in one write a machine; a record
 * that has nothing left is removed, unless it is to say how its machine ended. The rest stays in the journal, and in the answer.
 *
 * Never fails, comes to an end, and may be done again. When it is interrupted, nothing that was not released is forgotten.
 *
 * **Gotchas**
 *
 * - It does not ask whether a machine is alive: see to that first.
 *
 * @category operations
 * @since 0.1.0
 */
export const reclaim = Effect.fn("Reconcile.reclaim")(function*<R>(
  entries: ReadonlyArray<Entry>,
  kinds: Kinds<R>,
  options: Options = {}
): Effect.fn.Return<ReadonlyArray<Released>, never, R> {
  const { dryRun = false } = options
  const records = yield* Effect.forEach(entries, ({ record }) => record)
  const reports = records.map(() => ({ gone: new Array<Claim>(), claims: new Array<ClaimReport>() }))
  const batches = plan(records, kinds)
  for (const stage of Arr.dedupe(batches.map((batch) => batch.stage))) {
    const some = batches.filter((batch) => batch.stage === stage)
    const reclaimed = yield* Effect.forEach(
      some,
      ({ claims, reclaimer }) =>
        reclaimer.reclaim(claims.map(({ claim, owner }) => ({ owner, data: claim.data })), { dryRun }),
      { concurrency: "unbounded" }
    )
    for (const [{ claims }, answers] of Arr.zip(some, reclaimed)) {
      for (const [{ claim, machine }, { verdict, what }] of Arr.zip(claims, answers)) {
        const report = reports[machine]
        report?.claims.push({ kind: claim.kind, what, verdict })
        if (verdict._tag !== "Stuck") report?.gone.push(claim)
      }
    }
  }
  return yield* Effect.forEach(entries, (entry, machine) =>
    Effect.gen(function*() {
      const { claims = [], gone = [] } = reports[machine] ?? {}
      const left = claims.length - gone.length
      if (dryRun) return { id: entry.id, claims, left }
      const trouble = yield* settle(entry, gone, options)
      return { id: entry.id, claims, left, ...trouble }
    }), { concurrency: 16 })
})

/**
 * `reclaim` for one machine: what is done when it has ended in order.
 *
 * @category operations
 * @since 0.1.0
 */
export const release = <R>(
  entry: Entry,
  kinds: Kinds<R>,
  options: Options = {}
): Effect.Effect<Released, never, R> =>
  Effect.map(
    reclaim([entry], kinds, options),
    ([released]) => released ?? { id: entry.id, claims: [], left: 0 }
  )

const words = (dryRun: boolean) => (verdict: ClaimReport["verdict"]): string => {
  switch (verdict._tag) {
    case "Released":
      return dryRun ? "would be removed" : "removed"
    case "Absent":
      return "is not there"
    case "Foreign":
      return `is not ours, and was left alone: ${verdict.why}`
    case "Stuck":
      return `STAYS, ${verdict.why}: ${verdict.remedy}`
  }
}

/**
 * For people.
 *
 * ```ts import.meta.vitest
 * import { Reconcile } from "effect-microvm-runtime/journal"
 * const claims: ReadonlyArray<Reconcile.ClaimReport> = [{ kind: "tap", what: "TAP mv-1", verdict: { _tag: "Released" } }]
 * Reconcile.format([{ id: "web-1", claims, left: 0 }]) // => "web-1: all released\n  TAP mv-1: removed"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (released: ReadonlyArray<Released>, options: Pick<Options, "dryRun"> = {}): string => {
  const dryRun = options.dryRun === true
  return released.flatMap(({ claims, id, left, trouble }) => {
    const all = dryRun ? "all would be released" : "all released"
    const head = left === 0 ? all : `${left} of ${claims.length} ${dryRun ? "would stay" : "stay"}`
    return [
      `${id}: ${head}`,
      ...claims.map(({ verdict, what }) => `  ${what}: ${words(dryRun)(verdict)}`),
      ...(trouble === undefined ? [] : [`  ${trouble}`])
    ]
  }).join("\n")
}
