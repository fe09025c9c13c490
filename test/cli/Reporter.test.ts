import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { formatTook, Reporter, say } from "../../src/cli/Reporter.ts"
import { broken, Written } from "./world.ts"

const bytes = (text: string) => new TextEncoder().encode(text)

interface Screen {
  readonly stderr: Written
  readonly stdout: Written
  readonly report: Reporter["Service"]
  /** The command writes. */
  readonly write: (stream: "stdout" | "stderr", text: string) => Effect.Effect<void>
}

/** What goes on while an effect takes some seconds. */
const during = (report: Reporter["Service"], label: string, millis: number) =>
  Effect.sleep(millis).pipe(
    report.during(label),
    Effect.forkChild({ startImmediately: true }),
    Effect.tap(() => TestClock.adjust(millis)),
    Effect.flatMap(Fiber.join)
  )

const on = <A, E>(
  where: Partial<Stdio.Stdio>,
  body: (screen: Screen) => Effect.Effect<A, E>,
  env: Record<string, string> = { TERM: "xterm" }
) => {
  const stdout = new Written()
  const stderr = new Written()
  return Effect.flatMap(Reporter, (report) => {
    const write: Screen["write"] = (stream, text) =>
      Stream.run(Stream.make(bytes(text)), report.beside(stream)((stream === "stdout" ? stdout : stderr).sink()))
    return body({ stdout, stderr, report, write })
  }).pipe(
    Effect.provide(
      Reporter.layer.pipe(
        Layer.provide(Stdio.layerTest({ stdout: stdout.sink, stderr: stderr.sink, ...where })),
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
      )
    )
  )
}

const terminal = { stderrIsTerminal: Effect.succeed(true), stdoutIsTerminal: Effect.succeed(true) }
const clear = "\r\u001B[2K"
const live = (frame: string, text: string) => `${clear}\u001B[?7l${frame} ${text}\u001B[?7h`

describe("off a terminal", () => {
  it.effect("a phase is told once it takes longer than two seconds, and without escape sequences", () =>
    on({}, ({ report, stderr }) =>
      Effect.gen(function*() {
        yield* during(report, "booting", 1900)
        assert.strictEqual(stderr.text, "")
        yield* during(report, "booting", 60_000)
        assert.strictEqual(stderr.text, "microvm: booting …\n")
        yield* report.line("done")
        assert.strictEqual(stderr.text, "microvm: booting …\nmicrovm: done\n")
      })))

  it.effect("TERM=dumb is none", () =>
    on(
      terminal,
      ({ report, stderr }) =>
        Effect.gen(function*() {
          yield* during(report, "booting", 3000)
          assert.strictEqual(stderr.text, "microvm: booting …\n")
        }),
      { TERM: "dumb" }
    ))

  it.effect("a line does not go on where the command has stopped in its own", () =>
    on({}, ({ report, stderr, stdout, write }) =>
      Effect.gen(function*() {
        yield* write("stdout", "a result")
        yield* report.line("one")
        yield* write("stderr", "a complaint")
        yield* report.line("two")
        yield* write("stderr", "a whole line\n")
        yield* report.line("three")
        assert.strictEqual(stdout.text, "a result")
        assert.strictEqual(
          stderr.text,
          "microvm: one\na complaint\nmicrovm: two\na whole line\nmicrovm: three\n"
        )
      })))
})

describe("on a terminal", () => {
  it.effect("a phase has one live line, ten times a second, which is cleared at its end", () =>
    on(terminal, ({ report, stderr }) =>
      Effect.gen(function*() {
        yield* during(report, "booting", 450)
        assert.strictEqual(
          stderr.text,
          `${live("⠋", "booting 0.2 s")}${live("⠙", "booting 0.3 s")}${live("⠹", "booting 0.4 s")}${clear}`
        )
      })))

  it.effect("a quick phase does not flicker", () =>
    on(terminal, ({ report, stderr }) =>
      Effect.gen(function*() {
        yield* during(report, "booting", 150)
        assert.strictEqual(stderr.text, "")
      })))

  it.effect("a line replaces the live one", () =>
    on(terminal, ({ report, stderr }) =>
      Effect.gen(function*() {
        const phase = yield* Effect.forkChild(report.during("building")(Effect.never), { startImmediately: true })
        yield* TestClock.adjust(250)
        yield* report.line("unpacking")
        yield* TestClock.adjust(100)
        yield* Fiber.interrupt(phase)
        assert.strictEqual(
          stderr.text,
          `${live("⠋", "building 0.2 s")}${clear}microvm: unpacking\n${live("⠙", "building 0.3 s")}${clear}`
        )
      })))

  for (const stream of ["stdout", "stderr"] as const) {
    it.effect(`what the command has left unfinished on ${stream} is never overwritten`, () =>
      on(terminal, ({ report, stderr, write }) =>
        Effect.gen(function*() {
          yield* write(stream, "hello")
          const before = stderr.text
          yield* during(report, "stopping", 1900)
          assert.strictEqual(stderr.text, before)
          yield* during(report, "stopping", 2050)
          assert.strictEqual(stderr.text, `${before}\n\u001B[?7l⠋ stopping 2.0 s\u001B[?7h${clear}`)
          yield* write(stream, "bye")
          const again = stderr.text
          yield* report.line("killed")
          assert.strictEqual(stderr.text, `${again}\nmicrovm: killed\n`)
        })))
  }

  it.effect("where stdout goes elsewhere, it is of no concern", () =>
    on({ ...terminal, stdoutIsTerminal: Effect.succeed(false) }, ({ report, stderr, write }) =>
      Effect.gen(function*() {
        yield* write("stdout", "hello")
        yield* report.line("killed")
        assert.strictEqual(stderr.text, `${clear}microvm: killed\n`)
      })))
})

describe("nobody reads", () => {
  const unread = Sink.forEach(() => Effect.never)
  it.effect("is no failure", () =>
    on(
      { stderr: () => Sink.fail(broken("stderr", "EPIPE")) },
      ({ report }) => Effect.andThen(report.line("to nobody"), during(report, "booting", 5000))
    ))

  it.effect("holds nothing up for long", () =>
    on({ stderr: () => unread }, ({ report }) =>
      Effect.gen(function*() {
        const line = yield* Effect.forkChild(report.line("to nobody"), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(line)
      })))

  it.effect("of what is said is the same", () =>
    Effect.gen(function*() {
      yield* say(Sink.fail(broken("stdout", "EPIPE")), "x")
      const saying = yield* Effect.forkChild(say(unread, "x"), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(saying)
    }))
})

describe("formatTook", () => {
  it.each([[0, "0 ms"], [12.4, "12 ms"], [999, "999 ms"], [1000, "1.0 s"], [61_250, "61.3 s"]] as const)(
    "%d",
    (millis, text) => assert.strictEqual(formatTook(Duration.millis(millis)), text)
  )
})
