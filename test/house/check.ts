import * as Equal from "effect/Equal"
import { deepStrictEqual } from "node:assert/strict"

/** What `// => expected` in an example stands for. */
export const check = (actual: unknown, expected: unknown): void => {
  if (!Equal.equals(actual, expected)) deepStrictEqual(actual, expected)
}
