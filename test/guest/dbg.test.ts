import { expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
it.effect("dbg", () => Effect.gen(function*() {
  const guest = yield* FakeGuestAgent.make()
  const agent = yield* GuestAgent.make(guest.socket)
  const pid = yield* agent.spawn({ path: "sleep", args: ["60"] })
  const f = yield* Effect.forkChild(Effect.gen(function*() {
    for (let i = 0; i < 100; i++) {
      yield* Effect.sleep(500)
      const a = yield* Clock.currentTimeMillis
      const r = yield* Effect.exit(agent.poll(pid))
      console.log(a, yield* Clock.currentTimeMillis, r._tag, (yield* guest.requests).length, yield* guest.syncs)
      if (r._tag === "Failure") break
    }
  }), { startImmediately: true })
  yield* TestClock.adjust("61 seconds")
  yield* Fiber.join(f)
}))
