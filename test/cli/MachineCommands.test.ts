/** `microvm ps`, `logs`, `wait`, `stop`, `exec` and `rm`, over real directories and a run in memory. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Command from "effect/cli/Command"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Schema from "effect/Schema"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as NodeFs from "node:fs"
import * as Control from "../../src/cli/Control.ts"
import type * as ControlRequest from "../../src/cli/ControlRequest.ts"
import { ExitWith } from "../../src/cli/internal/handlers.ts"
import { serveMachine } from "../../src/cli/internal/serveMachine.ts"
import * as MachineCommands from "../../src/cli/MachineCommands.ts"
import { Reporter } from "../../src/cli/Reporter.ts"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import * as RunLog from "../../src/cli/RunLog.ts"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import type { ShutdownOutcome } from "../../src/lifecycle/ShutdownOutcome.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import { infoOf, kill, leaveRecord, makeState, reportOf } from "./runs.ts"
import { broken, makeSignals, Written } from "./world.ts"

interface Given {
  readonly stdin?: Stdio.Stdio["stdin"]
  readonly stdout?: Stdio.Stdio["stdout"]
  readonly isTerminal?: boolean
  readonly env?: Record<string, string>
}

/** A host with a state directory, on which runs can be reached. */
const makeHost = Effect.gen(function*() {
  const state = yield* makeState
  const signals = yield* makeSignals
  const services = yield* Layer.build(
    Layer.mergeAll(NodeServices.layer, NodeProcessHost.layer, Control.Control.layerMemory, signals.layer)
  )
  const here = Effect.provideContext(services)
  /** `microvm` with these arguments. */
  const microvm = Effect.fnUntraced(function*(args: ReadonlyArray<string>, given: Given = {}) {
    const [stdout, stderr] = [new Written(), new Written()]
    const lines: Array<string> = []
    const main = Command.make("microvm").pipe(Command.withSubcommands(MachineCommands.subcommands))
    const { code } = yield* Command.runWith(main, { version: "1.2.3" })(args).pipe(
      Effect.andThen(Effect.flatMap(ExitWith, Ref.get)),
      Effect.provide(
        Layer.mergeAll(
          ExitWith.layer,
          Reporter.layerMemory(lines),
          ConfigProvider.layer(ConfigProvider.fromEnv({ env: { MICROVM_STATE_DIR: state, ...given.env } })),
          Stdio.layerTest({
            stdin: given.stdin ?? Stream.empty,
            stdout: given.stdout ?? stdout.sink,
            stdoutIsTerminal: Effect.succeed(given.isTerminal === true),
            stderr: stderr.sink
          })
        )
      ),
      here
    )
    return { code, lines, stdout, stderr }
  })
  return { state, microvm, here, signals }
})

const isGraceful: ShutdownOutcome = {
  _tag: "Graceful",
  stages: [],
  elapsed: Duration.seconds(1),
  status: ExitStatus.exited(0),
  stage: "guest power-off"
}

/** A run with a guest. It is over once it was stopped. */
const startRun = Effect.fnUntraced(function*(
  { here, state }: Effect.Success<typeof makeHost>,
  id: string,
  options: FakeGuestAgent.Options & { readonly slots?: number; readonly outcome?: ShutdownOutcome } = {}
) {
  const guest = yield* FakeGuestAgent.make(options)
  const agent = yield* GuestAgent.make(guest.socket)
  const slots = yield* GuestSlots.fromChannels(options.slots ?? 2, guest.channel)
  const stops: Array<unknown> = []
  yield* here(RunDirectory.begin(state, infoOf(id)))
  const control = yield* here(Control.Control)
  yield* control.listen(
    id,
    serveMachine({
      look: () => ({ agent, slots }),
      phase: () => "running",
      save: () => Effect.succeed<ControlRequest.Answer>({ _tag: "Refused", reason: "Failed", message: "no" }),
      stop: (how) =>
        Effect.gen(function*() {
          stops.push(how)
          yield* here(RunDirectory.conclude(state, reportOf(id, 143)))
          return options.outcome ?? isGraceful
        }).pipe(Effect.orDie)
    })
  )
  return { guest, slots, stops, control }
})

describe("exec", () => {
  it.live("runs a command in a machine, with its streams and its exit code", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { guest, slots } = yield* startRun(host, "dev", {
        programs: {
          both: ({ env, write }) => Effect.as(Effect.andThen(write("stdout", env["K"] ?? ""), write("stderr", "e")), 7)
        },
        directories: ["/srv"]
      })
      const ended = yield* host.microvm(["exec", "--env", "K=V=W", "d", "--", "both"])
      assert.deepStrictEqual([ended.code, ended.stdout.text, ended.stderr.text, ended.lines], [7, "V=W", "e", []])
      const cat = yield* host.microvm(["exec", "dev", "--", "cat"], { stdin: Stream.encodeText(Stream.make("a", "b")) })
      assert.deepStrictEqual([cat.code, cat.stdout.text], [0, "ab"])
      assert.strictEqual((yield* host.microvm(["exec", "--workdir", "/srv", "dev", "--", "pwd"])).stdout.text, "/srv\n")
      const ours = yield* host.microvm(["exec", "-e", "K", "-w", "/srv", "dev", "--", "both"], { env: { K: "a=b" } })
      assert.deepStrictEqual([ours.code, ours.stdout.text, ours.lines], [7, "a=b", []])
      assert.strictEqual((yield* host.microvm(["exec", "dev", "--", "nonesuch"])).code, 127)
      assert.deepStrictEqual(yield* guest.running, [])
      assert.strictEqual((yield* slots.usage).free, 2)
    }))

  it.live("passes signals on, and tells what they did", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { guest } = yield* startRun(host, "dev")
      const running = yield* Effect.forkChild(host.microvm(["exec", "dev", "--", "sleep", "1000"]), {
        startImmediately: true
      })
      while ((yield* guest.running).length === 0) yield* Effect.sleep("10 millis")
      yield* host.signals.send("SIGTERM")
      const { code, lines } = yield* Effect.timeout(Fiber.join(running), "10 seconds")
      assert.deepStrictEqual([code, lines], [143, ["the command was killed by SIGTERM"]])
    }))

  it.live("whose stdout breaks kills the command, and ends as shells have it", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { guest } = yield* startRun(host, "dev", {
        programs: { yes: ({ write }) => Effect.forever(write("stdout", "y\n")) }
      })
      const { code, lines } = yield* host.microvm(["exec", "dev", "--", "yes"], {
        stdout: () => Sink.fail(broken("stdout", "EPIPE"))
      })
      assert.deepStrictEqual([code, lines], [141, []])
      for (let i = 0; (yield* guest.running).length > 0; i++) {
        assert.isBelow(i, 500)
        yield* Effect.sleep("10 millis")
      }
    }))

  it.live("has as many commands as the machine has slots", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { control, slots } = yield* startRun(host, "dev", { slots: 1 })
      yield* slots.take
      const { code, lines } = yield* host.microvm(["exec", "dev", "--", "true"])
      assert.strictEqual(code, 1)
      assert.match(lines.join(), /slot/)
      const status = yield* control.ask("dev", { _tag: "Status" })
      assert.deepStrictEqual(status, {
        _tag: "Up",
        phase: "running",
        slots: { free: 0, inUse: 1, retired: 0 }
      })
    }))

  const faults: ReadonlyArray<readonly [args: ReadonlyArray<string>, told: RegExp]> = [
    [["dev"], /^no command: write it after --, as in microvm exec ID -- uname -a$/],
    [["dev", "--", ""], /^the command is empty/],
    [["dev", "--", "a\0b"], /^the command holds a NUL byte: remove it$/],
    [
      ["--env", "TOKEN", "dev", "--", "true"],
      /^--env TOKEN has no value: write TOKEN=VALUE, or set TOKEN in our environment$/
    ],
    [["--env", "1=hush", "dev", "--", "true"], /^--env name "1" is not valid/],
    [["--workdir", "", "--env", "x", "dev", "--", "true"], /^--env x has no value.*,--workdir is empty/]
  ]
  it.live.each(faults)("of %j is a wrong command line", ([args, told]) =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { code, lines } = yield* host.microvm(["exec", ...args])
      assert.strictEqual(code, 64)
      assert.match(lines.join(), told)
    }))

  it.live("needs a machine that is up", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const exec = Effect.fnUntraced(function*(id: string) {
        const { code, lines } = yield* host.microvm(["exec", id, "--", "true"])
        return [code, ...lines]
      })
      assert.deepStrictEqual(yield* exec("dev"), [1, "there is no machine \"dev\": there is none"])
      yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
      // It has no supervisor that listens.
      assert.deepStrictEqual(yield* exec("dev"), [1, "no machine dev runs here: there is none that can be reached"])
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 3)))
      assert.deepStrictEqual(yield* exec("dev"), [1, "machine dev has ended, with exit code 3: see microvm logs dev"])
      yield* host.here(RunDirectory.begin(host.state, infoOf("left")))
      yield* host.here(leaveRecord(host.state, "left"))
      yield* host.here(kill(host.state, "left"))
      assert.match((yield* exec("left")).join(), /^1,machine left was left behind .*: .*microvm recover$/)
    }))
})

describe("ps", () => {
  it.live("lists those that are up or left behind, and with -a those that are over", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const begin = (id: string) =>
        Effect.andThen(host.here(RunDirectory.begin(host.state, infoOf(id))), Effect.sleep(5))
      yield* begin("over")
      yield* host.here(RunDirectory.conclude(host.state, reportOf("over", 7)))
      yield* begin("up")
      yield* begin("left")
      yield* host.here(leaveRecord(host.state, "left"))
      yield* host.here(kill(host.state, "left"))
      const rows = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
        const { code, stdout } = yield* host.microvm(["ps", ...args])
        assert.strictEqual(code, 0)
        return stdout.text.trimEnd().split("\n").map((line) =>
          line.split(/ {2,}/).filter((cell) => !/^\d+ s$/.test(cell))
        )
      })
      const common = ["memory", "default", "1", "256 MiB"]
      const up = ["up", "up", ...common, "sh -c echo hello"]
      const left = ["left", "left behind: microvm recover", ...common, "10.0.0.1", "sh -c echo hello"]
      assert.deepStrictEqual((yield* rows()).slice(1), [up, left])
      assert.deepStrictEqual((yield* rows("-a")).slice(1), [
        ["over", "over, exit code 7", ...common, "sh -c echo hello"],
        up,
        left
      ])
      assert.strictEqual((yield* host.microvm(["ps", "-q"])).stdout.text, "up\nleft\n")
      assert.strictEqual((yield* host.microvm(["ps", "-q", "--json"])).code, 64)
      const { stdout } = yield* host.microvm(["ps", "-a", "--json"])
      const listed = yield* Schema.decodeEffect(
        Schema.fromJsonString(Schema.Array(MachineCommands.Listed)),
        { onExcessProperty: "error" }
      )(stdout.text)
      assert.deepStrictEqual(listed.map(({ exitCode, id, state }) => [id, state, exitCode]), [
        ["over", "over", 7],
        ["up", "up", undefined],
        ["left", "left behind", undefined]
      ])
      assert.strictEqual(listed[2]?.address, "10.0.0.1")
    }))

  it.live("of nothing is a head without rows, and an empty list", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      assert.match((yield* host.microvm(["ps"])).stdout.text, /^ID +STATE .*\n$/)
      assert.strictEqual((yield* host.microvm(["ps", "--json"])).stdout.text, "[]\n")
      assert.strictEqual((yield* host.microvm(["ps", "-q"])).stdout.text, "")
    }))

  it("keeps a command to its column", () => {
    const listed = { id: "m", state: "up", backend: "b", image: "i", vcpus: 1, memoryMib: 1, startedAt: "" } as const
    const text = MachineCommands.format([{ ...listed, command: ["a\nb\u001B[2J", "x".repeat(100)] }], 0)
    assert.strictEqual(text.split("\n").length, 2)
    assert.match(text, /a\\nb\\u001b\[2J x+…$/)
  })
})

describe("logs", () => {
  const withLogs = Effect.gen(function*() {
    const host = yield* makeHost
    const { directory } = yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
    const open = (name: "output" | "console", maxBytes?: number) =>
      host.here(RunLog.open({ directory, name }, { maxBytes }))
    return { host, open }
  })
  const bytes = (text: string) => new TextEncoder().encode(text)

  it.live("prints what there is, of the command or of the console, also after the end", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      const output = yield* open("output")
      yield* output.write(bytes("one\ntwo\nthree\n"))
      yield* (yield* open("console")).write(bytes("Linux\n"))
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 0)))
      const logs = (...args: ReadonlyArray<string>) =>
        Effect.map(host.microvm(["logs", ...args, "dev"]), ({ code, stdout }) => [code, stdout.text])
      assert.deepStrictEqual(yield* logs(), [0, "one\ntwo\nthree\n"])
      assert.deepStrictEqual(yield* logs("--tail", "2"), [0, "two\nthree\n"])
      assert.deepStrictEqual(yield* logs("--console"), [0, "Linux\n"])
      assert.deepStrictEqual(yield* logs("-f"), [0, "one\ntwo\nthree\n"])
    }))

  it.live("give a file every byte, and a terminal what does not steer it", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      const written = "\u001B[31mred\u001B[0m\u001B[2J\u009B1A\n"
      yield* (yield* open("output")).write(bytes(written))
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 0)))
      assert.strictEqual((yield* host.microvm(["logs", "dev"])).stdout.text, written)
      assert.strictEqual(
        (yield* host.microvm(["logs", "dev"], { isTerminal: true })).stdout.text,
        "\u001B[31mred\u001B[0m\\u{1b}[2J\\u{9b}1A\n\u001B[0m"
      )
    }))

  it.live("of a run in the foreground are said to be none", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      yield* host.here(RunDirectory.begin(host.state, { ...infoOf("dev"), detached: false }))
      const { code, lines, stdout } = yield* host.microvm(["logs", "dev"])
      const told = "machine dev is not in the background: what it writes is not kept"
      assert.deepStrictEqual([code, lines, stdout.text], [0, [told], ""])
    }))

  it.live("tells what is gone", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      yield* (yield* open("output", 10)).write(bytes("0123456789".repeat(5)))
      const { lines, stdout } = yield* host.microvm(["logs", "dev"])
      assert.deepStrictEqual([stdout.text, lines], [
        "01234567890123456789",
        ["30 bytes that came before are not kept any more"]
      ])
    }))

  it.live("follows until the run is over, while files come and go", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      const log = yield* open("output", 20)
      const following = yield* Effect.forkChild(host.microvm(["logs", "-f", "dev"]), { startImmediately: true })
      let all = ""
      for (let i = 0; i < 10; i++) {
        const line = `line ${i}\n`
        all += line
        yield* log.write(bytes(line))
        yield* Effect.sleep("450 millis")
      }
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 0)))
      const { code, lines, stdout } = yield* Effect.timeout(Fiber.join(following), "10 seconds")
      assert.deepStrictEqual([code, lines, stdout.text], [0, [], all])
    }), 180_000)

  it.live("stops to follow what was left behind, and says so", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      yield* (yield* open("output")).write(bytes("some"))
      yield* host.here(leaveRecord(host.state, "dev"))
      yield* host.here(kill(host.state, "dev"))
      const { code, lines, stdout } = yield* host.microvm(["logs", "-f", "dev"])
      assert.deepStrictEqual([code, stdout.text], [1, "some"])
      assert.match(lines.join(), /left behind/)
    }))

  it.live("of no machine, or of less than no lines, are refused; a reader who goes away is no fault", () =>
    Effect.gen(function*() {
      const { host, open } = yield* withLogs
      assert.strictEqual((yield* host.microvm(["logs", "nonesuch"])).code, 1)
      const { code, lines } = yield* host.microvm(["logs", "--tail", "-1", "dev"])
      assert.deepStrictEqual([code, lines], [64, ["--tail -1 is not possible: give 0 or more"]])
      yield* (yield* open("output")).write(bytes("some"))
      const cut = yield* host.microvm(["logs", "dev"], { stdout: () => Sink.fail(broken("stdout", "EPIPE")) })
      assert.deepStrictEqual([cut.code, cut.lines], [141, []])
    }))
})

describe("wait", () => {
  it.live("waits for the end, prints the exit codes and exits with the last", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      for (const id of ["one", "two"]) yield* host.here(RunDirectory.begin(host.state, infoOf(id)))
      const waiting = yield* Effect.forkChild(host.microvm(["wait", "two", "one"]), { startImmediately: true })
      yield* host.here(RunDirectory.conclude(host.state, reportOf("one", 7)))
      yield* Effect.sleep("500 millis")
      assert.isUndefined(waiting.pollUnsafe())
      yield* host.here(RunDirectory.conclude(host.state, reportOf("two", 3)))
      const { code, stdout } = yield* Effect.timeout(Fiber.join(waiting), "10 seconds")
      assert.deepStrictEqual([code, stdout.text], [7, "3\n7\n"])
      const json = yield* host.microvm(["wait", "--json", "two"])
      assert.strictEqual(json.code, 3)
      const report = yield* Schema.decodeEffect(Schema.fromJsonString(RunReport))(json.stdout.text)
      assert.deepStrictEqual(report, reportOf("two", 3))
    }))

  it.live(
    "does not take another run for one that was removed meanwhile, whose id begins as that one's",
    () =>
      Effect.gen(function*() {
        const host = yield* makeHost
        const { directory } = yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
        yield* host.here(RunDirectory.begin(host.state, infoOf("dev-2")))
        const waiting = yield* Effect.forkChild(host.microvm(["wait", "dev"]), { startImmediately: true })
        const following = yield* Effect.forkChild(host.microvm(["logs", "-f", "dev"]), { startImmediately: true })
        yield* Effect.sleep("500 millis")
        NodeFs.rmSync(directory, { recursive: true })
        const { code, lines } = yield* Effect.timeout(Fiber.join(waiting), "5 seconds")
        assert.deepStrictEqual([code, lines], [1, ["there is no machine \"dev\": there is dev-2"]])
        assert.strictEqual((yield* Effect.timeout(Fiber.join(following), "5 seconds")).code, 0)
      }),
    180_000
  )

  it.live("does not wait for what nobody will bring to its end", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      assert.strictEqual((yield* host.microvm(["wait", "nonesuch"])).code, 1)
      yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
      yield* host.here(kill(host.state, "dev"))
      assert.strictEqual((yield* host.microvm(["wait", "dev"])).code, 125)
      yield* host.here(leaveRecord(host.state, "dev"))
      const { code, lines } = yield* host.microvm(["wait", "dev"])
      assert.strictEqual(code, 1)
      assert.match(lines.join(), /left behind/)
      // It has ended, though not all of it could be removed.
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 7)))
      assert.strictEqual((yield* host.microvm(["wait", "dev"])).code, 7)
    }))

  it.live("ends at a signal", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
      yield* host.signals.send("SIGINT")
      assert.strictEqual((yield* host.microvm(["wait", "dev"])).code, 130)
    }))
})

describe("stop and rm", () => {
  it.live("end machines, in the way that was asked for, and forget them", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const [one, two] = [yield* startRun(host, "one"), yield* startRun(host, "two")]
      assert.strictEqual((yield* host.microvm(["rm", "one"])).code, 1)
      const { code, lines, stdout } = yield* host.microvm(["stop", "--grace", "2s", "one", "two"])
      assert.deepStrictEqual([code, lines, stdout.text.split("\n").toSorted()], [0, [], ["", "one", "two"]])
      const how = [{ grace: Duration.seconds(2), force: false }]
      assert.deepStrictEqual([one.stops, two.stops], [how, how])
      // What has ended has ended.
      assert.strictEqual((yield* host.microvm(["stop", "--force", "one"])).code, 0)
      assert.strictEqual(one.stops.length, 1)
      assert.strictEqual((yield* host.microvm(["rm", "one", "two"])).code, 0)
      assert.deepStrictEqual(yield* host.here(RunDirectory.all(host.state)), [])
    }))

  it.live("tell of a machine that could not be ended, of those that are not there, and go on", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const outcome: ShutdownOutcome = { _tag: "Unkillable", stages: [], elapsed: Duration.seconds(9), survivors: [] }
      const stuck = yield* startRun(host, "stuck", { outcome })
      const { stops } = yield* startRun(host, "well")
      const { code, lines } = yield* host.microvm(["stop", "--force", "nonesuch", "stuck", "well"])
      assert.strictEqual(code, 125)
      assert.strictEqual(lines.length, 2)
      assert.match(
        lines.toSorted().join(),
        /^machine stuck could not be ended: still there after 9s,there is no machine/
      )
      const how = [{ grace: undefined, force: true }]
      assert.deepStrictEqual([stuck.stops, stops], [how, how])
    }))

  it.live("of a run that ends by itself meanwhile is done", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      yield* host.here(RunDirectory.begin(host.state, infoOf("dev")))
      const asked = yield* Deferred.make<void>()
      const control = yield* host.here(Control.Control)
      const listening = yield* Effect.forkChild(
        Effect.scoped(Effect.andThen(
          control.listen("dev", () => Effect.andThen(Deferred.succeed(asked, undefined), Effect.never)),
          Deferred.await(asked)
        )),
        { startImmediately: true }
      )
      const stopping = yield* Effect.forkChild(host.microvm(["stop", "dev"]), { startImmediately: true })
      yield* Deferred.await(asked)
      yield* host.here(RunDirectory.conclude(host.state, reportOf("dev", 0)))
      yield* Fiber.join(listening)
      assert.strictEqual((yield* Fiber.join(stopping)).code, 0)
    }))

  const faults: ReadonlyArray<readonly [args: ReadonlyArray<string>, told: string]> = [
    [["--grace", "soon", "dev"], "--grace \"soon\" is no duration: write 500ms, 30s, 5m or 2h"],
    [["--grace", "1s", "--force", "dev"], "--grace and --force exclude each other: leave one of them out"]
  ]
  it.live.each(faults)("of %j is a wrong command line", ([args, told]) =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const { code, lines } = yield* host.microvm(["stop", ...args])
      assert.deepStrictEqual([code, lines], [64, [told]])
    }))
})
