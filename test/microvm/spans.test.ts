import { expect, it } from "@effect/vitest"
import {
  Machine,
  MachineSpec,
  MemoryProvider,
  MicroVmRuntime,
  Snapshot,
  SnapshotStore
} from "effect-microvm-runtime/microvm"
import { FakeWarmMachine } from "effect-microvm-runtime/testing"
import { WarmMachine } from "effect-microvm-runtime/warm"
import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"

/** The spans of a folder, with the machine that each is of. */
const spansOf = Effect.fnUntraced(function*<A, E, R>(folder: string, effect: Effect.Effect<A, E, R>) {
  const spans: Array<Tracer.Span> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  yield* Effect.withSpan(effect, "all").pipe(Effect.provideService(Tracer.Tracer, tracer))
  return spans.filter(({ name }) => name.startsWith(`${folder}.`))
    .map(({ attributes, name }) => `${name} ${String(attributes.get("machine"))}`)
})

const launch = Effect.fnUntraced(function*(id: string, options?: Machine.LaunchOptions) {
  const machine = yield* Machine.launch(yield* MachineSpec.decode({ id, kernel: "/boot/vmlinux" }), options)
  yield* machine.start
  return machine
})

it.live("each span of a machine says which one it is", () =>
  Effect.gen(function*() {
    const store = yield* SnapshotStore.SnapshotStore
    const life = Effect.gen(function*() {
      const machine = yield* launch("one")
      const snapshot = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
      const clone = yield* Machine.restore("two", snapshot)
      yield* clone.resume
      yield* clone.pause
      const keep = { directory: "/kept" }
      const kept = yield* Effect.scoped(launch("three", { keep }))
      yield* Machine.attach(kept.spec, { keep })
    })
    expect(yield* spansOf("Machine", Effect.scoped(life))).toEqual([
      "Machine.launch one",
      "Machine.start one",
      "Machine.save one",
      "Machine.restore two",
      "Machine.resume two",
      "Machine.pause two",
      "Machine.launch three",
      "Machine.start three",
      "Machine.attach three",
      "Machine.shutdown two",
      "Machine.shutdown one"
    ])
  }).pipe(Effect.provide(MemoryProvider.layer)))

it.live("so does each of a runtime's", () =>
  Effect.gen(function*() {
    const runtime = yield* MicroVmRuntime.MicroVmRuntime
    const life = Effect.gen(function*() {
      yield* runtime.create({ id: "one", kernel: "/boot/vmlinux" })
      yield* runtime.start("one")
      yield* runtime.pause("one")
      yield* runtime.resume("one")
      yield* runtime.snapshot("one", "first")
      yield* runtime.restore({ id: "two", snapshot: { machine: "one", name: "first" } })
      yield* runtime.removeSnapshot("one", "first")
      yield* runtime.rename("two", "three")
      yield* runtime.stop("three")
      yield* runtime.destroy("three")
    })
    expect(yield* spansOf("MicroVmRuntime", life)).toEqual([
      "MicroVmRuntime.create one",
      "MicroVmRuntime.start one",
      "MicroVmRuntime.pause one",
      "MicroVmRuntime.resume one",
      "MicroVmRuntime.snapshot one",
      "MicroVmRuntime.restore two",
      "MicroVmRuntime.removeSnapshot one",
      "MicroVmRuntime.rename two",
      "MicroVmRuntime.stop three",
      "MicroVmRuntime.destroy three"
    ])
  }).pipe(Effect.provide(MicroVmRuntime.layer), Effect.provide(MemoryProvider.layer)))

it.live("and each of a warm machine's", () =>
  Effect.gen(function*() {
    const life = Effect.scoped(
      Effect.flatMap(WarmMachine.launch({ id: "one" }), (warm) => WarmMachine.save(warm, "saved"))
    )
    expect(yield* spansOf("WarmMachine", life)).toEqual(["WarmMachine.launch one", "WarmMachine.save one"])
  }).pipe(Effect.provide(FakeWarmMachine.layer)))
