/** Executes docs/conformance.md. */
import { afterAll, describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFileSync } from "node:fs"
import { cases, cleanUp } from "./ConformanceCases.ts"
import { judge, type Observed, parse, type Row } from "./ConformanceTable.ts"

const rows = parse(readFileSync(new URL("../../docs/conformance.md", import.meta.url), "utf8"))
const numbers = rows.map(({ number }) => number)

afterAll(cleanUp)

describe("the table", () => {
  it("has the rows 1 to 78, and a case for each", () => {
    expect(numbers).toEqual(Array.from({ length: 78 }, (_, index) => index + 1))
    expect([...cases.keys()].toSorted((left, right) => left - right)).toEqual(numbers)
  })

  it("says of each row how it compares, and same only where the codes are", () => {
    const kinds = /^(same|better: .+|differs, on purpose: .+)$/
    expect(rows.filter(({ verdict }) => !kinds.test(verdict))).toEqual([])
    const unlike = rows.filter(({ exits, shuttle, verdict }) =>
      verdict === "same" && shuttle !== exits.join(" / ") && !(shuttle === "-" && exits.join() === "stays")
    )
    expect(unlike).toEqual([])
  })

  it("is wrong when a service does anything else", () => {
    const [row] = parse("| 9 | fails | - | `ERROR: no …: a` or `b` | 1 / 10 | 1 | same |")
    const first: Observed = { exit: "1", stdout: "", stderr: "x\nERROR: no luck: a", seen: [] }
    const second: Observed = { exit: "10", stdout: "", stderr: "", seen: ["b"] }
    const faults = (runs: ReadonlyArray<Observed>) => row === undefined ? undefined : judge(row, runs).length
    expect(faults([first, second])).toBe(0)
    expect(faults([{ ...first, exit: "2" }, second])).toBe(1)
    expect(faults([first, { ...second, seen: [] }])).toBe(2)
    expect(faults([{ ...first, stderr: "", stdout: first.stderr }, second])).toBe(2)
    expect(faults([first])).toBe(2)
    const [silent] = parse("| 9 | ends | - | nothing | 0 | 0 | same |")
    expect(silent && judge(silent, [{ ...first, exit: "0" }])).toHaveLength(1)
  })
})

/** Why a row cannot be executed here. */
const hindrance = ({ number }: Row): string | undefined =>
  number === 57 && process.getuid?.() !== 0 ? "only root can make PID namespaces" : undefined

describe.concurrent("each row", () => {
  for (const row of rows) {
    const why = hindrance(row)
    if (why !== undefined) console.warn(`skipped: row ${row.number}, for ${why}`)
    const test = why === undefined ? it.live : it.live.skip
    test(`${row.number}: ${row.scenario}`, () =>
      Effect.gen(function*() {
        const runs = yield* cases.get(row.number) ?? Effect.die("no case")
        expect(runs.length).toBeGreaterThan(0)
        expect(judge(row, runs).join("\n\n")).toBe("")
      }), 180_000)
  }
})
