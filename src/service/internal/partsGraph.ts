/** The parts of a service in order of dependence, and what is wrong with them. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type * as Part from "../Part.ts"
import type { PartState } from "./partsModel.ts"
import type { Control } from "./partsTracker.ts"

/** Most parts have none, and share it. */
const none: Array<Node> = []

/** A part, and where it is in its life. */
export class Node {
  readonly part: Part.Any
  /** Its place in the order. */
  index = -1
  needs: ReadonlyArray<Node> = none
  neededBy: Array<Node> = none
  readonly scope = Scope.makeUnsafe()
  state: PartState = "waiting"
  /** When it came into its state. */
  since = 0
  /** What it provides, once it is there. */
  context = Context.empty()
  control: Control<Node> | undefined = undefined
  /** Builds its layer. */
  builder: Fiber.Fiber<unknown, unknown> | undefined = undefined
  /** When it is no longer waited for. */
  deadline = Infinity
  /** While it stops: how far the deadline may move, and the time that those after it need. */
  cap = Infinity
  reserve = 0

  constructor(part: Part.Any) {
    this.part = part
  }
}

export interface Graph {
  /** All parts, also those that are only depended on, each once, after all that it depends on. */
  readonly order: ReadonlyArray<Node>
  readonly faults: ReadonlyArray<string>
}

/** Each part once, with its dependencies. */
const link = (
  parts: ReadonlyArray<Part.Any>
): { readonly nodes: ReadonlyArray<Node>; readonly namesakes: ReadonlyMap<Part.Any, Node> } => {
  const nodes: Array<Node> = []
  const named = new Map<string, Node>()
  /** Those whose name another one has. */
  const namesakes = new Map<Part.Any, Node>()
  const add = (part: Part.Any): Node => {
    const node = new Node(part)
    node.index = nodes.length
    nodes.push(node)
    return node
  }
  const nodeOf = (part: Part.Any): Node => {
    const known = named.get(part.name)
    if (known === undefined) {
      const node = add(part)
      named.set(part.name, node)
      return node
    }
    if (known.part === part) return known
    let namesake = namesakes.get(part)
    if (namesake === undefined) namesakes.set(part, namesake = add(part))
    return namesake
  }
  for (const part of parts) nodeOf(part)
  // An array that grows while it is walked: every part is visited once.
  for (const node of nodes) {
    if (node.part.dependsOn.length === 0) continue
    // One that is named twice is waited for, and found, twice.
    node.needs = node.part.dependsOn.map(nodeOf)
    for (const need of node.needs) {
      if (need.neededBy.length === 0) need.neededBy = [node]
      else need.neededBy.push(node)
    }
  }
  return { nodes, namesakes }
}

/** How a value is written, NaN and Infinity too. */
const inspect = (value: unknown): string => typeof value === "number" ? `${value}` : JSON.stringify(value)

const durations = ["startWithin", "stopWithin"] as const

const durationFault = (part: Part.Any, field: "startWithin" | "stopWithin"): string | undefined => {
  const input = part[field]
  if (input === undefined) return undefined
  const duration = Number.isNaN(input) ? Option.none() : Duration.fromInput(input)
  if (Option.isNone(duration)) {
    return `part "${part.name}": ${field} is ${inspect(input)}: write it as 500 or "2 seconds"`
  }
  return Duration.isNegative(duration.value)
    ? `part "${part.name}": ${field} is ${Duration.format(duration.value)}: give it a time of zero or more`
    : undefined
}

const addFaults = (part: Part.Any, faults: Array<string>): void => {
  if (part.name.trim() === "") {
    faults.push(`a part has the name ${JSON.stringify(part.name)}: give it one that can be read`)
  }
  for (const field of durations) {
    const fault = durationFault(part, field)
    if (fault !== undefined) faults.push(fault)
  }
  if (!(Number.isFinite(part.stopWeight) && part.stopWeight > 0)) {
    faults.push(`part "${part.name}": stopWeight is ${part.stopWeight}: give it a number above zero`)
  }
  for (const fault of part.faults) faults.push(`part "${part.name}": ${fault}`)
}

export const make = (parts: ReadonlyArray<Part.Any>): Graph => {
  const { namesakes, nodes } = link(parts)
  const faults: Array<string> = []
  const order: Array<Node> = []
  const waits: Array<number> = []
  for (const node of nodes) {
    const { part } = node
    addFaults(part, faults)
    if (namesakes.size > 0 && namesakes.has(part)) faults.push(`two parts are called "${part.name}": rename one`)
    waits.push(node.needs.length)
    if (node.needs.length === 0) order.push(node)
  }
  // An array that grows while it is walked.
  for (const node of order) {
    for (const dependent of node.neededBy) {
      const left = waits[dependent.index] = (waits[dependent.index] ?? 0) - 1
      if (left === 0) order.push(dependent)
    }
  }
  if (order.length < nodes.length) {
    const placed = new Set(order)
    const cycle = nodes.filter((node) => !placed.has(node)).map(({ part }) => part.name)
    faults.push(`the parts ${cycle.join(", ")} depend on each other in a circle: take one dependency away`)
  }
  order.forEach((node, index) => {
    node.index = index
  })
  return { order, faults }
}
