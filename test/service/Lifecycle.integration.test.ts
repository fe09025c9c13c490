/** A service of this library holds every promise of the lifecycle kit. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ours } from "../../bench/peers/subjects.ts"
import * as LifecycleConformance from "../../src/testing/LifecycleConformance.ts"

it.live("the lifecycle kit", () =>
  Effect.gen(function*() {
    const subject = ours({ budget: 2000, drainDelay: 300 })
    const report = yield* LifecycleConformance.run(
      { ...subject, args: ["-C", "@effect-microvm-runtime/source", ...(subject.args ?? [])] },
      // Each start takes a second of work from source; the edge's own tests go in steps of 5 ms.
      { startStep: "25 millis" }
    )
    const broken = report.rows.filter(({ verdict }) => verdict === "not held")
    expect(broken.map(({ name, why }) => `${name}: ${why}`)).toEqual([])
    // None is left out but where this host cannot do it, and then it says why.
    for (const row of report.rows) {
      if (row.verdict === "not applicable") console.warn(`not applicable: ${row.name}: ${row.why}`)
    }
    expect(report.rows.filter(({ verdict }) => verdict === "held").length).toBeGreaterThanOrEqual(25)
  }))
