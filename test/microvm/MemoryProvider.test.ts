import { describe, expect, it } from "@effect/vitest"
import { Machine, MachineSpec, MemoryDriver, MemoryProvider, type MicroVmError } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { fork, isDone, pass, quiet, reason, wanted } from "./support.ts"

const host = Effect.provide(MemoryProvider.layer)

const launched = Effect.fnUntraced(function*(script: MemoryDriver.Script = {}) {
  const driver = yield* MemoryDriver.MemoryDriver
  yield* driver.script("*", script)
  const machine = yield* Machine.launch(yield* MachineSpec.decode({ ...wanted("m"), channels: ["a", "b"] }))
  return { driver, machine, guest: yield* driver.guest("m") }
})

const text = (chunks: ReadonlyArray<Uint8Array>) => {
  const decoder = new TextDecoder()
  return chunks.map((chunk) => decoder.decode(chunk, { stream: true })).join("")
}

/** Opens one end of a channel. */
const open = Effect.fnUntraced(function*(socket: Effect.Effect<Socket.Socket, MicroVmError.MicroVmError>) {
  const opened = yield* socket
  return { pull: yield* Socket.readerBytes(opened), writer: yield* opened.writer }
})

const endOf = <A, R>(effect: Effect.Effect<A, Socket.SocketError, R>) =>
  Effect.map(Effect.flip(effect), ({ reason: why }) => "code" in why ? `${why._tag} ${why.code}` : why._tag)

describe("a channel", () => {
  it.effect("carries bytes and text both ways, in order", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const near = yield* open(machine.channel("a"))
      const far = yield* open(guest.channel("a"))
      yield* near.writer.write("to ")
      yield* near.writer.writeAll(["the ", new TextEncoder().encode("guest")])
      expect(text(yield* far.pull)).toBe("to the guest")
      yield* far.writer.write("é")
      expect(text(yield* near.pull)).toBe("é")
    }).pipe(host))

  it.effect("keeps what is written before the other end opens", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const near = yield* open(machine.channel("a"))
      yield* near.writer.write("early")
      expect(text(yield* (yield* open(guest.channel("a"))).pull)).toBe("early")
    }).pipe(host))

  it.effect("holds a writer back whose reader does not read", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const near = yield* open(machine.channel("a"))
      let written = 0
      const writing = yield* fork(Effect.forEach(Array.from({ length: 100 }), () =>
        Effect.tap(near.writer.write("x"), () =>
          Effect.sync(() => {
            written++
          }))))
      yield* quiet
      expect(written).toBe(16)
      const far = yield* open(guest.channel("a"))
      let read = 0
      while (read < 100) {
        read += (yield* far.pull).length
      }
      yield* Fiber.join(writing)
    }).pipe(host))

  it.effect("is closed by either end, in order: what was written is read first", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const far = yield* open(guest.channel("a"))
      const scope = yield* Scope.make()
      const near = yield* Scope.provide(open(machine.channel("a")), scope)
      yield* near.writer.write("last")
      const suspended = yield* fork(endOf(near.pull))
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(suspended)).toBe("SocketCloseError 1000")
      expect(text(yield* far.pull)).toBe("last")
      expect(yield* endOf(far.pull)).toBe("SocketCloseError 1000")
      expect(yield* endOf(far.writer.write("x"))).toBe("SocketWriteError")
    }).pipe(host))

  it.effect("a close event ends both directions with its code", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const near = yield* open(machine.channel("a"))
      const far = yield* open(guest.channel("a"))
      yield* near.writer.write(new Socket.CloseEvent(4000, "bye"))
      expect(yield* endOf(near.pull)).toBe("SocketCloseError 4000")
      expect(yield* endOf(far.pull)).toBe("SocketCloseError 4000")
    }).pipe(host))

  it.effect("ends with the machine, and frees writers that wait for room", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const near = yield* open(machine.channel("a"))
      const far = yield* open(guest.channel("a"))
      yield* far.writer.write("last words")
      const stuck = yield* fork(endOf(Effect.forever(near.writer.write("x"))))
      yield* quiet
      yield* guest.kill("SIGKILL")
      expect(yield* Fiber.join(stuck)).toBe("SocketWriteError")
      expect(text(yield* near.pull)).toBe("last words")
      expect(yield* endOf(near.pull)).toBe("SocketCloseError 1000")
    }).pipe(host))

  it.effect("that the spec does not name is refused, with those it does", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      for (const channel of [machine.channel("c"), guest.channel("c")]) {
        expect(yield* reason(channel)).toMatchObject({ _tag: "ChannelUnavailable", id: "m", known: ["a", "b"] })
      }
    }).pipe(host))
})

describe("the console", () => {
  it.effect("is seen from now on by each reader, and ends with the machine", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      yield* guest.print("before ")
      const first = yield* fork(Stream.runCollect(machine.console))
      yield* guest.print("one ")
      const second = yield* fork(Stream.runCollect(machine.console))
      yield* guest.print("two")
      yield* guest.powerOff
      yield* guest.print("never")
      expect(text(yield* Fiber.join(first))).toBe("one two")
      expect(text(yield* Fiber.join(second))).toBe("two")
      expect(yield* Stream.runCollect(machine.console)).toEqual([])
    }).pipe(host))

  it.effect("keeps the last 64 KiB for whoever asks later", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      for (let line = 0; line < 10_000; line++) yield* guest.print(`line ${line}\n`)
      const tail = yield* machine.consoleTail
      expect(tail.length).toBe(65_536)
      expect(tail.endsWith("line 9998\nline 9999\n")).toBe(true)
      yield* guest.panic
      expect((yield* machine.ended).consoleTail).toBe(tail)
    }).pipe(host))

  it.effect("a reader that is too slow loses the oldest, and holds nobody up", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      const slow = yield* machine.console.pipe(
        Stream.rechunk(1),
        Stream.tap(() => Effect.sleep("1 second")),
        Stream.runCollect,
        fork
      )
      for (let line = 0; line < 1000; line++) yield* guest.print(`${line} `)
      yield* guest.powerOff
      yield* pass("1 hour")
      const seen = text(yield* Fiber.join(slow)).trim().split(" ")
      expect(seen.length).toBeLessThan(300)
      expect(seen.slice(-2)).toEqual(["998", "999"])
    }).pipe(host))
})

describe("a guest's program", () => {
  it.effect("runs from the start to the end of the machine", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched({
        program: (self) => Effect.forever(Effect.andThen(self.print("tick "), Effect.sleep("1 second")))
      })
      yield* pass("3 seconds")
      expect(yield* machine.consoleTail).toBe("")
      yield* machine.start
      yield* pass("2 seconds")
      yield* guest.powerOff
      yield* pass("2 seconds")
      expect(yield* machine.consoleTail).toBe("tick tick tick ")
    }).pipe(host))

  it.effect.each<{ readonly how: string; readonly program: Effect.Effect<void, string>; readonly state: string }>([
    { how: "fails", program: Effect.fail("x"), state: "crashed" },
    { how: "dies", program: Effect.die("x"), state: "crashed" },
    { how: "is done", program: Effect.void, state: "running" }
  ])("that $how leaves its machine $state", ({ program, state }) =>
    Effect.gen(function*() {
      const { machine } = yield* launched({ program: () => program })
      yield* machine.start
      yield* quiet
      expect(yield* machine.state).toBe(state)
    }).pipe(host))

  it.effect("can end the machine itself", () =>
    Effect.gen(function*() {
      const { machine } = yield* launched({
        program: (self) => Effect.andThen(Effect.sleep("1 second"), self.powerOff)
      })
      yield* machine.start
      yield* pass("1 second")
      expect((yield* machine.ended)._tag).toBe("PoweredOff")
      expect(yield* machine.state).toBe("stopped")
    }).pipe(host))
})

describe("the driver", () => {
  it.effect("an id's own script comes before the one for all", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      yield* driver.script("*", { start: Effect.fail("all") })
      yield* driver.script("b", { start: Effect.fail("b") })
      for (const [id, cause] of [["a", "all"], ["b", "b"]] as const) {
        const machine = yield* Machine.launch(yield* MachineSpec.decode(wanted(id)))
        expect(yield* reason(machine.start)).toMatchObject({ cause })
      }
    }).pipe(host))

  it.effect("knows no guest that was not launched", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      expect(yield* reason(driver.guest("m"))).toMatchObject({ _tag: "MachineNotFound", id: "m" })
    }).pipe(host))

  it.effect("an id is held by one life at a time where things are named after it", () =>
    Effect.gen(function*() {
      const { machine } = yield* launched()
      expect(yield* reason(Machine.launch(machine.spec))).toMatchObject({ _tag: "LaunchFailed", stage: "claim" })
    }).pipe(Effect.provide(MemoryProvider.layerWith({ capabilities: { rename: false } }))))

  it.effect("a background effect ends with the machine", () =>
    Effect.gen(function*() {
      const { guest } = yield* launched()
      let ended = false
      yield* guest.background(Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          ended = true
        })))
      expect(ended).toBe(false)
      yield* guest.reboot
      yield* quiet
      expect(ended).toBe(true)
    }).pipe(host))

  it.effect("a panic without a panic device looks like a reboot", () =>
    Effect.gen(function*() {
      const { guest, machine } = yield* launched()
      yield* guest.panic
      expect((yield* machine.ended)._tag).toBe("Reset")
      expect(isDone(yield* fork(machine.ended))).toBe(true)
    }).pipe(Effect.provide(MemoryProvider.layerWith({ capabilities: { panicDetection: false } }))))
})
