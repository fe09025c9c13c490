/**
 * A machine on Firecracker is saved once, and three others go on from there, each with an identity of its own.
 *
 *     FIRECRACKER_BIN=/usr/local/bin/firecracker node examples/snapshot.ts
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { SnapshotStore } from "effect-microvm-runtime/microvm"
import { WarmMachine } from "effect-microvm-runtime/warm"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { layer } from "./firecrackerHere.ts"

const program = Effect.gen(function*() {
  const store = yield* SnapshotStore.SnapshotStore

  // The first one has no golden machine to go on from: it is booted, saved and ended on the way.
  yield* Effect.scoped(WarmMachine.launch({ id: "first" }))
  for (const { id, manifest } of yield* store.list) {
    yield* Console.log(`snapshot ${id.slice(0, 12)}, made by ${manifest?.madeBy}`)
    for (const [key, value] of Object.entries(manifest?.platform ?? {})) yield* Console.log(`  ${key}: ${value}`)
  }

  const clones = yield* Effect.forEach(["a", "b", "c"], (id) => WarmMachine.launch({ id: `clone-${id}` }), {
    concurrency: "unbounded"
  })
  for (const { machine, start } of clones) {
    yield* Console.log(
      start._tag === "Restored"
        ? `${machine.id}: restored in ${Math.round(Duration.toMillis(start.took))} ms, boot id ${start.proof.bootId}`
        : `${machine.id}: booted, since ${start.why}`
    )
  }
}).pipe(Effect.scoped, Effect.provide(layer))

NodeRuntime.runMain(program)
