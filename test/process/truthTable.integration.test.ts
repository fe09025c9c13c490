import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as ChildProcess from "effect/process/ChildProcess"
import { execFile } from "node:child_process"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import type { Choice } from "../../src/process/KillScope.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import { clearUp, fixture, hasCGroups, isRoot, layer, start, trial } from "./support.ts"

// What there is to be said of an end, on real processes and in each kill scope. One that nothing kills, and an exit at the
// very deadline, are in ProcessSpawner.test.ts: no real process does that on command.
const hasty = ShutdownPolicy.signals({ grace: "800 millis" })
const patient = ShutdownPolicy.signals({ grace: "20 seconds" })

const scopes: ReadonlyArray<Exclude<Choice, "auto">> = hasCGroups
  ? ["cgroup", "group", "process"]
  : ["group", "process"]

for (const killScope of scopes) {
  const isTree = killScope !== "process"
  describe(`in a kill scope of ${killScope}`, () => {
    const run = (
      policy: typeof hasty,
      name: string,
      args: ReadonlyArray<string>,
      check: (context: {
        readonly process: Effect.Success<ReturnType<typeof start>>
        readonly alive: () => ReadonlyArray<number>
      }) => Effect.Effect<void, unknown>
    ) =>
      Effect.gen(function*() {
        const own = trial()
        yield* Effect.scoped(Effect.gen(function*() {
          const process = yield* start(name, args, { killScope, policy, trial: own })
          yield* check({ process, alive: own.alive })
        }))
        // What was named as a survivor is ours to clear up.
        expect(yield* clearUp(own)).toBe(true)
      }).pipe(Effect.provide(layer))

    it.live("it exits 0 on SIGTERM", () =>
      run(patient, "exit-on-term.sh", ["0"], ({ process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome._tag).toBe("Graceful")
          expect(outcome).toMatchObject({ stage: "SIGTERM", status: ExitStatus.exited(0) })
        })))

    it.live("it exits 7 after a part of the grace", () =>
      run(patient, "exit-on-term.sh", ["7", "0.2"], ({ process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(7) })
          expect(Duration.toMillis(outcome.elapsed)).toBeGreaterThanOrEqual(190)
        })))

    it.live("it ignores SIGTERM", () =>
      run(hasty, "ignore-term.sh", [], ({ alive, process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome._tag === "Forced" || !isTree && outcome._tag === "Survivors").toBe(true)
          expect(outcome).toMatchObject({ status: ExitStatus.signaled("SIGKILL", { coreDumped: false }) })
          expect(Duration.toMillis(outcome.elapsed)).toBeGreaterThanOrEqual(799)
          if (isTree) expect(alive()).toEqual([])
        })))

    it.live("it has been stopped", () =>
      run(patient, "exit-on-term.sh", ["0"], ({ process }) =>
        Effect.gen(function*() {
          yield* process.signal("SIGSTOP")
          expect(yield* process.shutdown()).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(0) })
        })))

    it.live("it exits and leaves a member of its group", () =>
      run(hasty, "leave-member.sh", [], ({ alive, process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome).toMatchObject({ _tag: isTree ? "Forced" : "Survivors", status: ExitStatus.exited(0) })
          if (isTree) expect(alive()).toEqual([])
        })))

    it.live("it exits and leaves an escapee", () =>
      run(hasty, "leave-escapee.sh", [], ({ alive, process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome).toMatchObject({
            _tag: killScope === "cgroup" ? "Forced" : "Survivors",
            status: ExitStatus.exited(0)
          })
          if (killScope === "cgroup") expect(alive()).toEqual([])
          if (outcome._tag === "Survivors") {
            // The shell and its sleep, which changes; the shell is named by its pid.
            expect(outcome.survivors.length).toBeGreaterThan(0)
            expect(alive()).toEqual(expect.arrayContaining([outcome.survivors[0]?.pid]))
          }
        })))

    it.live("it starts two of itself for each SIGTERM", () =>
      run(hasty, "respawn.sh", [], ({ alive, process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          // Those that a signal hits before their first line are ended by it.
          expect(isTree ? ["Forced", "Graceful"] : ["Survivors"]).toContain(outcome._tag)
          if (isTree) expect(alive()).toEqual([])
        })))

    it.live("it has a dead child that it never waits for", () =>
      run(patient, "keep-zombie.sh", [], ({ process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          expect(outcome).toMatchObject({ _tag: "Graceful", status: { _tag: "Signaled", signal: "SIGTERM" } })
          expect(outcome.stages.length).toBe(1)
        })))

    it.live("it is stopped twice at once, and again after its end", () =>
      run(patient, "exit-on-term.sh", ["0", "0.1"], ({ process }) =>
        Effect.gen(function*() {
          const both = yield* Effect.all([process.shutdown(), process.shutdown()], { concurrency: 2 })
          expect(both[0]).toBe(both[1])
          expect(both[0]._tag).toBe("Graceful")
          expect(yield* process.shutdown()).toBe(both[0])
          yield* process.signal("SIGTERM")
        })))

    it.live("it exits about when the grace ends", () =>
      run(hasty, "exit-on-term.sh", ["3", "0.8"], ({ process }) =>
        Effect.gen(function*() {
          const outcome = yield* process.shutdown()
          const status = yield* process.exit
          // Either is right, but not a mixture.
          if (outcome._tag === "Graceful") expect(status).toEqual(ExitStatus.exited(3))
          else expect(["Forced", "Survivors"]).toContain(outcome._tag)
          expect(outcome).toMatchObject({ status })
        })))

    it.live("it had exited before", () =>
      Effect.gen(function*() {
        const own = trial()
        const spawner = yield* ProcessSpawner
        const process = yield* spawner.spawn(
          ChildProcess.make("sh", ["-c", "exit 5"], { env: own.env, extendEnv: true }),
          {
            killScope
          }
        )
        expect(yield* process.exit).toEqual(ExitStatus.exited(5))
        expect(yield* process.shutdown()).toMatchObject({ _tag: "AlreadyExited", status: ExitStatus.exited(5) })
      }).pipe(Effect.scoped, Effect.provide(layer)))

    it.live("it is stopped while it starts", () =>
      Effect.gen(function*() {
        const own = trial()
        for (let n = 0; n < 10; n++) {
          const process = yield* start("exit-on-term.sh", ["0"], { killScope, policy: hasty, trial: own, ready: false })
          const outcome = yield* process.shutdown()
          expect(isTree ? ["Graceful", "Forced"] : ["Graceful", "Forced", "Survivors"]).toContain(outcome._tag)
        }
        if (isTree) expect(own.alive()).toEqual([])
        else expect(yield* clearUp(own)).toBe(true)
      }).pipe(Effect.scoped, Effect.provide(layer)))

    it.live("it could not be started", () =>
      Effect.gen(function*() {
        const own = trial()
        const spawner = yield* ProcessSpawner
        const error = yield* Effect.flip(
          spawner.spawn(ChildProcess.make("/nowhere/program", [], { env: own.env, cwd: "/nowhere" }), { killScope })
        )
        expect([error.reason, ...(error.others ?? [])].map((reason) => reason._tag)).toEqual([
          "NotFound",
          "BadWorkingDirectory"
        ])
        expect(own.alive()).toEqual([])
      }).pipe(Effect.scoped, Effect.provide(layer)))

    it.live("its spawn is interrupted", () =>
      Effect.gen(function*() {
        const own = trial()
        for (let n = 0; n < 10; n++) {
          const policy = ShutdownPolicy.signals({ signal: "SIGKILL" })
          const spawned = start("ignore-term.sh", [], { killScope, policy, trial: own, ready: false })
          const fiber = yield* Effect.forkChild(Effect.scoped(Effect.andThen(spawned, Effect.never)), {
            startImmediately: true
          })
          yield* Effect.sleep(Math.random() * 5)
          yield* Fiber.interrupt(fiber)
        }
        if (isTree) expect(own.alive()).toEqual([])
        else expect(yield* clearUp(own)).toBe(true)
      }).pipe(Effect.provide(layer)))
  })
}

const canChangePids = isRoot
it.live.skipIf(!canChangePids)("a pid that is used again is left alone", () =>
  Effect.gen(function*() {
    const output = yield* Effect.callback<string>((resume) => {
      execFile(
        "unshare",
        ["--pid", "--fork", "--mount-proc", "--kill-child", process.execPath, fixture("reuse-pid.ts")],
        { timeout: 120_000 },
        (error, stdout, stderr) => resume(Effect.succeed(error === null ? stdout : `${error.message} ${stderr}`))
      )
    })
    if (/Operation not permitted|ENOENT|ns_last_pid/.test(output)) {
      console.warn(`skipped: no pid namespace with ns_last_pid here: ${output.trim()}`)
      return
    }
    expect(JSON.parse(output)).toEqual({
      hasSamePid: true,
      isAlive: true,
      youth: [false, false, true],
      outcomes: ["AlreadyExited", "AlreadyExited"]
    })
  }))
