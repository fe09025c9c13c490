/**
 * What a good service does in its life, as a truth table: any command that serves HTTP can be put through it, in whatever
 * language it is written.
 *
 * Each row is a promise and a scenario with a process of its own: start it, do something to it, look what it does. It
 * needs to know how the service is told its ports, a few paths, and what the service says of itself (its budget, its
 * drain delay, its exit codes). What a service does not have is not applicable, and the table says so; what it promises
 * and does not do is not held, with what was seen instead.
 *
 * The scenarios run on the real clock and kill all that they start, whatever becomes of it. Linux; some rows look into
 * /proc, and `pid-1` needs root.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { type Row as Scenario, rows as all } from "./internal/lifecycleRows.ts"
import { type Held, NotApplicable, NotHeld } from "./internal/lifecycleSteps.ts"
import type { Subject } from "./LifecycleProbe.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type RowName = typeof all[number]["name"]

const scenarios: ReadonlyArray<Scenario & { readonly name: RowName }> = all

/**
 * The promises, in the order of the table. What `promise` says is what held means; measured times may exceed what it
 * says by the tolerance.
 *
 * ```ts import.meta.vitest
 * import { LifecycleConformance } from "effect-microvm-runtime/testing"
 * const result = LifecycleConformance.rows.find(({ name }) => name === "hung")?.promise
 * result // => "A request that never ends does not outlast the budget."
 * ```
 *
 * @category constants
 * @since 0.1.0
 */
export const rows: ReadonlyArray<{ readonly name: RowName; readonly promise: string }> = scenarios

/**
 * A subject, or an option, cannot be used; one sentence for each fault. Nothing has been started.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidSubject extends Data.TaggedError("InvalidSubject")<{
  readonly subject: string
  readonly faults: ReadonlyArray<string>
}> {
  override get message(): string {
    return `${this.subject} cannot be put through the lifecycle conformance kit:${
      this.faults.map((fault) => `\n  - ${fault}`).join("")
    }`
  }
}

/**
 * What became of one promise.
 *
 * @category models
 * @since 0.1.0
 */
export interface Row {
  readonly name: RowName
  readonly promise: string
  readonly verdict: "held" | "not held" | "not applicable"
  /** What was seen; always there unless the promise was held. */
  readonly why?: string | undefined
  /** From the event in question (mostly the signal) to the end of the process, where both were seen. */
  readonly took?: Duration.Duration | undefined
}

/**
 * The truth table of one service.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  readonly subject: string
  readonly rows: ReadonlyArray<Row>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The rows to run. Default: all. */
  readonly only?: ReadonlyArray<RowName> | undefined
  /** How much later than promised is still in time. Default 300 ms: more than a busy machine adds. */
  readonly tolerance?: Duration.Input | undefined
  /** In `sigterm-starting`: from one moment of the start to the next. Default 5 ms. */
  readonly startStep?: Duration.Input | undefined
  /** After this a row is not held. Default 5 minutes. */
  readonly deadline?: Duration.Input | undefined
  /** Told of each row when it is done. */
  readonly onRow?: ((row: Row) => Effect.Effect<void>) | undefined
}

const positive = (field: string, duration: Duration.Input | undefined, atLeast: number): ReadonlyArray<string> => {
  if (duration === undefined) return []
  const millis = Option.match(Duration.fromInput(duration), { onNone: () => Number.NaN, onSome: Duration.toMillis })
  return millis >= atLeast && Number.isFinite(millis)
    ? []
    : [`${field} is ${JSON.stringify(duration)}: give a finite duration of at least ${atLeast} ms`]
}

const faultsOf = (subject: Subject, options: Options): ReadonlyArray<string> => {
  const durations = [
    ...positive("budget", subject.budget, 1),
    ...positive("drainDelay", subject.drainDelay, 0),
    ...positive("startWithin", subject.startWithin, 1),
    ...positive("tolerance", options.tolerance, 0),
    ...positive("startStep", options.startStep, 1),
    ...positive("deadline", options.deadline, 1)
  ]
  const { drainDelay = 0, ports } = subject
  const late = durations.length === 0 && Duration.isGreaterThanOrEqualTo(
    Duration.fromInputUnsafe(drainDelay),
    Duration.fromInputUnsafe(subject.budget)
  )
  const { fast, hang, block, fail, websocket } = subject.endpoints
  const { ready, live, startup } = subject.probes ?? {}
  return [
    ...durations,
    ...(late ? ["drainDelay is not shorter than budget: the budget includes it, so give a longer one"] : []),
    ...(subject.command === "" ? ["command is empty: name a program"] : []),
    ...Object.entries({ fast, hang, block, fail, websocket, ready, live, startup })
      .filter(([, path]) => path !== undefined && !path.startsWith("/"))
      .map(([name, path]) => `the path of ${name} is ${JSON.stringify(path)}: begin it with /`),
    ...Object.entries({ service: ports?.service, probes: ports?.probes })
      .filter(([, port]) => port !== undefined && !(Number.isInteger(port) && port > 0 && port < 65_536))
      .map(([name, port]) => `ports.${name} is ${port}: give a whole number from 1 to 65535`)
  ]
}

/**
 * Puts a service through all rows, one after the other. What goes wrong with it is in the table; only a subject that
 * makes no sense is an error.
 *
 * A service in another language is put through it in the same way: `command` is its binary, and it needs a path that
 * answers at once. With that alone, and a budget, half of the rows apply.
 *
 * ```ts import.meta.vitest
 * import { LifecycleConformance } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const report = await Effect.runPromise(LifecycleConformance.run({
 *   name: "four lines",
 *   command: process.execPath,
 *   args: ["-e", "require('http').createServer((_, response) => response.end()).listen(process.env.PORT)"],
 *   env: (ports) => ({ PORT: String(ports.service) }),
 *   endpoints: { fast: "/" },
 *   budget: "2 seconds"
 * }, { only: ["starts", "sigterm-idle"] }))
 * report.rows.map(({ verdict }) => verdict) // => ["held", "not held"]
 * ```
 *
 * @category running
 * @since 0.1.0
 */
export const run = Effect.fn("LifecycleConformance.run")(function*(subject: Subject, options: Options = {}) {
  const faults = faultsOf(subject, options)
  if (faults.length > 0) return yield* new InvalidSubject({ subject: subject.name, faults })
  const limits = {
    tolerance: Duration.toMillis(options.tolerance ?? "300 millis"),
    startStep: Duration.toMillis(options.startStep ?? "5 millis")
  }
  const wanted = scenarios.filter(({ name }) => options.only?.includes(name) ?? true)
  const done = yield* Effect.forEach(
    wanted,
    ({ name, promise, scenario }) =>
      Effect.scoped(scenario(subject, limits)).pipe(
        Effect.timeoutOrElse({
          duration: options.deadline ?? "5 minutes",
          orElse: () => Effect.fail(new NotHeld({ why: "it did not come to an end" }))
        }),
        Effect.result,
        Effect.map((result): Row => ({ name, promise, ...toVerdict(result) })),
        Effect.tap((row) => options.onRow?.(row) ?? Effect.void)
      )
  )
  const report: Report = { subject: subject.name, rows: done }
  return report
})

const toVerdict = (result: Result.Result<Held, NotHeld | NotApplicable | Error>): Omit<Row, "name" | "promise"> => {
  if (Result.isSuccess(result)) {
    const { millis, note } = result.success
    return { verdict: "held", why: note, took: millis === undefined ? undefined : Duration.millis(millis) }
  }
  const { failure } = result
  if (failure instanceof NotApplicable) return { verdict: "not applicable", why: failure.why }
  if (!(failure instanceof NotHeld)) return { verdict: "not held", why: failure.message }
  const { millis, why } = failure
  return { verdict: "not held", why, took: millis === undefined ? undefined : Duration.millis(millis) }
}

/**
 * Is no promise broken, and at least one kept?
 *
 * @category guards
 * @since 0.1.0
 */
export const conforms = (report: Report): boolean =>
  report.rows.some(({ verdict }) => verdict === "held") && report.rows.every(({ verdict }) => verdict !== "not held")

const took = (row: Row): string => row.took === undefined ? "" : `${Math.round(Duration.toMillis(row.took))} ms`

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll(/\s+/g, " ")

const table = (lines: ReadonlyArray<ReadonlyArray<string>>): string => {
  const [head = [], ...body] = lines
  return [head, head.map(() => "---"), ...body].map((cells) => `| ${cells.map(cell).join(" | ")} |`).join("\n")
}

const marks = { held: "✓", "not held": "✗", "not applicable": "–" }

/**
 * The table of one service in Markdown.
 *
 * ```ts import.meta.vitest
 * import { LifecycleConformance } from "effect-microvm-runtime/testing"
 * import * as Duration from "effect/Duration"
 * const result = LifecycleConformance.format({
 *   subject: "mine",
 *   rows: [{ name: "hung", promise: "It ends.", verdict: "held", took: Duration.millis(12) }]
 * })
 * result // => "| row | verdict | took | what was seen |\n| --- | --- | --- | --- |\n| hung | held | 12 ms |  |"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (report: Report): string =>
  table([
    ["row", "verdict", "took", "what was seen"],
    ...report.rows.map((row) => [row.name, row.verdict, took(row), row.why ?? ""])
  ])

/**
 * Several services side by side in Markdown: ✓ held, ✗ not held, – not applicable, with the time that was measured.
 *
 * @category conversions
 * @since 0.1.0
 */
export const compare = (reports: ReadonlyArray<Report>): string => {
  const names = [...new Set(reports.flatMap((report) => report.rows.map(({ name }) => name)))]
  const verdictOf = (report: Report, name: RowName): string => {
    const row = report.rows.find((one) => one.name === name)
    return row === undefined ? "" : `${marks[row.verdict]} ${took(row)}`.trim()
  }
  const held = (report: Report): string => {
    const applicable = report.rows.filter(({ verdict }) => verdict !== "not applicable")
    return `${applicable.filter(({ verdict }) => verdict === "held").length} of ${applicable.length}`
  }
  return table([
    ["row", ...reports.map(({ subject }) => subject)],
    ...names.map((name) => Array.of<string>(name).concat(reports.map((report) => verdictOf(report, name)))),
    ["held", ...reports.map(held)]
  ])
}
