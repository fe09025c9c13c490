/** How a stop shares its time out: of the run, and of the plan that tells of it before. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import { share } from "../../lifecycle/StopBudget.ts"
import type { PartOutline } from "./planModel.ts"

const ownShare = 0.25

/** The first step, of what there is after the drain delay. */
export const forMain = (left: Duration.Duration): Duration.Duration => Duration.times(left, ownShare)

/** Of what the main program has left; what there is without resources takes no time as a rule. */
export const forParts = (left: Duration.Duration, hasResources: boolean): Duration.Duration => {
  const others = Duration.times(left, ownShare)
  return Duration.subtract(left, hasResources ? others : Duration.min(others, Duration.millis(500)))
}

/** Of a phase that was cut short, before what comes after the parts. */
export const forPhase = (left: Duration.Duration): Duration.Duration => Duration.times(left, 1 - ownShare)

/** Of what the parts have left: before and after the resources there is little to do. */
export const weights = { held: 1, resource: 8, rest: 1 } as const

/** How long each part is waited for when all of them hang. `parts` stand after those that they depend on. */
export const ofParts = (
  parts: ReadonlyArray<PartOutline>,
  budget: Duration.Duration
): ReadonlyMap<string, Duration.Duration> => {
  const all = Duration.toMillis(budget)
  const after = new Map<string, number>()
  const weightOf = new Map(parts.map(({ name, stopWeight }) => [name, stopWeight]))
  for (const { dependsOn, name } of parts) {
    after.set(name, Math.max(0, ...dependsOn.map((need) => (weightOf.get(need) ?? 0) + (after.get(need) ?? 0))))
  }
  const begins = new Map<string, number>()
  const times = new Map<string, Duration.Duration>()
  for (const { dependsOn, name, stopWeight, stopWithin } of parts.toReversed()) {
    const begin = begins.get(name) ?? 0
    const rest = after.get(name) ?? 0
    const granted = share(all - begin, rest === 0 ? [stopWeight] : [stopWeight, rest])
    const time = Option.match(stopWithin, { onNone: () => granted, onSome: (most) => Duration.min(granted, most) })
    times.set(name, time)
    for (const need of dependsOn) begins.set(need, Math.max(begins.get(need) ?? 0, begin + Duration.toMillis(time)))
  }
  return times
}
