import { expect, it } from "@effect/vitest"
import { Journal } from "effect-microvm-runtime/journal"
import { MemoryProvider } from "effect-microvm-runtime/microvm"
import { NodeProcessHost, ProcessHolder } from "effect-microvm-runtime/process"
import { Resources, Supervisor } from "effect-microvm-runtime/supervisor"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Path from "effect/Path"

/** A host without control groups: machines have no limits there. */
const bare = Supervisor.layerWith({}).pipe(
  Layer.provide([Journal.layerMemory(), Layer.mock(ProcessHolder.ProcessHolder)({}), MemoryProvider.layer]),
  Layer.provideMerge([FileSystem.layerNoop({}), Path.layer, NodeProcessHost.layer])
)

it.effect("that a host lacks limits is said once, and again for others, and again by the next layer", () => {
  const warnings: Array<string> = []
  const logger = Logger.make(({ message }) => {
    warnings.push(String(message))
  })
  const run = Effect.gen(function*() {
    const { launch } = yield* Supervisor.Supervisor
    for (
      const [id, limits] of [
        ["web-1", { memoryMib: 448 }],
        ["web-2", { memoryMib: 512 }],
        ["web-3", { memoryMib: 448, pids: 100 }],
        ["web-4", { memoryMib: 448, pids: 200 }]
      ] as const
    ) {
      const resources = [Resources.limits(limits)]
      expect(yield* Effect.flip(launch({ id, resources, bring: () => Effect.fail("enough") }))).toBe("enough")
    }
  }).pipe(Effect.scoped)
  // Nothing holds machines here, so that each is also said to be left.
  const told = () =>
    warnings.flatMap((text) => /^machine "(.+)" and those like it run without/.exec(text)?.slice(1) ?? [])
  return Effect.gen(function*() {
    yield* Effect.provide(run, Layer.fresh(bare))
    expect(told()).toEqual(["web-1", "web-3"])
    yield* Effect.provide(run, Layer.fresh(bare))
    expect(told()).toEqual(["web-1", "web-3", "web-1", "web-3"])
  }).pipe(Effect.provide(Logger.layer([logger])))
})
