import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { spawnSync } from "node:child_process"
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { monitorEventLoopDelay } from "node:perf_hooks"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as NodeCGroup from "../../src/process/internal/NodeCGroup.ts"
import * as Mark from "../../src/process/Mark.ts"
import * as Process from "../../src/process/Process.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import type { CGroups, SpawnOptions } from "../../src/process/SpawnOptions.ts"
import { clearUp, fixture, hasCGroups, isRoot, layer, ready, start, trial } from "./support.ts"

const scopes = hasCGroups ? ["cgroup", "group"] as const : ["group"] as const

const spawn = (command: ChildProcess.Command, options?: SpawnOptions) =>
  Effect.flatMap(ProcessSpawner, (spawner) => spawner.spawn(command, options))

const text = (stream: Process.Process["stdout"]) => stream.pipe(Stream.decodeText, Stream.mkString)

const bytes = (stream: Process.Process["stdout"]) => Stream.runFold(stream, () => 0, (sum, chunk) => sum + chunk.length)

const withDirectory = <A, E, R>(use: (path: string) => Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(`${tmpdir()}/process-spawn-`)),
    use,
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )

/** What each descriptor of ours leads to. */
const openFiles = () =>
  readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      // That of the listing itself.
      return []
    }
  })

const megabyte = 1_048_576

const parse = (json: string): unknown => JSON.parse(json)

const decodeReport = Schema.decodeUnknownSync(Schema.fromJsonString(
  Schema.Tuple([Schema.Array(Schema.String), Schema.Record(Schema.String, Schema.String), Schema.String])
))

describe("what a child gets", () => {
  for (const killScope of scopes) {
    it.live(`its arguments, its environment and its directory, to the letter (${killScope})`, () =>
      withDirectory((directory) =>
        Effect.gen(function*() {
          const args = ["", " a b ", "$HOME", "*", "'\"\\", "-n", "é\n", "--", "=x"]
          const env = { EMPTY: "", QUOTES: `'"\\ $x`, LINES: "a\nb", "not.a-name": "kept", SECRET: Redacted.make("s") }
          const script = "process.stdout.write(JSON.stringify([process.argv.slice(1), process.env, process.cwd()]))"
          const child = yield* spawn(
            ChildProcess.make(process.execPath, ["-e", script, "--", ...args], { env, cwd: directory }),
            { killScope }
          )
          const [seenArgs, seenEnv, cwd] = decodeReport(yield* text(child.stdout))
          expect(seenArgs).toEqual(args)
          const { [Mark.variable]: mark, ...others } = seenEnv
          expect(others).toEqual({ ...env, SECRET: "s" })
          expect(mark).toMatch(/^[0-9a-f]{16}\.\d+$/)
          expect(cwd).toBe(directory)
          expect(yield* child.exit).toEqual(ExitStatus.exited(0))
        }).pipe(Effect.scoped, Effect.provide(layer))
      ))

    it.live(`standard streams and descriptors both ways (${killScope})`, () =>
      Effect.gen(function*() {
        const upper = yield* spawn(
          ChildProcess.make("tr", ["a-z", "A-Z"], { stdin: Stream.make("hello").pipe(Stream.encodeText) }),
          { killScope }
        )
        expect(yield* text(upper.stdout)).toBe("HELLO")

        const cat = yield* spawn(ChildProcess.make("cat"), { killScope })
        yield* Stream.make("by hand").pipe(Stream.encodeText, Stream.run(cat.stdin))
        expect(yield* text(cat.stdout)).toBe("by hand")

        const echo = yield* spawn(
          ChildProcess.make("sh", [fixture("echo-descriptor-3.sh")], { additionalFds: { fd3: { type: "duplex" } } }),
          { killScope }
        )
        const answer = yield* Effect.scoped(Effect.gen(function*() {
          const socket = yield* echo.channel(3)
          const pull = yield* Socket.readerString(socket)
          // Half-close: the end of our side reaches the child, its answer still reaches us.
          yield* Effect.scoped(Effect.flatMap(socket.writer, (writer) => writer.write("ping")))
          return yield* pull
        }))
        expect(answer.join("")).toBe("ping")
        expect(yield* echo.exit).toEqual(ExitStatus.exited(0))

        const sorted = yield* spawn(
          ChildProcess.make("printf", ["b\\na\\n"]).pipe(
            ChildProcess.pipeTo(ChildProcess.make("cat")),
            ChildProcess.pipeTo(ChildProcess.make("sort"))
          ),
          { killScope }
        )
        expect(yield* text(sorted.stdout)).toBe("a\nb\n")
      }).pipe(Effect.scoped, Effect.provide(layer)))
  }
})

describe("output", () => {
  it.live("that nobody reads does not hold up a child whose exit is awaited", () =>
    Effect.gen(function*() {
      const child = yield* start("write-megabytes.sh", ["10"], { trial: trial(), ready: false, tailBytes: 1000 })
      expect(yield* child.exit).toEqual(ExitStatus.exited(0))
      const { stderr, stdout } = yield* child.tail
      expect([stdout.omittedBytes, stderr.omittedBytes]).toEqual([10 * megabyte - 1000, 10 * megabyte - 1000])
      expect(stdout.text.length).toBe(1000)
      expect((yield* Effect.flip(bytes(child.stdout))).reason).toMatchObject({
        _tag: "OutputDropped",
        bytes: 10 * megabyte - 1000
      })
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("that nobody reads does not hold up a shutdown", () =>
    Effect.gen(function*() {
      const command = ChildProcess.make("sh", [
        "-c",
        "trap 'head -c 5000000 /dev/zero; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
      ])
      const child = yield* spawn(command, { killScope: "group" })
      yield* ready(child)
      expect(yield* child.shutdown()).toMatchObject({ _tag: "Graceful", status: ExitStatus.exited(4) })
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("waits for a slow reader, and arrives whole", () =>
    Effect.gen(function*() {
      const child = yield* start("write-megabytes.sh", ["4"], { trial: trial(), ready: false, tailBytes: 10 })
      const slow = yield* child.stdout.pipe(
        Stream.mapEffect((chunk) => Effect.as(Effect.sleep("2 millis"), chunk.length)),
        Stream.runFold(() => 0, (sum, length) => sum + length),
        Effect.forkChild
      )
      const other = yield* Effect.forkChild(bytes(child.stderr))
      expect([yield* Fiber.join(slow), yield* Fiber.join(other)]).toEqual([4 * megabyte, 4 * megabyte])
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("is held up, not dropped, while nobody wants anything of the child", () =>
    Effect.gen(function*() {
      const child = yield* start("write-megabytes.sh", ["1"], { trial: trial(), ready: false, tailBytes: 10 })
      yield* Effect.sleep("100 millis")
      expect(yield* child.poll).toMatchObject({ _tag: "None" })
      const both = Effect.all([bytes(child.stderr), bytes(child.stdout)], { concurrency: 2 })
      expect(yield* both).toEqual([megabyte, megabyte])
      expect(yield* child.exit).toEqual(ExitStatus.exited(0))
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("of one that has exited can still be read", () =>
    Effect.gen(function*() {
      const child = yield* spawn(ChildProcess.make("printf", ["%s", "late"]))
      yield* child.exit
      expect(yield* text(child.stdout)).toBe("late")
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("that came while the event loop stood still is read, though the time for it is over", () =>
    Effect.gen(function*() {
      const child = yield* spawn(ChildProcess.make("sh", ["-c", "(sleep 0.05; echo late) &"]), { killScope: "group" })
      yield* child.exit
      const tail = yield* Effect.forkChild(child.tail, { startImmediately: true })
      spawnSync("sleep", ["0.4"])
      expect((yield* Fiber.join(tail)).stdout.text).toBe("late\n")
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live("is not waited for when others hold the pipe", () =>
    Effect.gen(function*() {
      const own = trial()
      const [took, outcome] = yield* Effect.timed(Effect.scoped(Effect.gen(function*() {
        const child = yield* start("hold-pipe.sh", [], { killScope: "group", trial: own, ready: false })
        expect(yield* child.exit).toEqual(ExitStatus.exited(0))
        expect((yield* child.tail).stdout.text).toBe("bye\n")
        return yield* child.shutdown()
      })))
      expect(outcome).toMatchObject({ _tag: "Survivors", survivors: [{ why: "outside the process group" }] })
      expect(Duration.toMillis(took)).toBeLessThan(2500)
      expect(yield* clearUp(own)).toBe(true)
    }).pipe(Effect.provide(layer)))
})

describe("a command that cannot be", () => {
  it.live("is refused with all that is wrong, and nothing is left", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const file = (name: string, content: string, mode: number) => {
          writeFileSync(`${directory}/${name}`, content)
          chmodSync(`${directory}/${name}`, mode)
        }
        file("no-x", "#!/bin/sh\n", 0o644)
        file("no-interpreter", "#!/nowhere/sh -e\n", 0o755)
        file("bare-shebang", "#!\n", 0o755)
        file("text", "echo hello\n", 0o755)
        file("empty", "", 0o755)
        file("script", "#! /bin/sh\nexit 9\n", 0o755)
        mkdirSync(`${directory}/directory`)
        mkdirSync(`${directory}/later`)
        file("later/no-x", "#!/bin/sh\nexit 8\n", 0o755)
        symlinkSync(`${directory}/nowhere`, `${directory}/dangling`)
        const refusal = (command: string, options: ChildProcess.CommandOptions = {}) =>
          Effect.map(Effect.flip(spawn(ChildProcess.make(command, [], options))), (error) =>
            [error.reason, ...(error.others ?? [])].map((reason) => "why" in reason ? reason.why : reason._tag))

        expect(yield* refusal(`${directory}/absent`)).toEqual(["NotFound"])
        expect(yield* refusal(`${directory}/dangling`)).toEqual(["NotFound"])
        expect(yield* refusal("surely-no-such-program")).toEqual(["NotFound"])
        expect(yield* refusal("sh", { env: { PATH: directory } })).toEqual(["NotFound"])
        expect(yield* refusal(`${directory}/directory`)).toEqual(["it is a directory"])
        expect(yield* refusal(`${directory}/no-x`)).toEqual(["it has no x permission for us"])
        expect(yield* refusal("no-x", { env: { PATH: directory } })).toEqual(["it has no x permission for us"])
        expect(yield* refusal(`${directory}/no-interpreter`)).toEqual(["its interpreter \"/nowhere/sh\" is not there"])
        expect(yield* refusal(`${directory}/bare-shebang`)).toEqual(["its first line names no interpreter after #!"])
        const neither = "it is neither an ELF file nor a script that starts with #!"
        expect(yield* refusal(`${directory}/text`)).toEqual([neither])
        expect(yield* refusal(`${directory}/empty`)).toEqual([neither])
        expect(yield* refusal("sh", { cwd: `${directory}/absent` })).toEqual(["no such directory"])
        expect(yield* refusal("sh", { cwd: `${directory}/no-x` })).toEqual(["is not a directory"])
        expect(yield* refusal("absent", { cwd: `${directory}/absent` })).toEqual(["NotFound", "no such directory"])
        const huge = "x".repeat(200_000)
        const tooLong = yield* Effect.flip(spawn(ChildProcess.make("sh", [huge])))
        expect(tooLong.reason).toEqual({ _tag: "SpawnFailed", command: "/usr/bin/sh", code: "E2BIG" })
        expect(tooLong.message).toMatch(
          /: its arguments and variables are too long, .*: pass them in a file .* \(E2BIG\)$/
        )

        const status = (command: string, options: ChildProcess.CommandOptions) =>
          Effect.flatMap(spawn(ChildProcess.make(command, [], options)), (child) =>
            child.exit)
        expect(yield* status(`${directory}/script`, {})).toEqual(ExitStatus.exited(9))
        expect(yield* status("./script", { cwd: directory })).toEqual(ExitStatus.exited(9))
        expect(yield* status("no-x", { env: { PATH: `${directory}:${directory}/later` } })).toEqual(
          ExitStatus.exited(8)
        )
      }).pipe(Effect.scoped, Effect.provide(layer))
    ))
})

describe("a process group", () => {
  const withArgument = (argument: string): ReadonlyArray<string> =>
    readdirSync("/proc").filter((name) => {
      try {
        return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cmdline`, "latin1").includes(argument)
      } catch {
        return false
      }
    })

  it.live("ends with its scope, though its leader is reaped in the tick in which an unmarked member starts", () =>
    Effect.gen(function*() {
      const seconds = `4444.${process.pid}`
      yield* Effect.forEach(
        Array.from({ length: 40 }),
        () =>
          spawn(ChildProcess.make("sh", ["-c", `exec env -i sh -c 'sleep ${seconds} & exit 0'`]), {
            killScope: "group"
          }).pipe(Effect.flatMap((child) => child.exit), Effect.scoped),
        { concurrency: 4, discard: true }
      )
      const left = withArgument(seconds)
      left.forEach((pid) => process.kill(Number(pid), "SIGKILL"))
      expect(left).toEqual([])
    }).pipe(Effect.provide(layer)))
})

describe("a cgroup", () => {
  it.live("that is none, or that we are in, is refused before anything is made", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const refusal = (cgroup: CGroups) =>
          Effect.map(Effect.flip(spawn(ChildProcess.make("sleep", ["60"]), { cgroup })), ({ message }) => message)
        expect(yield* refusal({ path: directory, v1: [`${directory}/absent`] })).toBe(
          `cgroup: "${directory}" is no cgroup: make it first; ` +
            `cgroup: "${directory}/absent" is no cgroup: make it first`
        )
        expect(readdirSync(directory)).toEqual([])
        const mount = /^\S+ (\S+) cgroup2 /m.exec(readFileSync("/proc/self/mounts", "utf8"))?.[1]
        if (mount === undefined) return console.warn("skipped: a cgroup that we are in, for no cgroup v2 is mounted")
        expect(yield* refusal({ path: mount })).toBe(
          `cgroup: "${mount}" has us in it, and all in it is killed with the process: give another`
        )
        writeFileSync(`${directory}/cgroup.procs`, "")
        expect(yield* refusal({ path: directory })).toBe(
          `cgroup: "${directory}" is the root, or of version 1: give another as path`
        )
      }).pipe(Effect.scoped, Effect.provide(layer))
    ))

  it.live("is killed one by one where the kernel cannot do so at once", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const child = yield* spawn(ChildProcess.make("sleep", ["60"]), {})
        const cgroup = NodeCGroup.at(directory)
        yield* cgroup.kill
        writeFileSync(`${directory}/cgroup.procs`, `0\n${child.pid}\n`)
        yield* cgroup.kill
        expect(yield* child.exit).toMatchObject({ _tag: "Signaled", signal: "SIGKILL" })
      }).pipe(Effect.scoped, Effect.provide(layer))
    ))

  it.live.skipIf(!hasCGroups)(
    "is asked with all below it, and those who are stopped hear it",
    () =>
      Effect.gen(function*() {
        const own = trial()
        const child = yield* start("stopped-below.sh", [], { killScope: "cgroup", trial: own, ready: false })
        const path = child.killScope._tag === "CGroup" ? child.killScope.path : ""
        yield* Stream.make(`${path}\n`).pipe(Stream.encodeText, Stream.run(child.stdin))
        yield* ready(child)
        expect(yield* child.shutdown()).toMatchObject({ _tag: "Graceful", stage: "SIGTERM" })
        expect(own.alive()).toEqual([])
      }).pipe(Effect.scoped, Effect.provide(layer))
  )

  it.live.skipIf(!hasCGroups)(
    "is seen whole, however many are in it, and no descriptor of it stays",
    () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const child = yield* Scope.provide(
          spawn(ChildProcess.make("sh", ["-c", "for i in $(seq 700); do sleep 60 & done; echo; wait"]), {
            killScope: "cgroup"
          }),
          scope
        )
        yield* Stream.runDrain(Stream.take(child.stdout, 1))
        const path = child.killScope._tag === "CGroup" ? child.killScope.path : ""
        const isOpen = () => openFiles().includes(`${path}/cgroup.procs`)
        expect(isOpen()).toBe(true)
        expect((yield* NodeCGroup.at(path).members).toSorted((a, b) => a - b)).toEqual(
          readFileSync(`${path}/cgroup.procs`, "utf8").trim().split("\n").map(Number).toSorted((a, b) => a - b)
        )
        expect(yield* child.shutdown()).toMatchObject({ _tag: "Graceful", stage: "SIGTERM" })
        yield* Scope.close(scope, Exit.void)
        expect(isOpen()).toBe(false)
      }).pipe(Effect.provide(layer))
  )
})

describe("signals", () => {
  it.live("say how it ended", () =>
    Effect.gen(function*() {
      for (const signal of ["SIGTERM", "SIGINT", "SIGKILL", "SIGUSR1", "SIGSTKFLT"] as const) {
        const child = yield* spawn(ChildProcess.make("sleep", ["60"]))
        yield* child.signal(signal)
        expect(yield* child.exit).toEqual(ExitStatus.signaled(signal, { coreDumped: false }))
        yield* child.signal(signal)
      }
      const aborted = yield* spawn(ChildProcess.make("sh", ["-c", "ulimit -c 0; kill -ABRT $$"]))
      expect(yield* aborted.exit).toMatchObject({ _tag: "Signaled", signal: "SIGABRT" })
    }).pipe(Effect.scoped, Effect.provide(layer)))

  it.live.skipIf(!isRoot)("are refused with EPERM where we have not the right", () =>
    Effect.gen(function*() {
      const target = yield* spawn(ChildProcess.make("sleep", ["60"]))
      const asNobody = yield* spawn(ChildProcess.make("setpriv", [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        process.execPath,
        fixture("signal-stranger.ts"),
        JSON.stringify(target.identity)
      ]))
      const output = yield* text(asNobody.stdout)
      yield* asNobody.exit
      const complaint = (yield* asNobody.tail).stderr.text
      if (/EACCES|Permission denied|MODULE_NOT_FOUND|Cannot find module/.test(complaint)) {
        console.warn(`skipped: nobody cannot read this directory: ${complaint}`)
        return
      }
      expect(complaint).toBe("")
      expect(parse(output)).toEqual({
        reason: { _tag: "SignalFailed", signal: "SIGTERM", target: `process ${target.pid}`, code: "EPERM" },
        outcome: "Unkillable",
        stages: ["failed", "failed"]
      })
      expect(yield* target.poll).toMatchObject({ _tag: "None" })
    }).pipe(Effect.scoped, Effect.provide(layer)))
})

describe("a hundred children", () => {
  for (const killScope of scopes) {
    it.live(`that take 50 ms each stop side by side, and the event loop goes on (${killScope})`, () =>
      Effect.gen(function*() {
        const own = trial()
        const scope = yield* Scope.make()
        const children = yield* Scope.provide(
          Process.releasedTogether(
            Effect.forEach(
              Array.from({ length: 100 }),
              () => start("exit-on-term.sh", ["0", "0.05"], { killScope, trial: own, ready: false })
            )
          ),
          scope
        )
        yield* Effect.forEach(children, ready, { concurrency: "unbounded", discard: true })
        const delay = monitorEventLoopDelay({ resolution: 1 })
        delay.enable()
        const [took] = yield* Effect.timed(Scope.close(scope, Exit.void))
        delay.disable()
        console.log(
          `${killScope}: 100 children of 50 ms stopped in ${Math.round(Duration.toMillis(took))} ms; ` +
            `event loop delay p99 ${(delay.percentile(99) / 1e6).toFixed(1)} ms, max ${(delay.max / 1e6).toFixed(1)} ms`
        )
        expect(own.alive()).toEqual([])
        // One after the other would be 5 s at the very least.
        expect(Duration.toMillis(took)).toBeLessThan(3000)
      }).pipe(Effect.provide(layer)))
  }
})

describe("without a descriptor left", () => {
  const tell = (name: string, ...args: ReadonlyArray<string>) => {
    const { status, stderr, stdout } = spawnSync(
      "sh",
      ["-c", `ulimit -n 128; exec "$@"`, "sh", process.execPath, fixture(name), ...args],
      { encoding: "utf8", timeout: 20_000 }
    )
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" })
    return parse(stdout)
  }

  it("what is alive is not taken for gone, and is ended", () => {
    expect(tell("starved.ts", ...scopes)).toEqual(scopes.map((killScope) => [killScope, "None", "Forced", false]))
  })

  it("a start fails and leaves none open, however many there are", () => {
    const failures = Array.from(
      { length: 8 },
      (_, free) =>
        `${free}: /bin/true: could not be started: this process has as many files open as it may: close some, or raise its limit (ulimit -n) (EMFILE)`
    )
    expect(tell("starved-spawn.ts")).toEqual({ failures, left: 0 })
  })

  it("another thread that takes the one that is kept has it once only, and a claim is made with it", () => {
    expect(tell("starved-twice.ts")).toEqual([true, true, true, true, true])
  })
})

it.live("nothing is left behind in the file system", () =>
  Effect.sync(() => {
    expect(readdirSync(tmpdir()).filter((name) => name.startsWith("process-spawn-"))).toEqual([])
  }))
