import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { watchMachine } from "../../src/cli/internal/watchMachine.ts"
import * as GuestError from "../../src/guest/GuestError.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"

describe("the watchdog of a run", () => {
  it.effect("waits as long for an agent that refuses at once as for one that is silent", () =>
    Effect.gen(function*() {
      const closed = Effect.fail(new GuestError.GuestError({ reason: new GuestError.Closed({ channel: "agent" }) }))
      for (const ping of [closed, Effect.never]) {
        const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "m", kernel: "/kernel" }))
        yield* machine.start
        const hangs: Array<string> = []
        yield* watchMachine().watch(
          { agent: { ping }, machine },
          Duration.seconds(30),
          (why) => Effect.sync(() => void hangs.push(why))
        ).pipe(Effect.forkChild({ startImmediately: true }))
        yield* TestClock.adjust("29 seconds")
        assert.deepStrictEqual(hangs, [])
        yield* TestClock.adjust("2 seconds")
        assert.lengthOf(hangs, 1)
        yield* machine.shutdown()
      }
    }).pipe(Effect.scoped, Effect.provide(MemoryProvider.layer)))
})
