import { it } from "@effect/vitest"
import { Machine, MachineSpec, MemoryDriver, MemoryProvider, MicroVmRuntime } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { fork, isDone, pass, reason, wanted } from "./support.ts"
it.effect("dbg", () => Effect.gen(function*() {
  const driver = yield* MemoryDriver.MemoryDriver
  yield* driver.script("*", { launch: (step) => step === "spawn" ? Effect.never : Effect.void, release: Effect.sleep("1 second").pipe(Effect.onExit((e) => Effect.sync(() => console.log("release", e)))) })
  const created = yield* fork(Effect.flatMap(MachineSpec.decode(wanted("m")), (s) => Machine.launch(s)))
  const interrupt = yield* fork(Fiber.interrupt(created))
  console.log(2, isDone(interrupt), yield* driver.events)
  yield* pass("1 second")
  console.log(3, isDone(interrupt), isDone(created), yield* driver.events)
}).pipe(Effect.provide(MemoryProvider.layer)), 3000)
it.effect("dbg2", () => Effect.gen(function*() {
  const driver = yield* MemoryDriver.MemoryDriver
  const runtime = yield* MicroVmRuntime.make()
  yield* driver.script("*", { launch: (step) => step === "spawn" ? Effect.never : Effect.void, release: Effect.sleep("1 second").pipe(Effect.onExit((e) => Effect.sync(() => console.log("release", e)))) })
  const created = yield* fork(runtime.create(wanted("m")))
  const interrupt = yield* fork(Fiber.interrupt(created))
  console.log(2, isDone(interrupt), yield* driver.events)
  yield* pass("1 second")
  console.log(3, isDone(interrupt), isDone(created), yield* driver.events)
}).pipe(Effect.provide(MemoryProvider.layer)), 3000)
it.effect("dbg3", () => Effect.gen(function*() {
  const body = Effect.uninterruptibleMask((restore) => Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Scope.addFinalizer(scope, Effect.sleep("1 second").pipe(Effect.onExit((e) => Effect.sync(() => console.log("release3", e)))))
    return yield* restore(Effect.never).pipe(Effect.onError((c) => Scope.close(scope, Exit.failCause(c))))
  }))
  const created = yield* fork(body)
  const interrupt = yield* fork(Fiber.interrupt(created))
  console.log(2, isDone(interrupt))
  yield* pass("1 second")
  console.log(3, isDone(interrupt), isDone(created))
  const created2 = yield* fork(Effect.uninterruptibleMask((restore) => restore(body).pipe(Effect.onError(() => Effect.sync(() => console.log("outer"))))))
  const interrupt2 = yield* fork(Fiber.interrupt(created2))
  console.log(2, isDone(interrupt2))
  yield* pass("1 second")
  console.log(3, isDone(interrupt2), isDone(created2))
}))
