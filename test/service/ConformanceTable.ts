/** The table of docs/conformance.md, and whether what a service did is what it says. */

/** How a process went, and what others saw of it. */
export interface Observed {
  /** Its code, the signal that killed it, or `stays`: it went on until it was told to end. */
  readonly exit: string
  readonly stdout: string
  readonly stderr: string
  /** By its client or its API. */
  readonly seen: ReadonlyArray<string>
}

export interface Row {
  readonly number: number
  readonly scenario: string
  /** Of each process, or one for all of them. */
  readonly exits: ReadonlyArray<string>
  readonly shuttle: string
  readonly verdict: string
  /** Each has one alternative or more. */
  readonly patterns: ReadonlyArray<ReadonlyArray<string>>
}

const alternatives = /`[^`]+`(?: or `[^`]+`)*/g

/** The rows: lines of a table whose first cell is a number. */
export const parse = (markdown: string): ReadonlyArray<Row> =>
  markdown.split("\n").flatMap((line) => {
    const cells = line.split("|").slice(1, -1).map((cell) => cell.trim())
    const [number = "", scenario = "", , ours = "", exit = "", shuttle = "", verdict = ""] = cells
    return !/^\d+$/.test(number) ? [] : [{
      number: Number(number),
      scenario,
      exits: exit.split(" / "),
      shuttle,
      verdict,
      patterns: (ours.match(alternatives) ?? []).map((group) =>
        Array.from(group.matchAll(/`([^`]+)`/g), ([, pattern = ""]) => pattern)
      )
    }]
  })

const isComplaint = (pattern: string): boolean => pattern.startsWith("ERROR:")

const holds = (pattern: string, { seen, stderr, stdout }: Observed): boolean => {
  const text = isComplaint(pattern) ? stderr : [stdout, stderr, ...seen].join("\n")
  const source = pattern.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&").replaceAll("…", ".*")
  return new RegExp(isComplaint(pattern) ? `^${source}` : source, "m").test(text)
}

/** What is not as the row says. */
export const judge = (row: Row, runs: ReadonlyArray<Observed>): ReadonlyArray<string> => {
  const complains = row.patterns.some((group) => group.some(isComplaint))
  const [exit = ""] = row.exits
  return [
    ...(row.exits.length > 1 && row.exits.length !== runs.length
      ? [`${row.exits.length} exits are told, and ${runs.length} processes ran`]
      : []),
    ...runs.flatMap((run, index) => {
      const expected = row.exits.length > 1 ? row.exits[index] ?? "" : exit
      return [
        ...(run.exit === expected ? [] : [`exit: ${run.exit}, not ${expected}`]),
        ...row.patterns
          .filter((group) => !group.some((pattern) => holds(pattern, run)))
          .map((group) => `not found: ${group.join(" or ")}`),
        ...(complains || !/^ERROR:/m.test(run.stderr) ? [] : ["stderr has an ERROR that is not told"])
      ].map((fault) => `process ${index + 1}: ${fault}\n${run.stdout}${run.stderr}${run.seen.join("\n")}`)
    }),
    ...row.patterns.flat()
      .filter((pattern) => !runs.some((run) => holds(pattern, run)))
      .map((pattern) => `no process showed: ${pattern}`)
  ]
}
