/**
 * A kind of resource, seen by somebody who knows nothing of its data, and that can be relied on whatever the kind does.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { type Owner, type ResourceKind, Verdict } from "./ResourceKind.ts"

/**
 * What became of a claim, and the phrase for it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reclaimed {
  readonly what: string
  readonly verdict: Verdict
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Reclaimer<R = never> {
  readonly kind: string
  /** An answer for each, in their order. */
  readonly reclaim: (
    claims: ReadonlyArray<{ readonly owner: Owner; readonly data: Schema.Json }>,
    options: { readonly dryRun: boolean }
  ) => Effect.Effect<ReadonlyArray<Reclaimed>, never, R>
}

/** People are to find it again, and not to drown in it. */
const unknown = (kind: string, data: Schema.Json): string => `${kind} ${JSON.stringify(data).slice(0, 100)}`

/**
 * Makes one of a kind. Claims whose data does not decode are `Stuck`, and the kind is not told of them. When the kind fails with
 * a defect, takes longer than `within` (default 1 minute), or does not answer for each, all of them are `Stuck`.
 *
 * ```ts import.meta.vitest
 * import { Reclaimer, ResourceKind } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 * const ports = Reclaimer.make<number, never>({
 *   kind: "port",
 *   data: Schema.Int,
 *   describe: (port) => `port ${port}`,
 *   reclaim: (claims) => Effect.succeed(claims.map(() => ResourceKind.Verdict.Absent()))
 * })
 * const owner = { id: "web-1", token: "0123456789abcdef", bootId: "b" }
 * const program = Effect.map(
 *   ports.reclaim([{ owner, data: 80 }, { owner, data: "http" }], { dryRun: false }),
 *   (all) => all.map(({ verdict }) => verdict._tag)
 * )
 * await Effect.runPromise(program) // => ["Absent", "Stuck"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <Data extends Schema.Json, R>(
  kind: ResourceKind<Data, R>,
  options: { readonly within?: Duration.Input | undefined } = {}
): Reclaimer<R> => {
  const within = Duration.fromInputUnsafe(options.within ?? "1 minute")
  const decode = Schema.decodeUnknownResult(kind.data, { onExcessProperty: "error" })
  const stuck = (why: string, remedy: string) => Verdict.Stuck({ why, remedy })
  const again = "see to it, then recover again"
  return {
    kind: kind.kind,
    reclaim: Effect.fn(`Reclaimer.${kind.kind}`)(function*(claims, { dryRun }) {
      const decoded = claims.map(({ data }) => decode(data))
      const known = claims.flatMap(({ owner }, index) => {
        const data = decoded[index]
        return data !== undefined && Result.isSuccess(data) ? [{ owner, data: data.success }] : []
      })
      const all = (why: string): ReadonlyArray<Verdict> => known.map(() => stuck(why, again))
      const verdicts = known.length === 0 ? [] : yield* Effect.suspend(() => kind.reclaim(known, { dryRun })).pipe(
        Effect.timeoutOption(within),
        Effect.map(Option.getOrElse(() => all(`it did not come to an end within ${Duration.format(within)}`))),
        Effect.catchDefect((defect) => Effect.succeed(all(`it broke: ${Cause.pretty(Cause.die(defect))}`))),
        Effect.map((some) =>
          some.length === known.length ? some : all(`${some.length} of ${known.length} were answered for`)
        )
      )
      const answers = verdicts.values()
      return claims.map(({ data }, index): Reclaimed => {
        const result = decoded[index]
        if (result === undefined || Result.isFailure(result)) {
          const why = result === undefined ? "" : `: ${result.failure.message}`
          return {
            what: unknown(kind.kind, data),
            verdict: stuck(
              `what the journal says of it is none of ${kind.kind}${why}`,
              "remove it by hand, then its claim"
            )
          }
        }
        return {
          what: kind.describe(result.success),
          verdict: answers.next().value ?? stuck("it was not answered for", again)
        }
      })
    })
  }
}

/** How long those who wait are held up by one that does not come to an end. */
const patience = Duration.seconds(1)

interface Group {
  readonly claims: Array<Parameters<Reclaimer["reclaim"]>[0][number]>
  callers: number
  readonly work: Fiber.Fiber<ReadonlyArray<Reclaimed>>
}

/**
 * The same, where one call for all claims is cheaper than one for each of many machines that are released at the same time: whoever
 * asks while a call is under way waits for its end, for a second at most, and all of them are the next call.
 *
 * A caller that is interrupted waits for that call, unless nobody else does: then it is interrupted, too. All of a call share its end:
 * one that hangs or dies does so for each of them, so this is for kinds whose answers are verdicts.
 *
 * ```ts import.meta.vitest
 * import { Reclaimer } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * const calls: Array<number> = []
 * const ports = Reclaimer.gathering({
 *   kind: "port",
 *   reclaim: (claims) =>
 *     Effect.sync(() => {
 *       calls.push(claims.length)
 *       return claims.map(({ data }) => ({ what: `port ${data}`, verdict: { _tag: "Absent" } }))
 *     })
 * })
 * const owner = { id: "web-1", token: "0123456789abcdef", bootId: "b" }
 * const release = (data: number) => ports.reclaim([{ owner, data }], { dryRun: false })
 * const answers = await Effect.runPromise(Effect.forEach([80, 443], release, { concurrency: "unbounded" }))
 * answers.flat().map(({ what }) => what) // => ["port 80", "port 443"]
 * calls // => [2]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const gathering = ({ kind, reclaim }: Reclaimer): Reclaimer => {
  const makeOne = (dryRun: boolean) => {
    let open: Group | undefined
    let last: Fiber.Fiber<unknown> | undefined
    const close = (group: Group): void => {
      if (open === group) open = undefined
    }
    const begin = Effect.suspend(() => {
      const before = last === undefined ? Effect.void : Effect.asVoid(Fiber.await(last))
      const claims: Group["claims"] = []
      return Effect.map(
        Effect.forkDetach(
          // Those that are about to ask do so first.
          Effect.yieldNow.pipe(
            Effect.andThen(Effect.raceFirst(before, Effect.sleep(patience))),
            Effect.andThen(Effect.suspend(() => {
              open = undefined
              return reclaim(claims, { dryRun })
            }))
          ),
          { uninterruptible: false }
        ),
        (work): Group => {
          const group: Group = { claims, callers: 0, work }
          open = group
          last = work
          return group
        }
      )
    })
    return (claims: Parameters<Reclaimer["reclaim"]>[0]) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const group = open ?? (yield* begin)
          const from = group.claims.length
          group.claims.push(...claims)
          group.callers++
          const leave = Effect.suspend(() => {
            group.callers--
            if (group.callers > 0) return Effect.asVoid(Fiber.await(group.work))
            close(group)
            return Fiber.interrupt(group.work)
          })
          const all = yield* Effect.onInterrupt(restore(Fiber.join(group.work)), () => leave)
          return all.slice(from, from + claims.length)
        })
      )
  }
  const [real, dry] = [makeOne(false), makeOne(true)]
  return { kind, reclaim: (claims, { dryRun }) => (dryRun ? dry : real)(claims) }
}

/**
 * What stands for a kind that nobody here knows: each claim is `Stuck`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const missing = (kind: string): Reclaimer => ({
  kind,
  reclaim: (claims) =>
    Effect.succeed(claims.map(({ data }) => ({
      what: unknown(kind, data),
      verdict: Verdict.Stuck({
        why: `nobody here knows what a "${kind}" is`,
        remedy: "recover with the program that made it"
      })
    })))
})
