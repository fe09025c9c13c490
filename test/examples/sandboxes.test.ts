/** How to test a program with machines: guests in memory, a supervisor without a host, virtual time. */
import { expect, it } from "@effect/vitest"
import { MemoryDriver } from "effect-microvm-runtime/microvm"
import { type FakeGuestProgram, FakeSupervisor, FakeWarmMachine } from "effect-microvm-runtime/testing"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Routes } from "../../examples/sandbox-routes.ts"
import { Sandboxes } from "../../examples/sandboxes.ts"

const begun: Array<string> = []

/** A script of these is `exit CODE` or `hang`. */
const sh: FakeGuestProgram.Program = Effect.fnUntraced(function*({ args: [, script = ""], write }) {
  begun.push(script)
  yield* write("stdout", `${script}\n`)
  return script === "hang" ? yield* Effect.never : Number(script.split(" ")[1])
})

const make = (settings: Readonly<Record<string, string>>) =>
  Sandboxes.layer.pipe(
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(settings))),
    Layer.provide(FakeSupervisor.layer),
    Layer.provideMerge(FakeWarmMachine.layerWith({ programs: { sh } }))
  )
const live = make({})

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** Lets virtual time pass until it is done. */
const settle = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* fork(effect)
  for (let turn = 0; turn < 100 && fiber.pollUnsafe() === undefined; turn++) yield* TestClock.adjust("500 millis")
  return yield* Fiber.join(fiber)
})

const runs = Effect.map(Sandboxes, ({ run }) => (script: string) => Stream.unwrap(run(script)))

const killed = Effect.map(
  MemoryDriver.MemoryDriver.use(({ events }) => events),
  (events) => events.filter(({ id, what }) => id.startsWith("sandbox-") && what === "Kill").map(({ id }) => id)
)

it.effect("each script has a machine of its own, which is gone with it", () =>
  Effect.gen(function*() {
    const run = yield* runs
    for (const code of [0, 7]) {
      expect(yield* settle(Stream.runCollect(run(`exit ${code}`)))).toEqual([
        { event: "stdout", data: `exit ${code}\n` },
        { event: "exit", data: `exited with code ${code}` }
      ])
    }
    expect(new Set(yield* killed).size).toBe(2)
  }).pipe(Effect.provide(live)))

it.effect("who takes too long is told so", () =>
  Effect.gen(function*() {
    const run = yield* runs
    expect((yield* settle(Effect.flip(Stream.runDrain(run("hang"))))).message).toBe("it took longer than 10s")
    expect((yield* killed).length).toBe(1)
  }).pipe(Effect.provide(live)))

it.effect("a script that ends its machine is told how that was", () =>
  Effect.gen(function*() {
    const run = yield* runs
    const driver = yield* MemoryDriver.MemoryDriver
    const panic = Effect.flatMap(driver.guest("sandbox-1"), (guest) => guest.panic)
    const panics = Stream.tap(run("hang"), () => panic)
    expect((yield* settle(Effect.flip(Stream.runDrain(panics)))).message).toMatch(/the guest's kernel panicked/)
  }).pipe(Effect.provide(make({ SANDBOX_READY: "0", SANDBOX_MOST: "1" }))))

it.effect("who hangs up ends it", () =>
  Effect.gen(function*() {
    const run = yield* runs
    expect(yield* settle(Stream.runCollect(Stream.take(run("hang"), 1)))).toEqual([{ event: "stdout", data: "hang\n" }])
    expect((yield* killed).length).toBe(1)
  }).pipe(Effect.provide(live)))

it.effect("who finds no place to wait in is told to come back, at once", () =>
  Effect.gen(function*() {
    const app = yield* HttpRouter.toHttpEffect(Routes)
    const post = (body: string) =>
      Effect.gen(function*() {
        const { body: told, headers, status } = yield* app
        const text = told._tag === "Stream" ? yield* Stream.mkString(Stream.decodeText(told.stream)) : ""
        return { status, retryAfter: headers["retry-after"], text }
      }).pipe(
        Effect.scoped,
        Effect.provideService(
          HttpServerRequest.HttpServerRequest,
          HttpServerRequest.fromWeb(new Request("http://sandboxes/run", { method: "POST", body }))
        )
      )
    const before = begun.length
    const first = yield* fork(post("hang"))
    // It has its machine.
    for (let turn = 0; turn < 100 && begun.length === before; turn++) yield* TestClock.adjust("100 millis")
    const others = yield* Effect.forEach([1, 2, 3], () => fork(post("exit 0")))
    const answers = yield* settle(Effect.forEach([first, ...others], (fiber) => Fiber.join(fiber)))
    expect(answers.map(({ retryAfter, status }) => [status, retryAfter])).toEqual([
      [200, undefined],
      [200, undefined],
      [503, "10"],
      [503, "10"]
    ])
    expect(answers[0]?.text).toContain("it took longer than 10s")
    expect(answers[1]?.text).toContain("exited with code 0")
  }).pipe(Effect.scoped, Effect.provide(make({ SANDBOX_READY: "1", SANDBOX_MOST: "1", SANDBOX_WAITING: "1" }))))
