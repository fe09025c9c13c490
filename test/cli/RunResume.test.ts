/** Going on with a run that another process has left: its machine is never ended for want of an answer. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Control } from "../../src/cli/Control.ts"
import { RunHost } from "../../src/cli/RunHost.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import { MemoryDriver } from "../../src/microvm/MemoryDriver.ts"
import type * as Supervisor from "../../src/supervisor/Supervisor.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import * as WarmMachine from "../../src/warm/WarmMachine.ts"
import * as MemoryRunHost from "./memoryRunHost.ts"
import { makeHost, optionsOf, start } from "./world.ts"

const command = { pid: 101, slot: 0, nonce: "0".repeat(32) }

/** A machine that another process has left, with the command that was started there. */
const leave = Effect.fnUntraced(
  function*(
    labels: Readonly<Record<string, string>> = { "guest-command": JSON.stringify(command) },
    { attachWithin = 0 }: { readonly attachWithin?: Duration.Input } = {}
  ) {
    const host = yield* makeHost
    const driver = Context.get(host, MemoryDriver)
    const kept = yield* MemoryRunHost.makeKept
    const runHost = MemoryRunHost.layerWith({}, undefined, kept)
    const told: Array<Supervisor.Recovered> = []
    let answers = false
    let ready = 0
    yield* Effect.scoped(Effect.gen(function*() {
      const { supervisor } = yield* RunHost.use(({ open }) => open("m", optionsOf({ detach: true })))
      yield* supervisor.launch({
        id: "m",
        keep: true,
        labels,
        bring: Effect.fnUntraced(function*({ before }) {
          const spec = yield* MachineSpec.decode({ id: "m", kernel: "/kernel", channels: WarmMachine.channels() })
          const machine = yield* Machine.launch(spec, yield* before(spec))
          yield* machine.start
          return { machine }
        })
      })
    })).pipe(Effect.provide(Layer.provideMerge(runHost, Layer.succeedContext(host))))
    const resumed = start({
      host,
      runHost,
      flags: { detach: true },
      // Whoever attaches gets channels of his own.
      provider: (provider) => ({
        ...provider,
        attach: Effect.fnUntraced(function*(spec, options) {
          yield* Effect.sleep(attachWithin)
          const attached = yield* provider.attach(spec, options)
          const guest = yield* FakeGuestAgent.make({
            paused: !answers,
            onShutdown: () => Effect.ignore(Effect.flatMap(driver.guest("m"), ({ powerOff }) => powerOff))
          })
          return { ...attached, vmm: { ...attached.vmm, channel: guest.channel } }
        })
      }),
      context: {
        onStarted: Effect.sync(() => void ready++),
        resume: (one) => Effect.sync(() => void told.push(one))
      }
    })
    return {
      host,
      resumed,
      told,
      reports: kept.reports,
      early: kept.early,
      ready: () => ready,
      answer: () => void (answers = true),
      isThere: Effect.map(driver.claims, (claims) => claims.length === 1)
    }
  }
)

describe("a run that was left", () => {
  it.effect("stays as it is while its guest does not answer, and is gone on with once it does", () =>
    Effect.gen(function*() {
      const { answer, early, isThere, ready, reports, resumed, told } = yield* leave()
      for (let times = 1; times <= 2; times++) {
        const { code, report } = yield* (yield* resumed).end
        assert.deepStrictEqual([code, report.shutdown, yield* isThere], [125, undefined, true])
        assert.deepStrictEqual([told.length, told.at(-1)?.action], [times, "Left"])
        assert.match(told.at(-1)?.why ?? "", /^its process lives, but nobody could go on with it, No guest agent/)
        assert.deepStrictEqual([reports, early, ready()], [[], [], 0])
      }
      answer()
      const { report, stages } = yield* (yield* resumed).end
      assert.deepStrictEqual([report.end._tag, stages], ["Completed", ["guest power-off ended"]])
      assert.deepStrictEqual([ready(), reports.length, told.length, yield* isThere], [1, 1, 2, false])
      // What the guest tells once is told further before its machine is stopped.
      const { end, exitCode } = report
      assert.deepStrictEqual(early.map((one) => [one.end, one.exitCode, one.shutdown]), [[end, exitCode, undefined]])
    }))

  for (const millis of [0, 1, 5000, 14_999]) {
    it.effect(`stays as it is when going on with it is called off, twice, after ${millis} ms`, () =>
      Effect.gen(function*() {
        const { isThere, reports, resumed, told } = yield* leave()
        const second = yield* resumed
        yield* TestClock.adjust(millis)
        yield* second.signal("SIGTERM")
        yield* second.signal("SIGTERM")
        const { code, report } = yield* second.end
        assert.deepStrictEqual([code, report.end._tag, yield* isThere], [143, "Interrupted", true])
        assert.deepStrictEqual([reports, told.map(({ action }) => action)], [[], ["Left"]])
      }))
  }

  it.effect("ends when that is asked for while its guest does not answer", () =>
    Effect.gen(function*() {
      const { host, isThere, reports, resumed } = yield* leave()
      const second = yield* resumed
      yield* TestClock.adjust(1000)
      const asked = yield* Control.use(({ ask }) => ask("m", { _tag: "Stop", force: false })).pipe(
        Effect.provideContext(host),
        Effect.forkChild({ startImmediately: true })
      )
      yield* second.end
      assert.strictEqual((yield* Fiber.join(asked)).outcome?._tag, "Graceful")
      assert.deepStrictEqual([yield* isThere, reports.length], [false, 1])
    }))

  it.effect("is not said to be stopped before anybody has hold of it", () =>
    Effect.gen(function*() {
      const { host, isThere, reports, resumed } = yield* leave(undefined, { attachWithin: "20 seconds" })
      const second = yield* resumed
      yield* TestClock.adjust(1000)
      const error = yield* Effect.flip(Control.use(({ ask }) => ask("m", { _tag: "Stop", force: true }))).pipe(
        Effect.provideContext(host)
      )
      assert.match(error.message, /recover has no hold of it yet/)
      yield* second.end
      assert.deepStrictEqual([yield* isThere, reports.length], [true, 0])
    }))

  it.effect("is ended and told when nobody knows whether its command runs", () =>
    Effect.gen(function*() {
      const { isThere, reports, resumed, told } = yield* leave({})
      const { code } = yield* (yield* resumed).end
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([code, yield* isThere, reports.length], [125, false, 1])
      assert.deepStrictEqual(told.map(({ action, why }) => [action, why]), [
        ["Reclaimed", "its command was about to start, and nobody knows whether it did"]
      ])
      assert.strictEqual(told[0]?.released?.left, 0)
    }))

  it.effect("whose machine has ended is over, and told with all that was removed", () =>
    Effect.gen(function*() {
      const { host, isThere, reports, resumed, told } = yield* leave()
      yield* Effect.flatMap(Context.get(host, MemoryDriver).guest("m"), ({ panic }) => panic)
      const { code } = yield* (yield* resumed).end
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([code, yield* isThere, reports.length, told.length], [125, false, 1, 1])
      assert.deepInclude(told[0], { action: "Reclaimed", why: "its machine has ended" })
      assert.match(told[0]?.end ?? "", /panic/)
      assert.deepStrictEqual(told[0]?.released?.claims.map(({ kind }) => kind), ["held-process", "machine-directory"])
    }))

  it.effect("whose machine ends meanwhile is over", () =>
    Effect.gen(function*() {
      const { isThere, reports, resumed, told } = yield* leave()
      const second = yield* resumed
      yield* TestClock.adjust(1000)
      yield* Effect.flatMap(second.machine, ({ panic }) => panic)
      const { report } = yield* second.end
      assert.deepStrictEqual([report.end._tag, yield* isThere], ["MachineEnded", false])
      assert.deepStrictEqual([reports.length, told], [1, []])
    }))
})
