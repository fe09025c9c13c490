import { expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as NodeReadiness from "../../src/process/NodeReadiness.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as Readiness from "../../src/process/Readiness.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const spawn = Effect.flatMap(ProcessSpawner, (spawner) => spawner.spawn(ChildProcess.make("db")))

const withScript = (script: ScriptedProcess.Script) => <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(Effect.scoped, Effect.provide(ScriptedProcess.layer({ script: () => script })))

/** Fails until the clock has gone on by so much. */
const from = (millis: number) =>
  Effect.flatMap(
    Effect.clockWith((clock) => clock.currentTimeMillis),
    (now) => now < millis ? Effect.fail(`only ${Math.floor(now)}`) : Effect.succeed(now)
  )

it.effect("a check that succeeds in the end gives its result, soon after", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const fiber = yield* Effect.forkChild(Readiness.awaitReady(process, from(1000), { within: "5 seconds" }))
    yield* TestClock.adjust("1200 millis")
    const at = yield* Fiber.join(fiber)
    expect(at).toBeGreaterThanOrEqual(1000)
    expect(at).toBeLessThanOrEqual(1200)
  }).pipe(withScript({})))

it.effect("death comes first: at once, with the status and the last words", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const fiber = yield* Effect.forkChild(
      Effect.flip(Readiness.awaitReady(process, Effect.never, { within: "1 hour" }))
    )
    yield* TestClock.adjust("3 seconds")
    const { message, reason } = yield* Fiber.join(fiber)
    expect(reason).toMatchObject({ _tag: "DiedBeforeReady", status: ExitStatus.exited(3) })
    expect(message).toBe("exited with code 3 before it was ready\nstderr:\nno disk")
  }).pipe(withScript({ exitAfter: "3 seconds", code: 3, stderr: "no disk\n" })))

it.effect("the deadline comes, with the error of the last check", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const fiber = yield* Effect.forkChild(
      Effect.flip(Readiness.awaitReady(process, from(60_000), { within: "2 seconds" }))
    )
    yield* TestClock.adjust("2 seconds")
    const error = yield* Fiber.join(fiber)
    expect(error.reason).toMatchObject({ _tag: "NotReady", within: Duration.seconds(2) })
    expect(error.cause).toMatch(/^only 1[89]\d\d$/)
    expect(error.message).toBe("not ready within 2s, without any output")
    expect(yield* process.poll).toMatchObject({ _tag: "None" })
  }).pipe(withScript({})))

it.effect("a check that hangs is given up at the deadline too", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const fiber = yield* Effect.forkChild(
      Effect.flip(Readiness.awaitReady(process, Effect.never, { within: "2 seconds" }))
    )
    yield* TestClock.adjust("2 seconds")
    expect((yield* Fiber.join(fiber)).reason._tag).toBe("NotReady")
  }).pipe(withScript({})))

it.effect("a schedule of one's own is kept to, and may give up early", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const count = yield* Ref.make(0)
    const check = Effect.andThen(Ref.update(count, (n) => n + 1), Effect.fail("no"))
    const options = {
      within: "1 hour",
      schedule: Schedule.max([Schedule.spaced("1 second"), Schedule.recurs(4)])
    } as const
    const fiber = yield* Effect.forkChild(Effect.flip(Readiness.awaitReady(process, check, options)))
    yield* TestClock.adjust("5 seconds")
    expect(yield* Fiber.join(fiber)).toMatchObject({ reason: { _tag: "NotReady" }, cause: "no" })
    expect(yield* Ref.get(count)).toBe(5)
  }).pipe(withScript({})))

it.effect("output is matched, and goes on after the match", () =>
  Effect.gen(function*() {
    const process = yield* spawn
    const match = yield* Readiness.awaitReady(process, Readiness.outputMatches(process, "stdout", /port (\d+)/g), {
      within: "1 second"
    })
    expect(match[1]).toBe("8000")
    expect((yield* process.tail).stdout.text).toBe("on port 8000\n")
    yield* TestClock.adjust("1 second")
    expect(yield* process.stdout.pipe(Stream.decodeText, Stream.mkString)).toBe("")
    const error = yield* Effect.flip(Readiness.outputMatches(process, "stdout", /never/))
    expect(error.reason).toEqual({ _tag: "StreamFailed", stream: "stdout", code: "ended without /never/" })
  }).pipe(withScript({ stdout: "on port 8000\n", exitAfter: "1 second" })))

it.live("paths and sockets are looked at", () =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(`${tmpdir()}/process-ready-`)),
    (directory) =>
      Effect.gen(function*() {
        const path = `${directory}/socket`
        expect(yield* Effect.flip(NodeReadiness.pathExists(path))).toMatchObject({ what: path, code: "ENOENT" })
        expect(yield* Effect.flip(NodeReadiness.unixSocketAccepts(path))).toMatchObject({ code: "ENOENT" })
        const server = createServer()
        yield* Effect.callback<void>((resume) => {
          server.listen(path, () => resume(Effect.void))
        })
        yield* NodeReadiness.pathExists(path)
        yield* NodeReadiness.unixSocketAccepts(path)
        yield* Effect.callback<void>((resume) => {
          server.close(() => resume(Effect.void))
        })
        const tcp = createServer()
        const port = yield* Effect.callback<number>((resume) => {
          tcp.listen(0, "127.0.0.1", () => {
            const address = tcp.address()
            resume(typeof address === "object" && address !== null ? Effect.succeed(address.port) : Effect.die(address))
          })
        })
        yield* NodeReadiness.tcpPortAccepts(port)
        yield* Effect.callback<void>((resume) => {
          tcp.close(() => resume(Effect.void))
        })
        expect((yield* Effect.flip(NodeReadiness.tcpPortAccepts(port))).message).toBe(`127.0.0.1:${port}: ECONNREFUSED`)
      }),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  ))
