import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import type { Process } from "../../src/process/Process.ts"
import type { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as Readiness from "../../src/process/Readiness.ts"
import { Fatal } from "../../src/service/Fatal.ts"
import * as Parts from "../../src/service/Parts.ts"
import { ServiceEvents } from "../../src/service/Phase.ts"
import * as ProcessPart from "../../src/service/ProcessPart.ts"
import type { ServiceError } from "../../src/service/ServiceError.ts"

const sh = (script: string) => ChildProcess.make("sh", ["-c", script])

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Notes the pid of each process that is started, and takes it for ready once it says so. */
const ready = (pids: Array<number>) => (child: Process) =>
  Effect.andThen(
    Effect.sync(() => pids.push(child.pid)),
    Readiness.outputMatches(child, "stdout", /ready/)
  )

const eventually = (what: string, condition: () => boolean) =>
  Effect.gen(function*() {
    while (!condition()) yield* Effect.sleep("10 millis")
  }).pipe(Effect.timeoutOrElse({ duration: "20 seconds", orElse: () => Effect.die(new Error(`never: ${what}`)) }))

const harness = <A, E>(
  use: (reports: Array<ServiceError>) => Effect.Effect<A, E, Fatal | ServiceEvents | ProcessSpawner>
) => {
  const reports: Array<ServiceError> = []
  return use(reports).pipe(
    Effect.provideService(Fatal, {
      report: (error) =>
        Effect.sync(() => {
          reports.push(error)
        })
    }),
    Effect.provide([ServiceEvents.layer, NodeProcessSpawner.layer])
  )
}

describe("ProcessPart", () => {
  it.live("starts when the process is ready, and leaves nothing behind", () =>
    harness((reports) =>
      Effect.gen(function*() {
        const pids: Array<number> = []
        const part = ProcessPart.make("child", sh("echo ready; sleep 60 & wait"), { ready: ready(pids) })
        const started = yield* Parts.start([part])
        const [pid = 0] = pids
        expect(isAlive(pid)).toBe(true)
        const outcomes = yield* started.stop({ budget: "10 seconds" })
        expect(outcomes.map(({ _tag }) => _tag)).toEqual(["Stopped"])
        expect(isAlive(pid)).toBe(false)
        expect(reports).toEqual([])
      })
    ))

  it.live("one that dies before it is ready fails the start, with its last words", () =>
    harness(() =>
      Effect.gen(function*() {
        const part = ProcessPart.make("child", sh("echo no disk >&2; exit 3"), { ready: ready([]) })
        const error = yield* Effect.flip(Parts.start([part]))
        expect(error.reason).toMatchObject({ _tag: "InitFailed", part: "child" })
        expect(error.message).toContain("exited with code 3 before it was ready")
        expect(error.message).toContain("no disk")
        const missing = yield* Effect.flip(
          Parts.start([ProcessPart.make("x", ChildProcess.make("no-such-command", []))])
        )
        expect(missing.message).toContain("no-such-command")
      })
    ))

  it.live("a death later ends the service", () =>
    harness((reports) =>
      Effect.gen(function*() {
        const part = ProcessPart.make("child", sh("echo last words; exit 4"))
        const started = yield* Parts.start([part])
        yield* eventually("a report", () => reports.length > 0)
        expect(reports[0]?.exitReason).toBe("failed")
        expect(reports[0]?.message).toContain("exited with code 4")
        expect(reports[0]?.message).toContain("last words")
        expect((yield* started.stop({ budget: "5 seconds" })).map(({ _tag }) => _tag)).toEqual(["Stopped"])
      })
    ))

  it.live("an end with code zero is a death too, unless said otherwise", () =>
    harness((reports) =>
      Effect.gen(function*() {
        const ended = yield* Ref.make(0)
        const done = ProcessPart.make("done", sh("exit 0"), {
          onEnd: "done",
          ready: () => Ref.update(ended, (n) => n + 1)
        })
        const started = yield* Parts.start([done, ProcessPart.make("dead", sh("sleep 0.2"))])
        yield* eventually("a report", () => reports.length > 0)
        expect(reports.map(({ reason }) => reason._tag === "TaskFailed" ? reason.task : reason._tag)).toEqual(["dead"])
        yield* started.stop({ budget: "5 seconds" })
      })
    ))

  it.live("starts again as its schedule says, each time in a new process", () =>
    harness((reports) =>
      Effect.gen(function*() {
        const pids: Array<number> = []
        const part = ProcessPart.make("child", sh("echo ready; sleep 0.05; exit 1"), {
          ready: ready(pids),
          restart: Schedule.recurs(2)
        })
        const started = yield* Parts.start([part])
        yield* eventually("a report", () => reports.length > 0)
        expect(new Set(pids).size).toBe(3)
        expect(pids.filter(isAlive)).toEqual([])
        yield* started.stop({ budget: "5 seconds" })
      })
    ))

  it.live("is replaced when somebody asks for it: in order, when the next one is ready, and that is no failure", () =>
    harness((reports) =>
      Effect.gen(function*() {
        const pids: Array<number> = []
        const all = new Map<string, Effect.Effect<void, ServiceError>>()
        const worker = (name: string) =>
          ProcessPart.make(name, sh("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"), {
            ready: ready(pids),
            register: (replace) => Effect.sync(() => all.set(name, replace))
          })
        const started = yield* Parts.start(["a", "b"].map(worker))
        const first = [...pids]
        // More often than `intensity` lets it fail, and once for all who ask at the same time.
        for (let round = 0; round < 12; round++) {
          yield* Effect.forEach(all.values(), (replace) => replace)
          expect(pids.slice(-2).every(isAlive)).toBe(true)
        }
        expect(pids.length).toBe(26)
        expect(first.some(isAlive)).toBe(false)
        const [replace = Effect.void] = all.values()
        yield* Effect.all([replace, replace, replace], { concurrency: "unbounded" })
        expect(pids.length).toBe(27)
        expect(reports).toEqual([])
        yield* started.stop({ budget: "10 seconds" })
        expect(pids.some(isAlive)).toBe(false)
        expect((yield* Effect.flip(replace)).message).toContain("not started any more")
      })
    ))

  it.live("who asks for another one waits for one that is ready, or is told that there will be none", () =>
    harness((reports) =>
      Effect.gen(function*() {
        let replace: Effect.Effect<void, ServiceError> = Effect.void
        const pids: Array<number> = []
        const failing = yield* Ref.make(0)
        const part = ProcessPart.make("child", sh("echo ready; sleep 60 & wait"), {
          // The second and the third are not well, nor is any from the fifth on.
          ready: (child) =>
            Effect.flatMap(Ref.updateAndGet(failing, (n) => n + 1), (n) =>
              n === 2 || n === 3 || n > 4 ? Effect.andThen(child.signal("SIGKILL"), Effect.never) : ready(pids)(child)),
          restart: Schedule.max([Schedule.spaced("10 millis"), Schedule.recurs(3)]),
          register: (given) =>
            Effect.sync(() => {
              replace = given
            })
        })
        const started = yield* Parts.start([part])
        yield* replace
        expect(pids.length).toBe(2)
        expect((yield* Effect.flip(replace)).message).toContain("not started any more")
        expect(reports.length).toBe(1)
        yield* started.stop({ budget: "10 seconds" })
        expect(pids.some(isAlive)).toBe(false)
      })
    ))

  it.live("who asks for another one and is interrupted stops neither it nor others who wait", () =>
    harness((reports) =>
      Effect.gen(function*() {
        let replace: Effect.Effect<void, ServiceError> = Effect.void
        const pids: Array<number> = []
        const begun = yield* Deferred.make<void>()
        const open = yield* Deferred.make<void>()
        const part = ProcessPart.make("child", sh("echo ready; sleep 60 & wait"), {
          ready: (child) =>
            Effect.andThen(
              ready(pids)(child),
              Effect.suspend(() =>
                pids.length === 1
                  ? Effect.void
                  : Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(open))
              )
            ),
          register: (given) =>
            Effect.sync(() => {
              replace = given
            })
        })
        const started = yield* Parts.start([part])
        const early = yield* Effect.forkChild(replace, { startImmediately: true })
        const other = yield* Effect.forkChild(replace, { startImmediately: true })
        yield* Deferred.await(begun)
        // One of those that the process is started for, and one that waits for the next.
        const late = yield* Effect.forkChild(replace, { startImmediately: true })
        yield* Fiber.interrupt(early)
        yield* Fiber.interrupt(late)
        expect(other.pollUnsafe()).toBeUndefined()
        yield* Deferred.succeed(open, undefined)
        yield* Fiber.join(other)
        // What was asked for is done, although nobody waits for it.
        yield* eventually("a third process", () => pids.length === 3 && isAlive(pids[2] ?? 0))
        yield* replace
        expect(pids.length).toBe(4)
        expect(pids.map(isAlive)).toEqual([false, false, false, true])
        expect(reports).toEqual([])
        yield* started.stop({ budget: "10 seconds" })
        expect(pids.some(isAlive)).toBe(false)
      })
    ))

  it.live("one that ignores SIGTERM is killed in time to keep the share", () =>
    harness(() =>
      Effect.gen(function*() {
        const pids: Array<number> = []
        // The policy alone would wait for 2 seconds before SIGKILL.
        const part = ProcessPart.make("child", sh("trap '' TERM; echo ready; while :; do sleep 1; done"), {
          ready: ready(pids)
        })
        const started = yield* Parts.start([part])
        const [outcome] = yield* started.stop({ budget: "1 second" })
        expect(outcome?._tag).toBe("Stopped")
        expect(Duration.toMillis(outcome?.took ?? Duration.infinity)).toBeLessThan(1000)
        expect(pids.filter(isAlive)).toEqual([])
      })
    ))

  it.live("a stop while it is started ends it too", () =>
    harness(() =>
      Effect.gen(function*() {
        const pids: Array<number> = []
        const parts = yield* Parts.make([
          ProcessPart.make("child", sh("sleep 60"), {
            ready: (child) => Effect.andThen(Effect.sync(() => pids.push(child.pid)), Effect.never)
          })
        ])
        yield* Effect.forkChild(Effect.ignoreCause(parts.start()), { startImmediately: true })
        yield* eventually("a process", () => pids.length > 0)
        expect((yield* parts.stop({ budget: "5 seconds" })).map(({ _tag }) => _tag)).toEqual(["Stopped"])
        expect(pids.filter(isAlive)).toEqual([])
      })
    ))
})
