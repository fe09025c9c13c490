/**
 * `node bench/conformance.ts [SUBJECT…] [-- ROW…]`: puts the peers, or those named, through the lifecycle conformance kit.
 * A full run is written to docs/conformance-peers.md.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { writeFileSync } from "node:fs"
import * as LifecycleConformance from "../src/testing/LifecycleConformance.ts"
import { subjects } from "./peers/subjects.ts"

const times = { budget: 2000, drainDelay: 300 }
const words = process.argv.slice(2)
const dashes = words.indexOf("--")
const isRow = (name: string): name is LifecycleConformance.RowName =>
  LifecycleConformance.rows.some((row) => row.name === name)
const only = dashes < 0 ? undefined : words.slice(dashes + 1).filter(isRow)
const asked = dashes < 0 ? words : words.slice(0, dashes)
const chosen = subjects(times).filter(({ name }) => asked.length === 0 || asked.includes(name))

const reports = await Effect.runPromise(
  Effect.forEach(chosen, (subject) => {
    console.error(`conformance: ${subject.name} …`)
    return LifecycleConformance.run(subject, {
      only,
      onRow: ({ name, took, verdict, why }) =>
        Effect.sync(() =>
          console.error(
            `  ${verdict.padEnd(14)} ${name} ${took === undefined ? "" : `${Math.round(Duration.toMillis(took))} ms `}${
              why ?? ""
            }`
          )
        )
    })
  })
)

const text = [
  "# Lifecycle conformance",
  "Written by `node bench/conformance.ts`. Each service is put through the kit of `effect-microvm-runtime/testing` "
  + `(\`LifecycleConformance\`), with a budget of ${times.budget} ms, of which ${times.drainDelay} ms are drain delay, for all that `
  + "can be told so; each row has processes of its own.",
  "✓ held, ✗ not held, – not applicable (the service has no such thing), and the milliseconds from the event in question, "
  + "mostly the signal, to what the row waits for, mostly the end of the process.",
  LifecycleConformance.compare(reports),
  "## What the rows promise",
  LifecycleConformance.rows.map(({ name, promise }) => `- \`${name}\`: ${promise}`).join("\n"),
  "## What was seen",
  ...reports.flatMap((report) => [`### ${report.subject}`, LifecycleConformance.format(report)])
].join("\n\n")

if (asked.length === 0 && only === undefined) writeFileSync("docs/conformance-peers.md", `${text}\n`)
else console.log(LifecycleConformance.compare(reports))
