import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as TestConsole from "effect/testing/TestConsole"
import * as Commands from "../../src/cli/Commands.ts"
import * as Doctor from "../../src/cli/Doctor.ts"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import * as ImageError from "../../src/image/ImageError.ts"
import type { Progress } from "../../src/image/ImageProgress.ts"
import { type Image, type ImageStore } from "../../src/image/ImageStore.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import * as ShutdownOutcome from "../../src/lifecycle/ShutdownOutcome.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import * as FakeQmp from "../../src/testing/FakeQmp.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"
import { microvm, type Qemu } from "./commandLine.ts"
import { image, imageStore } from "./world.ts"

describe("help", () => {
  it.effect.each([["--help"], ["-h"], []].map((args) => ({ args })))(
    "of the whole is on stdout: $args",
    ({ args }) =>
      Effect.gen(function*() {
        const { code, errors, stderr, stdout } = yield* microvm(args)
        assert.strictEqual(code, 0)
        for (const command of ["run", "snapshot", "doctor", "image"]) {
          assert.match(stdout, new RegExp(`^ +${command} `, "m"))
        }
        assert.deepStrictEqual([stderr, errors], [[], []])
      })
  )

  it.effect("of run shows each flag and each exit code", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm(["run", "--help"])
      assert.strictEqual(code, 0)
      const flags =
        "backend name vcpus memory image cold from env timeout grace watchdog network allow detach dry-run json"
      for (const flag of flags.split(" ")) assert.include(stdout, `--${flag}`)
      for (const exit of [124, 125, 126, 127, 64, 69]) assert.include(stdout, String(exit))
      assert.include(stdout, "MICROVM_BACKEND")
    }))

  it.effect("and version exit with 0", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm(["--version"])
      assert.strictEqual(code, 0)
      assert.strictEqual(stdout, "microvm v1.2.3\n")
    }))
})

describe("a wrong command line", () => {
  const cases: ReadonlyArray<readonly [args: ReadonlyArray<string>, told: RegExp]> = [
    [["runn", "--", "true"], /Unknown subcommand "runn"/],
    [["image", "bild"], /Unknown subcommand "bild"/],
    [["run", "--nonesuch", "--", "true"], /Unrecognized flag: --nonesuch/],
    [["doctor", "--verbose"], /Unrecognized flag: --verbose/],
    [["run", "--vcpus", "two", "--", "true"], /--vcpus/],
    [["run", "--vcpus", "1.5", "--", "true"], /--vcpus/],
    [["run", "--network", "bridge", "--", "true"], /--network/],
    [["run", "--backend", "xen", "--", "true"], /--backend/],
    [["run", "--json=maybe", "--", "true"], /--json/]
  ]
  it.effect.each(cases)("%j is told on stderr alone, with where to look", ([args, told]) =>
    Effect.gen(function*() {
      const { code, errors, started, stderr, stdout } = yield* microvm(args)
      assert.strictEqual(code, 64)
      assert.strictEqual(stdout, "")
      assert.match(stderr[0] ?? "", told)
      assert.match(stderr.at(-1) ?? "", /^see microvm .*--help$/)
      assert.deepStrictEqual([errors, started], [[], []])
    }))

  it.effect("has all its faults told, and nothing is done", () =>
    Effect.gen(function*() {
      const args = ["run", "--vcpus", "99", "--memory", "1", "--name", "a_b", "--timeout", "x", "--env", "A=hunter2\0"]
      const { code, started, stderr, stdout } = yield* microvm(args, { env: { MICROVM_BACKEND: "xen" } })
      assert.strictEqual(code, 64)
      assert.strictEqual(stdout, "")
      assert.lengthOf(stderr, 7)
      assert.strictEqual(stderr[0], `MICROVM_BACKEND is not valid: Expected "auto" | "firecracker" | "qemu"`)
      for (const flag of ["--vcpus 99", "--memory 1", "--name", "--timeout", "--env A", "no command"]) {
        assert.include(stderr.join("\n"), flag)
      }
      assert.notInclude(stderr.join("\n"), "hunter2")
      assert.deepStrictEqual(started, [])
    }))

  it.effect("words after -- are the command's, whatever they look like", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm([
        "run",
        "--dry-run",
        "--json",
        "--",
        "ls",
        "--help",
        "--vcpus",
        "x",
        "--"
      ])
      assert.strictEqual(code, 0)
      assert.notInclude(stdout, "USAGE")
    }))
})

describe("MICROVM_BACKEND", () => {
  const run = ["run", "--dry-run", "--", "true"]
  it.effect("is taken when there is no flag", () =>
    Effect.gen(function*() {
      const env = { MICROVM_BACKEND: "firecracker" }
      const missing = yield* microvm(run, { env })
      assert.strictEqual(missing.code, 69)
      assert.match(missing.stderr.join("\n"), /it was not found/)
      const { code, stdout } = yield* microvm(run, { env, firecracker: {} })
      assert.strictEqual(code, 0)
      assert.match(stdout, /^firecracker: Firecracker 1\.15\.1, since KVM is usable\n/)
    }))

  it.effect("gives way to the flag", () =>
    Effect.gen(function*() {
      const args = ["run", "--backend", "qemu", "--dry-run", "--", "true"]
      assert.strictEqual((yield* microvm(args, { env: { MICROVM_BACKEND: "xen" } })).code, 0)
    }))

  it.effect("may be empty", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* microvm(run, { env: { MICROVM_BACKEND: "" } })).code, 0)
    }))
})

describe("--dry-run", () => {
  const Plan = Schema.fromJsonString(Schema.Struct({
    backend: Schema.String,
    detail: Schema.String,
    spec: Schema.Struct({ id: Schema.String, vcpus: Schema.Int, memoryMib: Schema.Int }),
    description: Schema.Array(Schema.String),
    argv: Schema.Array(Schema.String)
  }))

  it.effect("prints the plan, and does nothing", () =>
    Effect.gen(function*() {
      const images = imageStore(Effect.die(new Error("the image was asked for")))
      const { code, started, stderr, stdout } = yield* microvm(["run", "--dry-run", "--vcpus", "2", "--", "true"], {
        images
      })
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(stderr, [])
      assert.match(stdout, /^qemu: QEMU 7\.2\.22 with TCG, since the CPU shows neither vmx nor svm\nwarm: .*\n- /)
      assert.match(stdout, /\n[^\n]*qemu-system-x86_64 [^\n]*-smp 2 [^\n]*\n$/)
      assert.deepStrictEqual(started, [])
    }))

  it.effect("prints it as JSON, of the machine that was asked for", () =>
    Effect.gen(function*() {
      const args = ["run", "--dry-run", "--json", "--name", "web-1", "--memory", "512", "--", "true"]
      const { code, stdout } = yield* microvm(args)
      assert.strictEqual(code, 0)
      const plan = yield* Schema.decodeEffect(Plan)(stdout)
      assert.deepStrictEqual(plan.spec, { id: "web-1", vcpus: 1, memoryMib: 512 })
      assert.include(plan.argv, "qemu-system-x86_64")
    }))

  it.effect("prints words that a shell takes for one", () =>
    Effect.gen(function*() {
      const { stdout } = yield* microvm(["run", "--dry-run", "--", "true"])
      assert.match(stdout, /-append '[^']* [^']*'/)
    }))
})

describe("without a backend", () => {
  const observed = MicroVmError.make(
    new MicroVmError.BackendUnavailable({ backend: "qemu", why: "it was not found", remedy: "install qemu-system-x86" })
  )
  it.effect.each([["run", "--", "true"], ["run", "--dry-run", "--", "true"]].map((args) => ({ args })))(
    "$args exits with 69",
    ({ args }) =>
      Effect.gen(function*() {
        const { code, stderr, stdout } = yield* microvm(args, { observed })
        assert.strictEqual(code, 69)
        assert.strictEqual(stdout, "")
        assert.deepStrictEqual(stderr, [observed.message])
      })
  )

  it.effect("--json tells it, too", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm(["run", "--json", "--", "true"], { observed })
      const report = yield* Schema.decodeEffect(Schema.fromJsonString(RunReport))(stdout)
      assert.deepStrictEqual(report.end, { _tag: "NoBackend", message: observed.message })
      assert.strictEqual(report.exitCode, code)
    }))

  it.effect("doctor exits with 69, and says what to do on stdout", () =>
    Effect.gen(function*() {
      const { code, stderr, stdout } = yield* microvm(["doctor"], { observed })
      assert.strictEqual(code, 69)
      assert.match(stdout, /^FAIL {2}qemu: it was not found\n {6}→ install qemu-system-x86$/m)
      assert.deepStrictEqual(stderr, [])
    }))

  it.effect("an environment that is wrong is a matter of the command line", () =>
    Effect.gen(function*() {
      const { code, stderr } = yield* microvm(["run", "--", "true"], { env: { MICROVM_QEMU_USER: "root" } })
      assert.strictEqual(code, 64)
      assert.deepStrictEqual(stderr, [`MICROVM_QEMU_USER is not valid: Expected "auto" | "keep"`])
    }))
})

describe("doctor", () => {
  it.effect("exits with 0 when a machine can run", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm(["doctor", "--json"], {
        images: {
          ...imageStore(Effect.succeed(image)),
          list: Effect.succeed([{ digest: "", names: ["default"], kernelRelease: "6.1.0", directory: "", bytes: 1 }])
        }
      })
      assert.strictEqual(code, 0)
      const { checks, usable } = yield* Schema.decodeEffect(Schema.fromJsonString(Doctor.Diagnosis))(stdout)
      assert.isTrue(usable)
      assert.deepStrictEqual(checks.slice(0, 7).map(({ name }) => name), [
        "firecracker",
        "qemu",
        "kvm",
        "privileges",
        "cgroup",
        "image",
        "warm start"
      ])
    }))

  it.effect("ends at a signal", () =>
    Effect.gen(function*() {
      const images = { ...imageStore(Effect.succeed(image)), list: Effect.never }
      assert.deepInclude(yield* microvm(["doctor"], { images, signal: "SIGTERM" }), {
        code: 143,
        patient: false,
        stdout: ""
      })
    }))
})

describe("image ls and rm", () => {
  const old = "a".repeat(63)
  const stored = [
    { digest: `${old}1`, names: [], kernelRelease: "", directory: "/1", bytes: 0 },
    { digest: `${old}2`, names: [], kernelRelease: "6.1.0", directory: "/2", bytes: 1 },
    { digest: "b".repeat(64), names: ["default", "other"], kernelRelease: "6.2.0", directory: "/3", bytes: 60 << 20 }
  ]
  /** As the store: names and whole ids. */
  const keeping = () => {
    const removed: Array<string> = []
    const is = (given: string) => stored.some(({ digest, names }) => digest === given || names.includes(given))
    const images = {
      ...imageStore(Effect.succeed(image)),
      list: Effect.succeed(stored),
      remove: (given: string) => Effect.sync(() => is(given) && removed.push(given) > 0)
    }
    return { images, removed }
  }

  it.effect("lists what there is, for people and for programs", () =>
    Effect.gen(function*() {
      const { images } = keeping()
      assert.strictEqual(
        (yield* microvm(["image", "ls"], { images })).stdout,
        [
          "NAME           ID            KERNEL      SIZE",
          "               aaaaaaaaaaaa  unreadable  0 MiB",
          "               aaaaaaaaaaaa  6.1.0       1 MiB",
          "default,other  bbbbbbbbbbbb  6.2.0       60 MiB",
          ""
        ].join("\n")
      )
      const { stdout } = yield* microvm(["image", "ls", "--json"], { images })
      assert.strictEqual(stdout, `${JSON.stringify(stored, null, 2)}\n`)
    }))

  const cases: ReadonlyArray<
    readonly [given: ReadonlyArray<string>, removed: ReadonlyArray<string>, code: number, told: ReadonlyArray<string>]
  > = [
    [["default"], ["default"], 0, []],
    [["bbbbbbbb"], ["b".repeat(64)], 0, []],
    [["bbbbbbb", `${old}1`], [`${old}1`], 1, ["there is no image \"bbbbbbb\""]],
    [["aaaaaaaa"], [], 1, ["image \"aaaaaaaa\" is not possible: give more of it, as 2 ids begin so"]]
  ]
  it.effect.each(cases)("removes %j", ([given, expected, code, told]) =>
    Effect.gen(function*() {
      const { images, removed } = keeping()
      const ended = yield* microvm(["image", "rm", ...given], { images })
      assert.deepStrictEqual([removed, ended.code, ended.stderr], [expected, code, told])
    }))

  it.effect("tells what the store cannot do", () =>
    Effect.gen(function*() {
      const error = ImageError.fromReason(ImageError.ImageErrorReason.CacheUnusable({ path: "/c", why: "EROFS" }))
      const images = { ...keeping().images, list: Effect.fail(error), remove: () => Effect.fail(error) }
      for (const args of [["ls"], ["rm", "default"]]) {
        const ended = yield* microvm(["image", ...args], { images })
        assert.deepStrictEqual([ended.code, ended.stderr], [125, [error.message]])
      }
    }))
})

describe("image build", () => {
  const building = (steps: ReadonlyArray<Progress>, end: Effect.Effect<Image, ImageError.ImageError>) => ({
    ...imageStore(end),
    ensure: (_name?: string, options?: { readonly onProgress?: (progress: Progress) => Effect.Effect<void> }) =>
      Effect.andThen(Effect.forEach(steps, (step) => options?.onProgress?.(step) ?? Effect.void), end)
  })

  it.effect("says nothing when there is nothing to do", () =>
    Effect.gen(function*() {
      const { code, stderr, stdout } = yield* microvm(["image", "build"])
      assert.deepStrictEqual([code, stdout, stderr], [0, "", []])
    }))

  it.effect("tells each step once", () =>
    Effect.gen(function*() {
      const downloading = (receivedBytes: number) => ({ _tag: "Downloading", receivedBytes, totalBytes: 9e6 }) as const
      const steps = [{ _tag: "Resolving" }, downloading(1e6), downloading(2e6), { _tag: "Assembling" }] as const
      const { code, stderr } = yield* microvm(["image", "build", "default"], {
        images: building(steps, Effect.succeed(image))
      })
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(stderr.slice(0, 3), [
        "asking apt for packages",
        "downloading packages",
        "writing the kernel and the file system"
      ])
      assert.match(stderr[3] ?? "", /^image default built in /)
      assert.lengthOf(stderr, 4)
    }))

  const faults: ReadonlyArray<readonly [reason: ImageError.ImageErrorReason, code: number]> = [
    [ImageError.ImageErrorReason.NoSpace({ path: "/cache" }), 125],
    [ImageError.ImageErrorReason.UnknownImage({ name: "big", known: ["default"] }), 64]
  ]
  it.effect.each(faults)("exits with the code of what is wrong: %j", ([reason, code]) =>
    Effect.gen(function*() {
      const error = ImageError.fromReason(reason)
      const ended = yield* microvm(["image", "build"], { images: imageStore(Effect.fail(error)) })
      assert.strictEqual(ended.code, code)
      assert.deepStrictEqual(ended.stderr, [error.message])
    }))

  it.effect("ends at a signal", () =>
    Effect.gen(function*() {
      const images = building([{ _tag: "Resolving" }], Effect.never)
      assert.strictEqual((yield* microvm(["image", "build"], { images, signal: "SIGINT" })).code, 130)
    }))
})

describe("what is told of a run", () => {
  const report: RunReport = {
    id: "m",
    backend: "qemu",
    backendDetail: "",
    command: ["true"],
    end: { _tag: "Completed", status: ExitStatus.exited(0, "agent") },
    exitCode: 0,
    phases: []
  }
  const common = { stages: [], elapsed: Duration.seconds(8) }
  const survivors = [{ pid: 42, command: "qemu", why: "uninterruptible sleep (D)" }]
  const told: ReadonlyArray<readonly [some: Partial<RunReport>, lines: ReadonlyArray<string>]> = [
    [{}, []],
    [{ end: { _tag: "Completed", status: ExitStatus.exited(127, "agent") } }, []],
    [{ end: { _tag: "Completed", status: ExitStatus.signaled("SIGKILL") } }, ["the command was killed by SIGKILL"]],
    [{ end: { _tag: "Interrupted", signal: "SIGPIPE" } }, []],
    [{ end: { _tag: "Failed", message: "why" } }, ["why"]],
    [
      { shutdown: ShutdownOutcome.ShutdownOutcome.cases.Unkillable.make({ ...common, survivors }) },
      ["the machine could not be ended: still there after 8s: qemu[42] (uninterruptible sleep (D))"]
    ],
    [
      {
        end: { _tag: "Interrupted", signal: "SIGINT" },
        shutdown: ShutdownOutcome.ShutdownOutcome.cases.Survivors.make({
          ...common,
          survivors,
          status: ExitStatus.signaled("SIGKILL")
        })
      },
      [
        "ended by SIGINT",
        "the machine could not be ended: killed by SIGKILL, but left behind: qemu[42] (uninterruptible sleep (D))"
      ]
    ]
  ]
  it.each(told)("%j", (some, lines) => assert.deepStrictEqual(Commands.tell({ ...report, ...some }), lines))
})

describe("run", () => {
  const panicked = "[    0.5] Kernel panic - not syncing: Attempted to kill init!"
  const took = "backend qemu: QEMU 7.2.22 with TCG, since the CPU shows neither vmx nor svm"

  /** A QEMU whose guest serves, and which exits when the guest powers off or panics. */
  const makeQemu = Effect.gen(function*(): Effect.fn.Return<Qemu, never, Scope.Scope> {
    const qmp = yield* FakeQmp.make()
    const over = yield* Deferred.make<void>()
    const exit = (guest: FakeGuestAgent.FakeGuestAgent, reason: string) =>
      qmp.emit("SHUTDOWN", { guest: true, reason }).pipe(
        Effect.andThen(Deferred.succeed(over, undefined)),
        Effect.andThen(Effect.andThen(qmp.close, guest.hangUp))
      )
    const guest: FakeGuestAgent.FakeGuestAgent = yield* FakeGuestAgent.make({
      onShutdown: () => Effect.suspend(() => exit(guest, "guest-shutdown")),
      programs: { panic: () => Effect.suspend(() => Effect.andThen(exit(guest, "guest-panic"), Effect.never)) }
    })
    const names = [GuestAgent.channelName, ...GuestSlots.channelNames(4)]
    const channels = yield* Effect.forEach(names, guest.channel)
    return {
      process: {
        stdout: `${panicked}\r\n`,
        on: { SIGTERM: { exitAfter: "1 millis" }, SIGUSR1: { exitAfter: 0 } },
        channels: new Map([qmp.socket, ...channels].map((socket, index) => [3 + index, socket]))
      },
      onHost: (host) =>
        Effect.gen(function*() {
          yield* Deferred.await(over)
          for (const { pid } of yield* Context.get(host, ScriptedProcess.Driver).table) {
            yield* Effect.ignore(Context.get(host, ProcessHost).kill(pid, "SIGUSR1"))
          }
        }).pipe(Effect.forkScoped, Effect.asVoid)
    }
  })

  it.live("gives the command's output and its code, and says which backend it took", () =>
    Effect.gen(function*() {
      const ended = yield* microvm(["run", "--cold", "--", "cat"], { qemu: yield* makeQemu, stdin: "to and fro\n" })
      assert.deepInclude(ended, { code: 0, patient: true, stdout: "to and fro\n", stderr: [took] })
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("says that an image is built again, and why", () =>
    Effect.gen(function*() {
      const images: ImageStore["Service"] = {
        ...imageStore(Effect.succeed(image)),
        ensure: (_, { onProgress = () => Effect.void } = {}) =>
          Effect.as(onProgress({ _tag: "Rebuilding", why: "its kernel has changed" }), image)
      }
      const ended = yield* microvm(["run", "--cold", "--", "true"], { images, qemu: yield* makeQemu })
      assert.deepInclude(ended, { code: 0, stdout: "", stderr: [took, "building again: its kernel has changed"] })
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("says nothing with --quiet, but what is wrong", () =>
    Effect.gen(function*() {
      const quiet = (...command: ReadonlyArray<string>) =>
        Effect.flatMap(makeQemu, (qemu) => microvm(["run", "-q", "--cold", "--", ...command], { qemu }))
      assert.deepInclude(yield* quiet("exit", "7"), { code: 7, stdout: "", stderr: [] })
      const { code, stderr } = yield* microvm(["run", "--quiet", "--from", "nonesuch", "--", "true"])
      assert.deepStrictEqual([code, stderr], [64, [`There is no snapshot "nonesuch"`]])
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("says less when the backend was named", () =>
    Effect.gen(function*() {
      const ended = yield* microvm(["run", "--cold", "--backend", "qemu", "--", "exit", "7"], { qemu: yield* makeQemu })
      assert.deepInclude(ended, { code: 7, patient: true, stdout: "", stderr: [] })
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("prints a report on stdout with --json, and the command's output elsewhere", () =>
    Effect.gen(function*() {
      const ended = yield* microvm(["run", "--cold", "--name", "web-1", "--json", "--", "echo", "hello"], {
        qemu: yield* makeQemu
      })
      const report = yield* Schema.decodeEffect(Schema.fromJsonString(RunReport))(ended.stdout)
      assert.deepInclude(report, { id: "web-1", backend: "qemu", command: ["echo", "hello"], exitCode: 0 })
      assert.strictEqual(`backend qemu: ${report.backendDetail}`, took)
      assert.deepStrictEqual(report.phases.map(({ name }) => name), ["image", "launch", "boot", "command", "stop"])
      assert.strictEqual(report.shutdown?._tag, "Graceful")
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("that has no place is not to be found in place of the one that has it", () =>
    Effect.gen(function*() {
      const listening: Array<string> = []
      const refused = () => Effect.die(new Error("a run is asked"))
      const { code, stderr } = yield* microvm(["run", "--name", "dev", "--", "true"], {
        control: { listen: (id) => Effect.sync(() => void listening.push(id)), ask: refused, exec: refused },
        runHost: { open: (id) => RunDirectory.fail(new RunDirectory.StillUp({ id })) }
      })
      assert.deepStrictEqual([code, stderr.at(-1), listening], [
        125,
        "machine dev is up: end it first, with microvm stop dev, or name another",
        []
      ])
    }).pipe(Effect.provide(TestConsole.layer)))

  const ends: ReadonlyArray<readonly [args: ReadonlyArray<string>, code: number, told: string]> = [
    [["--timeout", "200ms", "--", "sleep", "60"], 124, "the command did not end within 200ms"],
    [
      ["--", "panic"],
      125,
      `the machine ended before the command: the guest's kernel panicked\n--- the end of its console ---\n  ${panicked}\n---`
    ]
  ]
  it.live.each(ends)("%j tells what was out of order", ([args, code, told]) =>
    Effect.gen(function*() {
      const ended = yield* microvm(["run", "--cold", ...args], { qemu: yield* makeQemu })
      assert.deepInclude(ended, { code, patient: false, stdout: "", stderr: [took, told] })
    }).pipe(Effect.provide(TestConsole.layer)))

  it.live("tells the signal that has ended it", () =>
    Effect.gen(function*() {
      const ended = yield* microvm(["run", "--cold", "--", "sleep", "60"], { qemu: yield* makeQemu, signal: "SIGINT" })
      assert.deepInclude({ ...ended, stderr: ended.stderr.at(-1) }, {
        code: 130,
        patient: false,
        stdout: "",
        stderr: "ended by SIGINT"
      })
    }).pipe(Effect.provide(TestConsole.layer)))
})
