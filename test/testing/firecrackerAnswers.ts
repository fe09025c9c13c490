import * as Schema from "effect/Schema"
import { existsSync, readFileSync, writeFileSync } from "node:fs"

/** What was asked, and what was answered. */
export type Row = readonly [asked: string, answered: string]

const file = new URL("fixtures/firecracker.jsonl", import.meta.url)

/** A line of the file: of a section what was asked, and by answer the releases that gave it. */
type Line = readonly [section: string, asked: string, answers: Readonly<Record<string, string>>]

const readLine: (text: string) => Line = Schema.decodeUnknownSync(Schema.fromJsonString(
  Schema.Tuple([Schema.String, Schema.String, Schema.Record(Schema.String, Schema.String)])
))

const read = (): ReadonlyArray<Line> => {
  // There is none before the first recording.
  if (process.env["FIDELITY_RECORD"] !== undefined && !existsSync(file)) return []
  const text = readFileSync(file, "utf8")
  if (text === "") throw new Error(`${file.pathname} is empty`)
  return text.trimEnd().split("\n").map((line) => readLine(line))
}

const lines = read()

const inOrder = new Intl.Collator("en", { numeric: true }).compare

export const versions: ReadonlyArray<string> = [
  ...new Set(lines.flatMap(([, , answers]) => Object.values(answers).flatMap((all) => all.split(" "))))
].toSorted(inOrder)

const of = (version: string, section: string): ReadonlyArray<Row> =>
  lines.filter(([name]) => name === section).flatMap(([, asked, answers]) => {
    const answer = Object.entries(answers).find(([, all]) => all.split(" ").includes(version))?.[0]
    return answer === undefined ? [] : [[asked, answer] as const]
  })

/** With the names of what is asked more than once made different. */
const numbered = (rows: ReadonlyArray<Row>): ReadonlyMap<string, string> => {
  const all = new Map<string, string>()
  for (const [asked, answered] of rows) {
    let name = asked
    for (let time = 2; all.has(name); time++) name = `${asked} #${time}`
    all.set(name, answered)
  }
  return all
}

/** Where it is not what a release has answered. */
export const differences = (version: string, section: string, rows: ReadonlyArray<Row>) => {
  const recorded = new Map(of(version, section))
  const answered = numbered(rows)
  return [...new Set([...recorded.keys(), ...answered.keys()])].map((asked) => ({
    asked,
    answered: answered.get(asked),
    recorded: recorded.get(asked)
  })).filter((row) => row.answered !== row.recorded)
}

/** Writes down what a release answers now, in place of what it did. */
export const record = (version: string, heard: ReadonlyMap<string, ReadonlyArray<Row>>): void => {
  const kept = lines.filter(([section]) => !heard.has(section))
  const written = Array.from(heard).flatMap(([section, rows]) => {
    const answered = numbered(rows)
    const before = new Map(lines.flatMap(([name, asked, answers]) => name === section ? [[asked, answers]] : []))
    // What is new comes after what was asked before it.
    const all = [...before.keys()]
    let at = 0
    for (const asked of answered.keys()) {
      const known = all.indexOf(asked)
      if (known < 0) all.splice(at, 0, asked)
      at = (known < 0 ? at : known) + 1
    }
    return all.flatMap((asked): ReadonlyArray<Line> => {
      const answers: Record<string, string> = {}
      for (const by of [...new Set([...versions, version])].toSorted(inOrder)) {
        const others = Object.entries(before.get(asked) ?? {}).find(([, told]) => told.split(" ").includes(by))?.[0]
        const answer = by === version ? answered.get(asked) : others
        if (answer !== undefined) answers[answer] = [...(answers[answer]?.split(" ") ?? []), by].join(" ")
      }
      return Object.keys(answers).length === 0 ? [] : [[section, asked, answers]]
    })
  })
  writeFileSync(file, [...written, ...kept].map((line) => `${JSON.stringify(line)}\n`).join(""))
}
