/** A service of this library holds every promise of the lifecycle kit. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ours } from "../../bench/peers/subjects.ts"
import * as LifecycleConformance from "../../src/testing/LifecycleConformance.ts"

it.live("the lifecycle kit", () =>
  Effect.gen(function*() {
    const subject = ours({ budget: 2000, drainDelay: 300 })
    const run = (only?: ReadonlyArray<LifecycleConformance.RowName>) =>
      LifecycleConformance.run(
        {
          ...subject,
          args: ["-C", "@effect-microvm-runtime/source", ...(subject.args ?? [])],
          env: (ports) => ({ ...subject.env(ports), NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"] ?? "" })
        },
        // Each start takes half a second of work from source; the edge's own tests go in steps of 5 ms once it has begun.
        { only, startStep: "25 millis" }
      )
    const report = yield* run()
    const broken = report.rows.filter(({ verdict }) => verdict === "not held")
    for (const { name, why } of broken) console.warn(`not held, tried once more: ${name}: ${why}`)
    // A machine that is busy with other things may be later than the tolerance, once.
    const again = broken.length === 0 ? broken : (yield* run(broken.map(({ name }) => name))).rows
    expect(again.filter(({ verdict }) => verdict !== "held").map(({ name, why }) => `${name}: ${why}`)).toEqual([])
    // None is left out but the one that this host may not be able to do, and then it says why.
    const left = report.rows.filter(({ verdict }) => verdict === "not applicable")
    for (const { name, why } of left) console.warn(`not applicable: ${name}: ${why}`)
    expect(left.filter(({ name }) => name !== "pid-1")).toEqual([])
  }))
