import * as Arr from "effect/Array"
import * as Printable from "../../lifecycle/Printable.ts"

const units = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]] as const

/** How long ago that was, in its largest unit. Both in milliseconds. */
export const ago = (now: number, then: number): string => {
  const seconds = Math.max(0, (now - then) / 1000)
  const [unit, length] = units.find(([, one]) => seconds >= one) ?? ["s", 1]
  return `${Math.floor(seconds / length)} ${unit}`
}

/** Columns as wide as they have to be. What is in one keeps to it. */
export const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const all = [head, ...rows].map((row) => row.map(Printable.onOneLine))
  const widths = Arr.makeBy(head.length, (column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd()).join("\n")
}
