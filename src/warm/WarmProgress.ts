/**
 * What goes on while a machine comes up, for whoever shows it.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as ImageProgress from "../image/ImageProgress.ts"

/**
 * A step on the way, beside those of the image.
 *
 * - `Making`: there is no golden machine for this yet, so one is booted and saved.
 * - `Remaking`: the one there was cannot be used, and why.
 * - `WaitingForMaker`: another process is making it.
 * - `BootingCold`: there can be no golden machine, so this one boots, and why.
 *
 * @category models
 * @since 0.1.0
 */
export type Progress =
  | ImageProgress.Progress
  | { readonly _tag: "Making" }
  | { readonly _tag: "Remaking"; readonly why: string }
  | { readonly _tag: "WaitingForMaker"; readonly pid: number }
  | { readonly _tag: "BootingCold"; readonly why: string }

/**
 * Runs around a phase, which has a name and a text for people.
 *
 * @category models
 * @since 0.1.0
 */
export type Phase = (name: string, text: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/**
 * A step as people read it.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (progress: Progress): string => {
  switch (progress._tag) {
    case "Making":
      return "making a golden machine, from which later ones are restored"
    case "Remaking":
      return `making another golden machine: ${progress.why}`
    case "WaitingForMaker":
      return `waiting for process ${progress.pid}, which makes the golden machine`
    case "BootingCold":
      return `booting: ${progress.why}`
    default:
      return ImageProgress.format(progress)
  }
}
