import { expect, it } from "@effect/vitest"
import { MemoryDriver, MemoryProvider, MicroVmProvider } from "effect-microvm-runtime/microvm"
import { MicroVmConformance } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"

const none: MicroVmProvider.Capabilities = {
  pause: false,
  snapshot: false,
  diff: false,
  rename: false,
  powerButton: false,
  panicDetection: false,
  saveKeepsChannels: false,
  keep: false,
  user: false
}
const rig = {
  capabilities: none,
  spec: (id: string) => ({ id, kernel: "/boot/vmlinux" }),
  left: MemoryDriver.MemoryDriver.use(({ claims }) => Effect.map(claims, (all) => all.map(({ id }) => id)))
}

type Broken = (real: MicroVmProvider.MicroVmProvider["Service"]) => Partial<MicroVmProvider.MicroVmProvider["Service"]>

/** What the suite says of a backend with one thing in it that is not right. */
const complaints = Effect.fnUntraced(function*(broken: Broken) {
  const layer = Layer.effect(
    MicroVmProvider.MicroVmProvider,
    Effect.map(MicroVmProvider.MicroVmProvider, (real) => ({ ...real, ...broken(real) }))
  ).pipe(Layer.provideMerge(MemoryProvider.layerWith({ capabilities: none })))
  const told: Array<string> = []
  for (const { run, skip } of MicroVmConformance.scenarios(rig)) {
    if (skip !== undefined) continue
    const exit = yield* Effect.exit(Effect.provide(run, layer, { local: true }))
    if (Exit.isFailure(exit)) {
      told.push(...exit.cause.reasons.map((one) => one._tag === "Fail" ? String(one.error) : one._tag))
    }
  }
  return told.map((text) => text.replace(/^NotConforming: /, ""))
})

it.effect("a backend that does what it has to is complained of by nobody", () =>
  Effect.gen(function*() {
    expect(yield* complaints(() => ({}))).toEqual([])
  }))

it.effect("a launch whose scope ends nothing is found, although each machine is asked to end before", () =>
  Effect.gen(function*() {
    const scope = yield* Effect.scope
    const found = yield* complaints(({ launch }) => ({
      launch: (spec, options) => Scope.provide(launch(spec, options), scope)
    }))
    expect(found).toContain("has ended: expected true, got false")
  }))

it.effect("an answer of any kind can be told of", () =>
  Effect.gen(function*() {
    const socket = Socket.make({ reader: Effect.never, writer: Effect.never })
    const endless = Object.assign(socket, { self: socket })
    const found = yield* complaints((real) => ({
      launch: (spec, options) =>
        Effect.map(real.launch(spec, options), (vmm) => ({ ...vmm, channel: () => Effect.succeed(endless) }))
    }))
    expect(found).toEqual([expect.stringMatching(/^channel: expected "ChannelUnavailable ", got .*Circular/s)])
  }))
