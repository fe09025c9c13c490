import { expect, it } from "@effect/vitest"
import { GuestCommand, GuestError } from "effect-microvm-runtime/guest"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { type Machine, MemoryDriver } from "effect-microvm-runtime/microvm"
import { type FakeGuestAgent, type FakeGuestProgram, FakeWarmMachine } from "effect-microvm-runtime/testing"
import { WarmMachine } from "effect-microvm-runtime/warm"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes)
const script = (...args: ReadonlyArray<string>) => ({ path: "sh", args: ["-c", ...args] })

/** Says what it was told, and stays. */
const sh: FakeGuestProgram.Program = ({ args, write }) =>
  Effect.andThen(write("stdout", `told ${args[1]}\n`), Effect.never)

it.live("a shell of the test's own runs its scripts, and what the agent needs of one is still there", () =>
  Effect.gen(function*() {
    const { agent, slots } = yield* WarmMachine.launch({ id: "m" })
    const command = yield* GuestCommand.run(agent, slots, { command: "sh", args: ["-c", "exit 7"] })
    expect(yield* Stream.mkString(Stream.take(Stream.decodeText(command.stdout), 1))).toBe("told exit 7\n")
    yield* command.kill("SIGTERM")
    expect(ExitStatus.format(yield* command.exit)).toMatch(/SIGTERM/)
  }).pipe(Effect.provide(FakeWarmMachine.layerWith({ programs: { sh } }))))

it.live("without one, a script says what is missing", () =>
  Effect.gen(function*() {
    const { agent } = yield* WarmMachine.launch({ id: "m" })
    const { status, stderr } = yield* agent.exec(script("echo hello"))
    expect(text(stderr)).toMatch(/no scripts: give .* "sh"/)
    expect(ExitStatus.format(status)).toBe("exited with code 2")
  }).pipe(Effect.provide(FakeWarmMachine.layer)))

it.live("its agent powers it off", () =>
  Effect.gen(function*() {
    const { agent, machine } = yield* WarmMachine.launch({ id: "m" })
    yield* agent.powerOff
    expect((yield* machine.ended)._tag).toBe("PoweredOff")
  }).pipe(Effect.provide(FakeWarmMachine.layer)))

it.live("one machine behaves unlike the others", () => {
  const guests = new Map<string, FakeGuestAgent.FakeGuest>()
  const layer = FakeWarmMachine.layerWith({
    programs: { greet: ({ write }) => Effect.as(write("stdout", "hello"), 0) },
    onGuest: (guest, { id }) => Effect.sync(() => void guests.set(id, guest))
  })
  return Effect.gen(function*() {
    const driver = yield* MemoryDriver.MemoryDriver
    yield* driver.script("other", {
      program: FakeWarmMachine.guest({ programs: { greet: ({ write }) => Effect.as(write("stdout", "go away"), 1) } })
    })
    const said = Effect.fnUntraced(function*(id: string) {
      const { agent } = yield* WarmMachine.launch({ id })
      return text((yield* agent.exec({ path: "greet" })).stdout)
    })
    expect(yield* said("one")).toBe("hello")
    expect(yield* said("other")).toBe("go away")
    const requests = yield* guests.get("one")?.requests ?? Effect.succeed([])
    expect(requests.map(({ execute }) => execute)).toContain("guest-exec")
  }).pipe(Effect.provide(layer))
})

it.live("a command whose machine ends fails with how that was, and its output is read to the end", () => {
  const panicking: FakeGuestProgram.Program = ({ write }) =>
    Effect.andThen(write("stdout", "last words\n"), Effect.never)
  return Effect.gen(function*() {
    const driver = yield* MemoryDriver.MemoryDriver
    const broken = new GuestError.GuestError({ reason: new GuestError.Closed({ channel: "agent" }) })
    const after = Effect.fnUntraced(
      function*(id: string, event: (machine: Machine.Machine) => Effect.Effect<unknown, unknown>) {
        const warm = yield* WarmMachine.launch({ id })
        const { exit, stdout } = yield* GuestCommand.run(warm.agent, warm.slots, { command: "panicking" })
        let said = ""
        const read = Stream.runForEach(Stream.decodeText(stdout), (piece) =>
          Effect.andThen(
            Effect.sync(() => {
              said += piece
            }),
            Effect.forkScoped(event(warm.machine))
          ))
        const error = yield* Effect.flip(WarmMachine.whileAlive(warm, Effect.all([exit, read], { concurrency: 2 })))
        expect(said).toBe("last words\n")
        return error.message
      }
    )
    const panics = ({ id }: Machine.Machine) => Effect.flatMap(driver.guest(id), ({ panic }) => panic)
    expect(yield* after("one", panics)).toMatch(/^Machine "one" has ended: the guest's kernel panicked/)
    expect(yield* after("two", (machine) => machine.shutdown())).toBe(
      "Machine \"two\" has ended: the guest powered off"
    )
    // What has other reasons keeps them.
    const warm = yield* WarmMachine.launch({ id: "three" })
    expect(yield* WarmMachine.whileAlive(warm, Effect.succeed(1))).toBe(1)
    expect(yield* Effect.flip(WarmMachine.whileAlive(warm, Effect.fail("full")))).toBe("full")
    expect(yield* Effect.flip(WarmMachine.whileAlive(warm, broken))).toBe(broken)
  }).pipe(Effect.provide(FakeWarmMachine.layerWith({ programs: { panicking } })))
})
