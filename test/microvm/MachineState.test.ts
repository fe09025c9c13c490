import { describe, expect, it } from "@effect/vitest"
import { MachineState } from "effect-microvm-runtime/microvm"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"

// Written out by hand, cell by cell: `-` is a refusal.
const table = `
            start     pause    resume    snapshot   stop      destroy     rename
creating    -         -        -         -          -         destroyed   -
created     running   -        -         created    -         destroyed   created
running     -         paused   -         running    stopped   destroyed   running
paused      -         -        running   paused     stopped   destroyed   paused
stopping    -         -        -         -          stopped   destroyed   -
stopped     running   -        -         -          -         destroyed   stopped
crashed     running   -        -         -          -         destroyed   crashed
destroyed   -         -        -         -          -         -           -
`

const [operations = [], ...rows] = table.trim().split("\n").map((line) => line.trim().split(/\s+/))
const cells = rows.flatMap(([state, ...ends]) =>
  ends.map((end, index) => ({ state, operation: operations[index], end }))
)

describe("MachineState", () => {
  it("has a row for each state and a column for each operation", () => {
    expect(rows.map(([state]) => state)).toEqual(MachineState.MachineState.literals)
    expect(operations.toSorted()).toEqual(MachineState.Operation.literals.toSorted())
    expect(cells.length).toBe(56)
  })

  it.each(cells)("$operation in $state gives $end", ({ end, operation, state }) => {
    const from = Schema.decodeUnknownSync(MachineState.MachineState)(state)
    const asked = Schema.decodeUnknownSync(MachineState.Operation)(operation)
    expect(Option.getOrElse(MachineState.next(from, asked), () => "-")).toBe(end)
    expect(MachineState.possible(from).includes(asked)).toBe(end !== "-")
  })

  it("is over in the states that have no life", () => {
    expect(MachineState.MachineState.literals.filter(MachineState.isOver)).toEqual(["stopped", "crashed", "destroyed"])
  })
})
