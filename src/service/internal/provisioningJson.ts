/** Whether a value is JSON, and a copy of it that nobody else holds. */
import * as Redacted from "effect/Redacted"

/** JSON values, which `JSON.stringify` and `JSON.parse` carry over unchanged. */
export type Json = null | boolean | number | string | ReadonlyArray<Json> | { readonly [key: string]: Json }

/** One thing that is wrong, and where. */
export interface Fault {
  readonly path: ReadonlyArray<PropertyKey>
  readonly message: string
}

/** Deeper than anything that a person writes, and far from where recursion ends. */
export const maxDepth = 64

/** Shared references make a small value large; this bounds it. */
export const maxValues = 100_000

/** After so many faults more of them do not help. */
const maxFaults = 50

const isPlain = (value: object): boolean => {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

const nameOf = (value: object): string => {
  if (Redacted.isRedacted(value)) return "Redacted"
  const { constructor } = value
  return typeof constructor === "function" && constructor.name !== "" ? constructor.name : "object of a class"
}

/**
 * Copies a value, keys such as `__proto__` included (as data: no prototype is touched), and says all that is not JSON.
 * Properties that are `undefined` are left out, as `JSON.stringify` does.
 */
export const copy = (value: unknown): { readonly json: Json; readonly faults: ReadonlyArray<Fault> } => {
  const faults: Array<Fault> = []
  const path: Array<PropertyKey> = []
  let left = maxValues
  const fault = (message: string): null => {
    if (faults.length < maxFaults) faults.push({ path: [...path], message })
    return null
  }
  const at = (key: PropertyKey, part: unknown): Json => {
    path.push(key)
    const json = visit(part)
    path.pop()
    return json
  }
  const visit = (part: unknown): Json => {
    if (--left < 0) return left === -1 ? fault(`there are more than ${maxValues} values`) : null
    if (path.length > maxDepth) return fault(`it is nested deeper than ${maxDepth} levels, or in itself`)
    switch (typeof part) {
      case "string":
      case "boolean":
        return part
      case "number":
        return Number.isFinite(part) ? part : fault(`${part} is not JSON`)
      case "object": {
        if (part === null) return null
        if (Array.isArray(part)) return Array.from(part, (element: unknown, index) => at(index, element))
        if (!isPlain(part)) return fault(`a value of ${nameOf(part)} is not JSON`)
        return Object.fromEntries(
          Object.entries(part)
            .filter(([, property]) => property !== undefined)
            .map(([key, property]: [string, unknown]) => [key, at(key, property)])
        )
      }
      default:
        return fault(`${typeof part} is not JSON`)
    }
  }
  return { json: visit(value), faults }
}
