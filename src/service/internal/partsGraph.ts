/** The parts of a service in order of dependence, and what is wrong with them. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type * as Part from "../Part.ts"

export interface Graph {
  /** All parts, also those that are only depended on, each once, after all that it depends on. */
  readonly order: ReadonlyArray<Part.Any>
  readonly faults: ReadonlyArray<string>
}

const collect = (parts: ReadonlyArray<Part.Any>): Set<Part.Any> => {
  // A set that grows while it is walked: every part is visited once.
  const all = new Set(parts)
  for (const part of all) for (const dependency of part.dependsOn) all.add(dependency)
  return all
}

/** How a value is written, NaN and Infinity too. */
const inspect = (value: unknown): string => typeof value === "number" ? `${value}` : JSON.stringify(value)

const durationFault = (part: Part.Any, field: "startWithin" | "stopWithin"): ReadonlyArray<string> => {
  const input = part[field]
  if (input === undefined) return []
  const duration = Number.isNaN(input) ? Option.none() : Duration.fromInput(input)
  if (Option.isNone(duration)) {
    return [`part "${part.name}": ${field} is ${inspect(input)}: write it as 500 or "2 seconds"`]
  }
  return Duration.isNegative(duration.value)
    ? [`part "${part.name}": ${field} is ${Duration.format(duration.value)}: give it a time of zero or more`]
    : []
}

const faultsOf = (part: Part.Any): ReadonlyArray<string> => [
  ...part.name.trim() === "" ? [`a part has the name ${JSON.stringify(part.name)}: give it one that can be read`] : [],
  ...durationFault(part, "startWithin"),
  ...durationFault(part, "stopWithin"),
  ...Number.isFinite(part.stopWeight) && part.stopWeight > 0
    ? []
    : [`part "${part.name}": stopWeight is ${part.stopWeight}: give it a number above zero`],
  ...part.faults.map((fault) => `part "${part.name}": ${fault}`)
]

export const make = (parts: ReadonlyArray<Part.Any>): Graph => {
  const all = collect(parts)
  const faults: Array<string> = []
  const names = new Set<string>()
  const waits = new Map<Part.Any, number>()
  const dependents = new Map<Part.Any, Array<Part.Any>>()
  const order: Array<Part.Any> = []
  for (const part of all) {
    faults.push(...faultsOf(part))
    if (names.has(part.name)) faults.push(`two parts are called "${part.name}": rename one`)
    names.add(part.name)
    // One that is named twice is waited for, and found, twice.
    waits.set(part, part.dependsOn.length)
    if (part.dependsOn.length === 0) order.push(part)
    for (const dependency of part.dependsOn) {
      const known = dependents.get(dependency)
      if (known === undefined) dependents.set(dependency, [part])
      else known.push(part)
    }
  }
  // An array that grows while it is walked.
  for (const part of order) {
    for (const dependent of dependents.get(part) ?? []) {
      const left = (waits.get(dependent) ?? 0) - 1
      waits.set(dependent, left)
      if (left === 0) order.push(dependent)
    }
  }
  if (order.length < all.size) {
    const cycle = [...all].filter((part) => !order.includes(part)).map((part) => part.name)
    faults.push(`the parts ${cycle.join(", ")} depend on each other in a circle: take one dependency away`)
  }
  return { order, faults }
}
