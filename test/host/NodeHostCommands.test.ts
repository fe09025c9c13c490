import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import { HostCommands, NodeHostCommands } from "../../src/host/index.ts"
import * as CommandRunner from "../../src/host/internal/commandRunner.ts"
import { NodeProcessHost, ProcessHost } from "../../src/process/index.ts"
import { isAlive, runWith } from "./fakePrograms.ts"

const command = { program: "ip", args: [], input: undefined, what: "a test", within: "5 seconds" } as const

describe("NodeHostCommands", () => {
  const withHost = <A, E>(test: Effect.Effect<A, E, ProcessHost.ProcessHost>) =>
    Effect.provide(test, NodeProcessHost.layer)

  it.live("a program reads its input, and gives its output, in an environment that is always the same", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { run } = yield* runWith({ ip: "cat; echo \"$LC_ALL $LANG $1\"; echo noise >&2" })
      const input = "line\n".repeat(100_000)
      expect(yield* run({ ...command, args: ["a b"], input })).toBe(`${input}C  a b\n`)
    }))))

  it.live("resize2fs is the one that a variable names, if any", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const scripts = { resize2fs: "echo that of the host", mine: "echo mine $1" }
      const resize = { ...command, program: "resize2fs", args: ["disk"] } as const
      for (
        const [named, expected] of [["mine", "mine disk\n"], ["", "that of the host\n"]] as const
      ) {
        const { run } = yield* runWith(scripts, { MICROVM_RESIZE2FS_BIN: named })
        expect(yield* run(resize)).toBe(expected)
      }
      const { run } = yield* runWith(scripts, { MICROVM_RESIZE2FS_BIN: "/nowhere/resize2fs" })
      expect((yield* Effect.flip(run(resize))).message).toContain("/nowhere/resize2fs")
    }))))

  it.live("a failure says how it ended, what it said, and at which line", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { run } = yield* runWith({ ip: "echo Cannot find device >&2; echo 'Command failed -:2' >&2; exit 1" })
      const { message } = yield* Effect.flip(run({ ...command, input: "first\nsecond\n" }))
      expect(message).toBe("a test: ip exited with code 1 at \"second\": Cannot find device\nCommand failed -:2")
    }))))

  it.live("a program that reads nothing, and writes without end to stderr, is no trouble", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { run } = yield* runWith({ ip: "exec 0<&-; head -c 10000000 /dev/zero >&2; exit 3" })
      const { reason } = yield* Effect.flip(run({ ...command, input: "x".repeat(1_000_000) }))
      expect(reason).toMatchObject({ _tag: "CommandFailed", status: "exited with code 3" })
      if (reason._tag === "CommandFailed") expect(reason.stderr.length).toBe(16_384)
    }))))

  it.live("more output than can be meant is refused", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { run } = yield* runWith({ ip: "head -c 67108865 /dev/zero" })
      const { message } = yield* Effect.flip(run(command))
      expect(message).toBe("a test: ip wrote more than 67108864 bytes")
    }))))

  it.live("one that hangs is killed, and told", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { directory, run } = yield* runWith({ ip: "echo $$ > \"$0.pid\"; trap '' TERM; exec sleep 60" })
      const { message } = yield* Effect.flip(run({ ...command, within: "300 millis" }))
      expect(message).toBe("a test: ip did not end within 300ms")
      expect(isAlive(Number(NodeFs.readFileSync(`${directory}/ip.pid`, "utf8")))).toBe(false)
    }))))

  it.live("an interruption kills it, and waits until it is gone", () =>
    withHost(Effect.scoped(Effect.gen(function*() {
      const { directory, run } = yield* runWith({
        ip: "echo $$ > \"$0.pid.tmp\"; mv \"$0.pid.tmp\" \"$0.pid\"; exec sleep 60"
      })
      const fiber = yield* Effect.forkChild(run({ ...command, within: "1 minute" }))
      const file = `${directory}/ip.pid`
      for (let tries = 0; tries < 500 && !NodeFs.existsSync(file); tries++) yield* Effect.sleep("10 millis")
      const pid = Number(NodeFs.readFileSync(file, "utf8"))
      expect(isAlive(pid)).toBe(true)
      yield* Fiber.interrupt(fiber)
      expect(isAlive(pid)).toBe(false)
    }))))

  it.live("a program that is not there is Unavailable, with the package that has it", () =>
    withHost(Effect.gen(function*() {
      const host = yield* ProcessHost.ProcessHost
      const { run: nowhere } = CommandRunner.make({
        ...host,
        locate: (request) => host.locate({ ...request, path: "/no-such" })
      }, [])
      const { message } = yield* Effect.flip(nowhere(command))
      expect(message).toContain("ip cannot be had, a test needs it")
      expect(message).toContain("install iproute2")
    })))

  it.live("programs for root are found without them in PATH", () =>
    Effect.gen(function*() {
      const { run } = yield* HostCommands.HostCommands
      const said = yield* run({ program: "resize2fs", args: ["/no-such-file"], what: "a test" }).pipe(Effect.flip)
      expect(said.message).toContain("/no-such-file")
    }).pipe(Effect.provide(Layer.fresh(NodeHostCommands.layer))))
})
