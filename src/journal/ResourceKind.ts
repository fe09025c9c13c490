/**
 * What a kind of resource has to know to be claimed, and to be reclaimed by somebody who finds nothing but the claim.
 *
 * Releasing a resource and reclaiming it after a crash are one and the same: there is no second way that only a crash tries.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Claim } from "./MachineRecord.ts"

/**
 * Whose claim it is.
 *
 * @category models
 * @since 0.1.0
 */
export interface Owner {
  readonly id: string
  readonly token: string
  /** The boot in which it was claimed. */
  readonly bootId: string
}

/**
 * What became of a claimed resource:
 *
 * - `Released`: it was there, and is gone now.
 * - `Absent`: it was not there.
 * - `Foreign`: what is there is not ours, so it was not touched.
 * - `Stuck`: it is ours, and could not be removed: the claim is to stay.
 *
 * @category models
 * @since 0.1.0
 */
export type Verdict = Data.TaggedEnum<{
  Released: {}
  Absent: {}
  Foreign: { readonly why: string }
  Stuck: { readonly why: string; readonly remedy: string }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Verdict = Data.taggedEnum<Verdict>()

/**
 * A kind of resource.
 *
 * @category models
 * @since 0.1.0
 */
export interface ResourceKind<Data extends Schema.Json = Schema.Json, R = never> {
  /** The `kind` of its claims. */
  readonly kind: string
  /** What a claim's data is. A claim that is not is reported, and nothing is done about it. */
  readonly data: Schema.Codec<Data, Schema.Json>
  /** One phrase for people: `"TAP device mv-1"`. */
  readonly describe: (data: Data) => string
  /**
   * Removes what is there of these claims, and is ours by more than its name: all at once, so that many take little longer than
   * one. May be called again and again; must come to an end. A verdict for each, in their order.
   */
  readonly reclaim: (
    claims: ReadonlyArray<{ readonly owner: Owner; readonly data: Data }>,
    options: { readonly dryRun: boolean }
  ) => Effect.Effect<ReadonlyArray<Verdict>, never, R>
}

/**
 * A claim of a kind. Data that its schema does not know is a defect.
 *
 * ```ts import.meta.vitest
 * import { ResourceKind } from "effect-microvm-runtime/journal"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 * const ports: ResourceKind.ResourceKind<number> = {
 *   kind: "port",
 *   data: Schema.Int,
 *   describe: (port) => `port ${port}`,
 *   reclaim: (claims) => Effect.succeed(claims.map(() => ResourceKind.Verdict.Absent()))
 * }
 * ResourceKind.claim(ports, 8080) // => { kind: "port", data: 8080 }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const claim = <Data extends Schema.Json, R>(kind: ResourceKind<Data, R>, data: Data): Claim => ({
  kind: kind.kind,
  data: Schema.encodeSync(kind.data)(data)
})
