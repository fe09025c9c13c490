import { it, expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { run, nothing } from "./world.ts"
it.effect("probe", () => Effect.gen(function*() {
  const r = yield* run({ command: ["exit", "7"] })
  console.log(JSON.stringify(r, null, 1))
  expect(r.left).toEqual(nothing)
}))
