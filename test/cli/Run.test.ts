import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Control } from "../../src/cli/Control.ts"
import * as Run from "../../src/cli/Run.ts"
import * as ImageError from "../../src/image/ImageError.ts"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import * as ShutdownOutcome from "../../src/lifecycle/ShutdownOutcome.ts"
import type { Signal } from "../../src/lifecycle/Signal.ts"
import { obey } from "../../src/microvm/MemoryDriver.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import type { MachineRequest } from "../../src/microvm/MicroVmProvider.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import type { Program } from "../../src/testing/FakeGuestProgram.ts"
import { broken, commandStarts, nothing, optionsOf, run, type Setting, start, takes, Written } from "./world.ts"

const command = (...words: ReadonlyArray<string>) => ({ flags: { command: words } })
const forever = command("sleep", "1000000")
const encoder = new TextEncoder()

/** A machine that hears only some of what it is asked, and whose guest does not power off. */
const deaf = (...heard: ReadonlyArray<MachineRequest>): Setting => ({
  ...command("true"),
  guest: { onShutdown: () => Effect.void },
  machine: { request: (request, guest) => heard.includes(request) ? obey(request, guest) : Effect.void }
})

type Started = Effect.Success<ReturnType<typeof start>>

/** Starts a run and lets time pass. */
const after = Effect.fnUntraced(function*(millis: number, setting: Setting) {
  const started = yield* start(setting)
  yield* TestClock.adjust(millis)
  return started
})

describe("a command", () => {
  it.effect("is run between a start and an end in order, and its code is the run's", () =>
    Effect.gen(function*() {
      const { asked, left, phases, report, stages, took } = yield* run(command("exit", "7"))
      assert.strictEqual(report.exitCode, 7)
      assert.deepStrictEqual(report.end, {
        _tag: "Completed",
        status: { _tag: "Exited", code: 7, observedBy: "agent" }
      })
      assert.deepStrictEqual(phases, ["image 4000", "launch 2000", "boot 3000", "command 0", "stop 500"])
      assert.deepStrictEqual(stages, ["guest power-off ended"])
      assert.deepStrictEqual(asked, [])
      assert.strictEqual(took, 9500)
      assert.deepStrictEqual(left, nothing)
    }))

  const ends: ReadonlyArray<readonly [what: string, setting: Setting, code: number, stderr: string]> = [
    ["ends well", command("true"), 0, ""],
    ["fails", command("false"), 1, ""],
    ["gives the highest code", command("exit", "255"), 255, ""],
    ["is not there", command("nonesuch"), 127, "nonesuch: not found\n"],
    [
      "is no program",
      { ...command("data"), guest: { programs: { data: "not executable" } } },
      126,
      "data: Permission denied\n"
    ]
  ]
  it.effect.each(ends)("that %s", ([, setting, code, stderr]) =>
    Effect.gen(function*() {
      const ended = yield* run(setting)
      assert.strictEqual(ended.code, code)
      assert.strictEqual(ended.stderr, stderr)
      assert.strictEqual(ended.report.end._tag, "Completed")
      assert.deepStrictEqual(ended.stages, ["guest power-off ended"])
      assert.deepStrictEqual(ended.left, nothing)
    }))

  it.effect("leaves time to see to what others have left: once, when it runs, and for a second after it", () =>
    Effect.gen(function*() {
      const times: Array<number> = []
      const tidy = Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.sync(() => void times.push(now)))
      const { took } = yield* run({ ...command("true"), tidy })
      assert.deepStrictEqual(times, [commandStarts])
      const endless = yield* run({ ...command("true"), tidy: Effect.never })
      assert.strictEqual(endless.took, took + 1000)
      assert.strictEqual(endless.code, 0)
    }))

  it.effect("that a signal kills is 128 and its number", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts, forever)
      const guest = yield* started.guest
      // The second request of the connection, after the one that has started the command, asks for its end.
      yield* guest.inject({ _tag: "Instead", bytes: `{"return": {"exited": true, "signal": 9}, "id": 2}\n` })
      const { code, left, report } = yield* started.end
      assert.strictEqual(code, 137)
      assert.deepStrictEqual(report.end, {
        _tag: "Completed",
        status: { _tag: "Signaled", signal: "SIGKILL", observedBy: "agent" }
      })
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("gets its arguments, its environment, and the directory that it works in", () =>
    Effect.gen(function*() {
      const echo = yield* run(command("echo", "a b", "", "$HOME"))
      assert.strictEqual(echo.stdout, "a b  $HOME\n")
      const env = yield* run({ flags: { command: ["env"], env: ["A=1", "B=x=y", "A=2", "EMPTY="] } })
      assert.strictEqual(
        env.stdout.split("\n").filter((line) => !/^(PATH|HOME)=/.test(line)).join("\n"),
        "A=2\nB=x=y\nEMPTY=\n"
      )
      const pwd = yield* run({ flags: { command: ["pwd"], workdir: Option.some("/tmp") } })
      assert.strictEqual(pwd.stdout, "/tmp\n")
      const nowhere = yield* run({ flags: { command: ["pwd"], workdir: Option.some("/nonesuch") } })
      assert.deepStrictEqual(nowhere.report.end, {
        _tag: "Failed",
        message: "The command was not started in the guest: cannot work in /nonesuch"
      })
      // What the guest says is not taken for a sign that it may be gone.
      assert.isBelow(nowhere.took, pwd.took + 1000)
    }))

  it.effect("gets the machine that the flags say", () =>
    Effect.gen(function*() {
      const image = { kernel: "/k", initramfs: "/i" }
      const options = optionsOf({ vcpus: Option.some(2), memory: Option.some(512) })
      const spec = Run.toSpec("web-1", options, image)
      assert.deepStrictEqual({ ...spec, channels: spec.channels?.length }, {
        id: "web-1",
        hostname: "web-1",
        vcpus: 2,
        memoryMib: 512,
        kernel: "/k",
        initramfs: "/i",
        channels: 13
      })
      assert.match(yield* Run.makeId, /^run-[a-z0-9]{12}$/)
      const started = yield* after(commandStarts, { flags: { vcpus: Option.some(2) } })
      assert.strictEqual((yield* started.machine).spec.vcpus, 2)
      yield* started.end
    }))
})

describe("what a command reads and writes", () => {
  it.effect("reaches it, and its end too", () =>
    Effect.gen(function*() {
      const lines = Array.from({ length: 100 }, (_, line) => `line ${line}\n`)
      const { code, left, stdout } = yield* run({
        ...command("cat"),
        stdin: Stream.fromIterable(lines).pipe(Stream.encodeText)
      })
      assert.strictEqual(code, 0)
      assert.strictEqual(stdout, lines.join(""))
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("does not hold up the end when it never ends", () =>
    Effect.gen(function*() {
      const { code, left, took } = yield* run({ ...command("exit", "3"), stdin: Stream.never })
      assert.strictEqual(code, 3)
      assert.strictEqual(took, 9500)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that cannot be read ends the run, for a part of it would be taken for all", () =>
    Effect.gen(function*() {
      const { left, report, stages, stdout, took } = yield* run({
        ...command("cat"),
        stdin: Stream.concat(Stream.make(encoder.encode("first")), Stream.fail(broken("stdin", "EISDIR")))
      })
      assert.strictEqual(report.exitCode, 125)
      assert.deepStrictEqual(report.end, { _tag: "Failed", message: "stdin could not be read: EISDIR" })
      assert.deepStrictEqual(stages, ["guest power-off ended"])
      // The machine is not waited for, as it would be if it were its channels that have failed.
      assert.strictEqual(took, 9500)
      assert.include(["", "first"], stdout)
      assert.deepStrictEqual(left, nothing)
    }))

  /** Writes numbered lines, each in a chunk of its own, and counts those that it got rid of. */
  const counter = (lines: number) => {
    const told = { written: 0 }
    const program: Program = ({ write }) =>
      Effect.gen(function*() {
        for (let line = 0; line < lines; line++) {
          yield* write(line % 3 === 0 ? "stderr" : "stdout", `${line}\n`)
          told.written++
        }
        return 0
      })
    return { program, told }
  }

  it.effect("comes whole and in order, and is not buffered without bound for a slow reader", () =>
    Effect.gen(function*() {
      const { program, told } = counter(3000)
      const stdout = new Written()
      const open = Latch.makeUnsafe(false)
      const started = yield* after(commandStarts + 60_000, {
        ...command("count"),
        guest: { programs: { count: program } },
        stdout: () =>
          Sink.forEach((chunk: string | Uint8Array) =>
            Effect.andThen(open.await, Effect.sync(() => stdout.chunks.push(chunk)))
          )
      })
      // Sixteen chunks under way, and a few more in our hands.
      assert.isBelow(told.written, 300)
      yield* open.open
      const { code, left, stderr } = yield* started.end
      assert.strictEqual(code, 0)
      const numbers = Array.from({ length: 3000 }, (_, line) => line)
      assert.strictEqual(stdout.text, numbers.filter((line) => line % 3 !== 0).map((line) => `${line}\n`).join(""))
      assert.strictEqual(stderr, numbers.filter((line) => line % 3 === 0).map((line) => `${line}\n`).join(""))
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("just before the machine ends is not lost", () =>
    Effect.gen(function*() {
      const wrote = Latch.makeUnsafe(false)
      const started = yield* start({
        ...command("last"),
        guest: {
          programs: {
            last: ({ write }) =>
              Effect.gen(function*() {
                for (let line = 0; line < 10; line++) yield* write("stdout", `${line}\n`)
                yield* wrote.open
                return yield* Effect.never
              })
          }
        }
      })
      yield* Effect.forkChild(
        Effect.andThen(wrote.await, Effect.flatMap(started.machine, ({ powerOff }) => powerOff)),
        {
          startImmediately: true
        }
      )
      const { code, stdout } = yield* started.end
      assert.strictEqual(code, 125)
      assert.strictEqual(stdout, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n")
    }))

  for (const stream of ["stdout", "stderr"] as const) {
    const breaking = (code: string): Setting => ({
      ...command("chatty"),
      guest: {
        programs: {
          chatty: ({ write }) => Effect.forever(Effect.andThen(write(stream, "more\n"), Effect.sleep("1 millis")))
        }
      },
      [stream]: () =>
        Sink.suspend(() => {
          let taken = 0
          return Sink.forEach(() => ++taken > 3 ? Effect.fail(broken(stream, code)) : Effect.void)
        })
    })
    it.effect(`that nobody reads any longer (${stream}) ends the run as SIGPIPE does`, () =>
      Effect.gen(function*() {
        const { left, report, stages } = yield* run(breaking("EPIPE"))
        assert.strictEqual(report.exitCode, 141)
        assert.deepStrictEqual(report.end, { _tag: "Interrupted", signal: "SIGPIPE" })
        assert.deepStrictEqual(stages, ["guest power-off ended"])
        assert.deepStrictEqual(left, nothing)
      }))
    it.effect(`that cannot be written (${stream}) is told`, () =>
      Effect.gen(function*() {
        const { left, report } = yield* run(breaking("ENOSPC"))
        assert.strictEqual(report.exitCode, 125)
        assert.deepStrictEqual(report.end, { _tag: "Failed", message: `${stream} could not be written: ENOSPC` })
        assert.deepStrictEqual(left, nothing)
      }))
  }

  it.effect("goes to stderr, all of it, when stdout is the report's", () =>
    Effect.gen(function*() {
      const { program } = counter(30)
      const { stderr, stdout } = yield* run({
        ...command("count"),
        guest: { programs: { count: program } },
        json: true
      })
      assert.strictEqual(stdout, "")
      assert.strictEqual(stderr.split("\n").length, 31)
    }))
})

describe("--timeout", () => {
  it.effect("counts from the command's start, and the machine still ends in order", () =>
    Effect.gen(function*() {
      const { left, phases, report, stages, took } = yield* run({
        flags: { command: ["sleep", "60"], timeout: Option.some("3s") },
        stdin: Stream.never
      })
      assert.strictEqual(report.exitCode, 124)
      assert.deepStrictEqual(report.end, { _tag: "TimedOut", after: Duration.seconds(3) })
      assert.deepStrictEqual(phases.slice(3), ["command 3000", "stop 500"])
      assert.deepStrictEqual(stages, ["guest power-off ended"])
      assert.strictEqual(took, commandStarts + 3500)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that passes while nobody reads the output is one, too", () =>
    Effect.gen(function*() {
      const { code, left, took } = yield* run({
        flags: { command: ["chatty"], timeout: Option.some("3s") },
        guest: { programs: { chatty: ({ write }) => Effect.forever(write("stdout", "more\n")) } },
        stdout: () => Sink.forEach(() => Effect.never)
      })
      assert.strictEqual(code, 124)
      // Somebody might still have read what was written: that may take a second.
      assert.strictEqual(took, commandStarts + 4500)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that does not pass changes nothing", () =>
    Effect.gen(function*() {
      const { code, phases } = yield* run({ flags: { command: ["sleep", "2"], timeout: Option.some("3s") } })
      assert.strictEqual(code, 0)
      // The end is asked for at a growing distance.
      assert.match(phases[3] ?? "", /^command 2[01]..$/)
    }))
})

describe("a signal", () => {
  const stop = commandStarts + 200
  const moments: ReadonlyArray<
    readonly [when: string, millis: number, signal: Signal, code: number, setting: Setting, last: string]
  > = [
    ["while the image is prepared", 1000, "SIGTERM", 143, forever, "image 1000"],
    ["while the machine is launched", takes.image + 1000, "SIGINT", 130, forever, "launch 1000"],
    ["while the guest boots", takes.image + takes.launch + 1000, "SIGHUP", 129, forever, "boot 1000"],
    ["while the command runs", commandStarts + 1000, "SIGTERM", 143, forever, "command 1000"],
    ["while the machine stops", stop, "SIGINT", 130, command("exit", "7"), "command 0"]
  ]
  it.effect.each(moments)(
    "%s ends the run in order",
    ([, millis, signal, code, setting, last]) =>
      Effect.gen(function*() {
        const started = yield* after(millis, setting)
        yield* started.signal(signal)
        const { left, phases, report, stages } = yield* started.end
        assert.strictEqual(report.exitCode, code)
        assert.deepStrictEqual(report.end, { _tag: "Interrupted", signal })
        assert.strictEqual(phases.findLast((phase) => !phase.startsWith("stop")), last)
        const expected = last.startsWith("command")
          ? ["guest power-off ended"]
          : last.startsWith("boot")
          // It could not hear anything, and has nothing to put in order.
          ? ["SIGKILL ended"]
          : []
        assert.deepStrictEqual(stages, expected)
        assert.deepStrictEqual(left, nothing)
      })
  )

  it.effect("while the command starts is not held up by a guest that says nothing", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 500, {
        ...forever,
        machine: {
          program: (guest) =>
            Effect.scoped(Effect.gen(function*() {
              yield* Effect.sleep(takes.boot)
              const onShutdown = () => guest.background(Effect.delay(guest.powerOff, 500))
              const { inject } = yield* FakeGuestAgent.serve(guest.channel, { onShutdown })
              yield* inject({ _tag: "Ignore" })
              return yield* Effect.never
            }))
        }
      })
      yield* started.signal("SIGINT")
      const { code, left, phases } = yield* started.end
      assert.strictEqual(code, 130)
      assert.strictEqual(phases[3], "command 500")
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("does not change what was told before it", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 3200, {
        flags: { command: ["sleep", "60"], timeout: Option.some("3s") }
      })
      yield* started.signal("SIGINT")
      assert.strictEqual((yield* started.end).code, 124)
    }))

  it.effect("hastens the stop when it is not the first, and its number is that of the first", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 1000, { ...deaf("Kill"), ...forever })
      yield* started.signal("SIGINT")
      yield* TestClock.adjust(1000)
      yield* started.signal("SIGTERM")
      yield* TestClock.adjust(500)
      yield* started.signal("SIGINT")
      yield* TestClock.adjust(250)
      yield* started.signal("SIGINT")
      const { asked, code, left, phases, stages } = yield* started.end
      assert.strictEqual(code, 130)
      assert.deepStrictEqual(asked, ["PowerButton", "Terminate", "Kill"])
      assert.deepStrictEqual(stages, [
        "guest power-off hastened",
        "power button hastened",
        "SIGTERM hastened",
        "SIGKILL ended"
      ])
      assert.strictEqual(phases.at(-1), "stop 1750")
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that comes many times goes to the end at once", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 1000, { ...deaf("Kill"), ...forever })
      for (let times = 0; times < 12; times++) {
        yield* started.signal("SIGINT")
        yield* TestClock.adjust(1)
      }
      const { code, left, phases } = yield* started.end
      assert.strictEqual(code, 130)
      assert.strictEqual(phases.at(-1), "stop 3")
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("leaves nothing at whatever moment it comes", () =>
    Effect.gen(function*() {
      let millis = 0
      for (;; millis += 125) {
        const started = yield* after(millis, command("sleep", "1"))
        if (started.fiber.pollUnsafe() !== undefined) break
        yield* started.signal("SIGTERM")
        const { code, left } = yield* started.end
        assert.deepStrictEqual({ millis, code, left }, { millis, code: 143, left: nothing })
      }
      assert.isAtLeast(millis, commandStarts + 1500)
    }))
})

describe("a machine", () => {
  const panic = "Kernel panic - not syncing: Attempted to kill init!"
  const ends: ReadonlyArray<
    readonly [how: string, act: (started: Started) => Effect.Effect<void, unknown>, why: string, tail: string]
  > = [
    ["powers off", ({ machine }) => Effect.flatMap(machine, ({ powerOff }) => powerOff), "the guest powered off", ""],
    [
      "panics",
      ({ machine }) => Effect.flatMap(machine, (guest) => Effect.andThen(guest.print(`${panic}\r\n`), guest.panic)),
      "the guest's kernel panicked",
      `${panic}\r\n`
    ],
    [
      "is killed",
      ({ machine }) => Effect.flatMap(machine, ({ kill }) => kill("SIGKILL")),
      "the monitor was killed by SIGKILL",
      ""
    ],
    [
      "fails",
      ({ machine }) => Effect.flatMap(machine, ({ crash }) => crash("a bug")),
      "the monitor exited with code 1: a bug",
      ""
    ]
  ]
  for (
    const [phase, millis] of [["boots", takes.image + takes.launch + 1000], [
      "runs the command",
      commandStarts + 1000
    ]] as const
  ) {
    it.effect.each(ends)(`that %s while it ${phase} is told`, ([, act, why, consoleTail]) =>
      Effect.gen(function*() {
        const started = yield* after(millis, forever)
        yield* act(started)
        const { left, report } = yield* started.end
        assert.strictEqual(report.exitCode, 125)
        assert.deepStrictEqual(report.end, { _tag: "MachineEnded", why, consoleTail })
        assert.strictEqual(report.shutdown?._tag, "AlreadyExited")
        assert.deepStrictEqual(left, nothing)
      }))
  }

  it.effect("that ends once the command has is in order", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 200, command("exit", "7"))
      yield* Effect.flatMap(started.machine, ({ crash }) => crash("late"))
      const { code, left } = yield* started.end
      assert.strictEqual(code, 7)
      assert.deepStrictEqual(left, nothing)
    }))

  for (const step of ["claim", "spawn", "connect"] as const) {
    it.effect(`that cannot be launched (${step}) is told in the backend's words`, () =>
      Effect.gen(function*() {
        let tidied = 0
        const { left, phases, report } = yield* run({
          tidy: Effect.sync(() => void tidied++),
          machine: {
            launch: (now) => now === step ? Effect.fail(new Error("qemu-system-x86_64: no such thing")) : Effect.void
          }
        })
        assert.strictEqual(report.exitCode, 125)
        assert.deepStrictEqual(report.end, {
          _tag: "Failed",
          message: `Machine "m" could not be launched, ${step} failed: qemu-system-x86_64: no such thing`
        })
        assert.isUndefined(report.shutdown)
        assert.deepStrictEqual(phases, ["image 4000", "launch 0"])
        assert.deepStrictEqual(left.claims, [])
        // What others have left may be why.
        assert.strictEqual(tidied, 1)
      }))
  }

  it.effect("that cannot be started is told, and ended", () =>
    Effect.gen(function*() {
      const { asked, left, report } = yield* run({ machine: { start: Effect.fail(new Error("no memory")) } })
      assert.strictEqual(report.exitCode, 125)
      assert.deepStrictEqual(report.end, { _tag: "Failed", message: `Machine "m": start failed: no memory` })
      assert.deepStrictEqual(asked, ["Kill"])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("whose agent is never heard of is given up, with what its console says", () =>
    Effect.gen(function*() {
      const { asked, left, phases, report } = yield* run({
        machine: { program: (guest) => Effect.andThen(guest.print("no /init\n"), Effect.never) }
      })
      assert.strictEqual(report.exitCode, 125)
      const message = report.end._tag === "Failed" ? report.end.message : report.end._tag
      assert.match(
        message,
        /^No guest agent answered within 2m .*\n--- the end of its console ---\n {2}no \/init\n---$/
      )
      assert.strictEqual(phases[2], "boot 120000")
      assert.deepStrictEqual(asked, ["Kill"])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("whose agent hangs up is told, and ended without it", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 1000, forever)
      yield* Effect.flatMap(started.guest, ({ inject }) => inject({ _tag: "HangUp" }))
      const { left, report, stages } = yield* started.end
      assert.strictEqual(report.exitCode, 125)
      assert.match(
        report.end._tag === "Failed" ? report.end.message : report.end._tag,
        /^The channel "agent" .* is closed/
      )
      assert.deepStrictEqual(stages, ["guest power-off failed", "power button ended"])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("whose agent starts anew has lost how the command ended", () =>
    Effect.gen(function*() {
      const started = yield* after(commandStarts + 1000, command("sleep", "3"))
      yield* Effect.flatMap(started.guest, ({ restart }) => restart)
      const { left, phases, report, stages } = yield* started.end
      assert.strictEqual(report.exitCode, 125)
      assert.strictEqual(report.end._tag === "Completed" ? report.end.status._tag : report.end._tag, "Lost")
      assert.strictEqual(phases[3], "command 3000")
      assert.deepStrictEqual(stages, ["guest power-off ended"])
      assert.deepStrictEqual(left, nothing)
    }))
})

describe("nothing is begun", () => {
  const refusals: ReadonlyArray<
    readonly [what: string, reason: ImageError.ImageErrorReason, tag: "Failed" | "Usage", code: number]
  > = [
    ["cannot be built", ImageError.ImageErrorReason.NoSpace({ path: "/cache" }), "Failed", 125],
    ["is not known", ImageError.ImageErrorReason.UnknownImage({ name: "big", known: ["default"] }), "Usage", 64]
  ]
  it.effect.each(refusals)("with an image that %s", ([, reason, tag, code]) =>
    Effect.gen(function*() {
      const error = ImageError.fromReason(reason)
      const { left, phases, report } = yield* run({ image: Effect.fail(error) })
      assert.deepStrictEqual(report.end, { _tag: tag, message: error.message })
      assert.strictEqual(report.exitCode, code)
      assert.deepStrictEqual(phases, ["image 0"])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("without a backend", () =>
    Effect.gen(function*() {
      const reason = new MicroVmError.BackendUnavailable({
        backend: "qemu",
        why: "it was removed",
        remedy: "install it"
      })
      const { left, report } = yield* run({
        provider: (provider) => ({ ...provider, launch: () => MicroVmError.fail(reason) })
      })
      assert.deepStrictEqual(report.end, { _tag: "NoBackend", message: reason.message })
      assert.strictEqual(report.exitCode, 69)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("for a machine that the backend refuses", () =>
    Effect.gen(function*() {
      const faults = [{ field: "vcpus", value: 32, remedy: "give at most 8" }]
      const { code, left } = yield* run({
        provider: (provider) => ({
          ...provider,
          plan: () => Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))
        })
      })
      assert.strictEqual(code, 64)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("when something is simply broken", () =>
    Effect.gen(function*() {
      const { left, report } = yield* run({ image: Effect.die(new Error("a bug")) })
      assert.deepStrictEqual(report.end, { _tag: "Failed", message: "a bug" })
      assert.strictEqual(report.exitCode, 125)
      assert.deepStrictEqual(left, nothing)
    }))
})

describe("a machine that is watched", () => {
  const watched: Setting = { flags: { command: ["sleep", "1000000"], watchdog: Option.some("30s") } }

  it.effect("is left alone while it answers, and while it is saved, however long that takes", () =>
    Effect.gen(function*() {
      let isSaved = false
      const started = yield* after(commandStarts, {
        ...watched,
        machine: {
          ping: Effect.suspend(() => isSaved ? Effect.never : Effect.void),
          save: Effect.suspend(() => {
            isSaved = true
            return Effect.delay(Effect.sync(() => void (isSaved = false)), "10 minutes")
          })
        },
        flags: { command: ["sleep", "3600"], watchdog: Option.some("30s") }
      })
      const saved = yield* Control.use(({ ask }) => ask("m", { _tag: "Save", name: "s" })).pipe(
        Effect.provideContext(started.host),
        Effect.forkChild({ startImmediately: true })
      )
      yield* TestClock.adjust("1 hour")
      assert.strictEqual((yield* Fiber.join(saved))._tag, "Saved")
      const { code, left, lines } = yield* started.end
      assert.deepStrictEqual([code, lines], [0, []])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("is ended at once when its monitor hangs, and that is told", () =>
    Effect.gen(function*() {
      let isHung = false
      const started = yield* after(commandStarts, {
        ...watched,
        machine: {
          ping: Effect.suspend(() => isHung ? Effect.never : Effect.void),
          request: (request, guest) => request === "Kill" ? obey(request, guest) : Effect.never
        }
      })
      yield* TestClock.adjust("1 minute")
      isHung = true
      const { code, left, report, stages, took } = yield* started.end
      assert.strictEqual(code, 125)
      assert.deepStrictEqual(report.end, {
        _tag: "Failed",
        message: "the machine was ended, as it hangs: its monitor has not answered for 30s"
      })
      assert.deepStrictEqual(stages, ["SIGKILL ended"])
      assert.isAtMost(took, commandStarts + 91_000)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("is ended when its agent hangs, with the end of its console; not when nobody watches", () =>
    Effect.gen(function*() {
      const hang = Effect.fnUntraced(function*(setting: Setting) {
        const started = yield* after(commandStarts, setting)
        const guest = yield* started.guest
        const machine = yield* started.machine
        yield* machine.print("rcu: INFO: rcu_sched self-detected stall on CPU\n")
        for (let request = 0; request < 1000; request++) yield* guest.inject({ _tag: "Ignore" })
        yield* TestClock.adjust("2 minutes")
        return started
      })
      const { code, left, report, stages } = yield* (yield* hang(watched)).end
      assert.strictEqual(code, 125)
      assert.match(
        report.end._tag === "Failed" ? report.end.message : "",
        /as it hangs: its agent has not answered for .*\n--- the end of its console ---\n {2}rcu: .*stall/s
      )
      assert.deepStrictEqual(stages, ["SIGKILL ended"])
      assert.deepStrictEqual(left, nothing)
      const unwatched = yield* hang(forever)
      assert.isUndefined(unwatched.fiber.pollUnsafe())
      yield* unwatched.signal("SIGTERM")
      assert.strictEqual((yield* unwatched.end).code, 143)
    }))
})

describe("a guest", () => {
  it.effect("that does not power off gets the power button", () =>
    Effect.gen(function*() {
      const { code, left, stages, took } = yield* run(deaf("PowerButton"))
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(stages, ["guest power-off deadline", "power button ended"])
      assert.strictEqual(took, commandStarts + 5000)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that hears nothing is forced, after the grace of --grace", () =>
    Effect.gen(function*() {
      const setting = deaf("Kill")
      const { code, left, phases, report, stages } = yield* run({
        ...setting,
        flags: { command: ["exit", "7"], grace: "7s" }
      })
      assert.strictEqual(code, 7)
      assert.deepStrictEqual(stages, [
        "guest power-off deadline",
        "power button deadline",
        "SIGTERM deadline",
        "SIGKILL ended"
      ])
      const begun = report.shutdown?.stages.map((stage) => Duration.toMillis(stage.after))
      assert.deepStrictEqual(begun, [0, 7000, 12_000, 13_000])
      assert.strictEqual(phases.at(-1), "stop 13000")
      assert.strictEqual(report.shutdown?._tag, "Forced")
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("whose agent refuses gets the power button at once", () =>
    Effect.gen(function*() {
      let refuse = Effect.void
      const started = yield* after(commandStarts, {
        ...command("sleep", "1"),
        guest: { onShutdown: () => Effect.suspend(() => refuse) }
      })
      const guest = yield* started.guest
      refuse = guest.send(`{"error": {"class": "GenericError", "desc": "no"}}\n`)
      const { code, left, phases, report, stages } = yield* started.end
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(stages, ["guest power-off failed", "power button ended"])
      assert.strictEqual(phases.at(-1), "stop 0")
      assert.match(String(report.shutdown?.stages[0]?.error), /refused guest-shutdown: no/)
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that cannot even be killed is named, whatever the command's code", () =>
    Effect.gen(function*() {
      const { left, report, stages } = yield* run(deaf())
      assert.strictEqual(report.exitCode, 125)
      assert.strictEqual(report.end._tag, "Completed")
      assert.strictEqual(stages.at(-1), "SIGKILL deadline")
      const { shutdown } = report
      assert.strictEqual(shutdown?._tag, "Unkillable")
      assert.match(
        shutdown === undefined ? "" : ShutdownOutcome.format(shutdown),
        /still there after .*: memory:m\[0\]/
      )
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("that leaves something behind is named, whatever the command's code", () =>
    Effect.gen(function*() {
      const survivors = [{ pid: 42, command: "virtiofsd", why: "outside the cgroup" }]
      const { code, report } = yield* run({ machine: { survivors } })
      assert.strictEqual(code, 125)
      assert.deepStrictEqual(report.shutdown?._tag === "Survivors" ? report.shutdown.survivors : [], survivors)
    }))
})

describe("whatever comes together", () => {
  const requests = ["PowerButton", "Terminate", "Kill"] as const
  const between = (least: number, most: number) => Random.nextIntBetween(least, most)

  it.effect.each(Array.from({ length: 60 }, (_, seed) => seed))(
    "the run ends, in time, and leaves nothing: seed %d",
    (seed) =>
      Effect.gen(function*() {
        const heard = new Set<MachineRequest>(["Kill"])
        for (const request of requests) if (yield* Random.nextBoolean) heard.add(request)
        const obedient = yield* Random.nextBoolean
        const started = yield* start({
          flags: {
            command: (yield* Random.nextBoolean) ? ["sleep", "3"] : ["sleep", "1000000"],
            timeout: (yield* Random.nextBoolean) ? Option.some("4s") : Option.none()
          },
          ...(obedient ? {} : { guest: { onShutdown: () => Effect.void } }),
          machine: { request: (request, guest) => heard.has(request) ? obey(request, guest) : Effect.void }
        })
        for (let count = yield* between(1, 5); count > 0; count--) {
          yield* TestClock.adjust(yield* between(0, 6000))
          yield* started.signal((yield* Random.nextBoolean) ? "SIGINT" : "SIGTERM")
        }
        if (yield* Random.nextBoolean) yield* Effect.ignore(Effect.flatMap(started.machine, ({ panic }) => panic))
        const { code, left, phases } = yield* started.end
        assert.include([0, 124, 125, 130, 143], code)
        const stop = /^stop (\d+)$/.exec(phases.at(-1) ?? "")?.[1]
        // The longest way is 5 s for the guest's power-off, 5 s for the power button, and 1 s for SIGTERM.
        assert.isAtMost(Number(stop ?? 0), 11_000)
        assert.deepStrictEqual(left, nothing)
      }).pipe(Random.withSeed(`${seed}`))
  )
})

describe("the report", () => {
  const cases: ReadonlyArray<readonly [string, Setting]> = [
    ["a command that ended", command("true")],
    ["a timeout", { flags: { command: ["sleep", "9"], timeout: Option.some("1s") } }],
    ["a failed launch", { machine: { launch: () => Effect.fail("no") } }],
    ["an unkillable machine", deaf()],
    ["a stage that failed", { machine: { start: Effect.fail("no") } }]
  ]
  it.effect.each(cases)("of %s is the same after it was JSON", ([, setting]) =>
    Effect.gen(function*() {
      const { report } = yield* run(setting)
      const codec = Schema.fromJsonString(RunReport)
      const text = yield* Schema.encodeEffect(codec)(report)
      const back = yield* Schema.decodeEffect(codec, { onExcessProperty: "error" })(text)
      assert.deepStrictEqual(back, report)
    }))
})

describe("withConsole", () => {
  it("shows the last lines, as a terminal wants them", () => {
    const console = Array.from({ length: 80 }, (_, line) => `line ${line}\r\n`).join("")
    const lines = Run.withConsole("why", console).split("\n")
    assert.deepStrictEqual(lines.slice(0, 3), ["why", "--- the end of its console ---", "  line 30"])
    assert.deepStrictEqual(lines.slice(-2), ["  line 79", "---"])
  })
  it("adds nothing to say nothing", () => assert.strictEqual(Run.withConsole("why", "\r\n"), "why"))
  it("lets no guest speak for us, steer the terminal or fill it", () => {
    const console = `---\r\nmicrovm: all is well\u001B[2J\u009B1A\r\n${"x".repeat(5000)}`
    const [, , ...lines] = Run.withConsole("why", console).split("\n")
    assert.deepStrictEqual(lines.slice(0, 2), ["  ---", "  microvm: all is well\\u{1b}[2J\\u{9b}1A"])
    assert.deepStrictEqual(lines.slice(2), [`  ${"x".repeat(499)}…`, "---"])
  })
})
