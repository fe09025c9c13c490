import { assert, describe, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Backend from "../../src/cli/Backend.ts"
import type * as FirecrackerHost from "../../src/firecracker/FirecrackerHost.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"
import { firecracker as firecrackerOf, observations, qemuHost } from "./world.ts"

const took = (
  observed: Partial<QemuHost.Observations>,
  env: Record<string, string> = {},
  { choice = "auto", firecracker }: {
    readonly choice?: Backend.Choice
    readonly firecracker?: Partial<FirecrackerHost.Observations>
  } = {}
) =>
  Effect.suspend(() => {
    let looks = 0
    const observe = () =>
      Effect.sync(() => {
        looks++
        return { ...observations, ...observed }
      })
    return Effect.gen(function*() {
      const { backend } = yield* MicroVmProvider
      return { backend, detail: yield* Backend.BackendDetail, looks }
    }).pipe(Effect.provide(
      Backend.layer(choice).pipe(
        Layer.provide(Layer.succeed(QemuHost.QemuHost, { ...qemuHost(), observe })),
        Layer.provide(firecrackerOf(firecracker)),
        Layer.provide(Layer.provideMerge(NodeProcessHolder.layer, ScriptedProcess.layer({ script: () => ({}) }))),
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
      )
    ))
  })

describe("the backend", () => {
  it.effect("is QEMU with KVM where that is usable, and the host is looked at once", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* took({ kvm: { _tag: "Usable", mode: 0o666, gid: 0 } }), {
        backend: "qemu",
        detail: "QEMU 7.2.22 with KVM, since KVM is usable",
        looks: 1
      })
    }))

  it.effect("is QEMU with TCG elsewhere, and says why", () =>
    Effect.gen(function*() {
      assert.strictEqual(
        (yield* took({})).detail,
        "QEMU 7.2.22 with TCG, since the CPU shows neither vmx nor svm"
      )
    }))

  it.effect("is what the environment says", () =>
    Effect.gen(function*() {
      const { detail } = yield* took({ kvm: { _tag: "Usable", mode: 0o666, gid: 0 } }, {
        MICROVM_QEMU_ACCELERATOR: "tcg"
      })
      assert.strictEqual(detail, "QEMU 7.2.22 with TCG, since asked for")
    }))

  it.effect("is Firecracker where there is one and KVM is usable", () =>
    Effect.gen(function*() {
      const { backend, detail, looks } = yield* took({}, {}, { firecracker: {} })
      assert.deepStrictEqual(
        { backend, detail, looks },
        { backend: "firecracker", detail: "Firecracker 1.15.1, since KVM is usable", looks: 0 }
      )
      const kvm = { _tag: "Unusable", why: "no vmx", remedy: "turn it on" } as const
      assert.strictEqual((yield* took({}, {}, { firecracker: { kvm } })).backend, "qemu")
      // Who has named one is told why it is not taken.
      const named = yield* took({}, { MICROVM_FIRECRACKER_BIN: "/typo" }, {})
      assert.match(named.detail, /^QEMU .* with TCG, since .*; not Firecracker: .*it was not found/)
      assert.strictEqual((yield* took({}, {}, { firecracker: {}, choice: "qemu" })).backend, "qemu")
    }))

  it.effect("is never another than the one that was asked for", () =>
    Effect.gen(function*() {
      const missing = yield* Effect.flip(took({}, {}, { choice: "firecracker" }))
      assert.match(Backend.explain(missing), /firecracker.*it was not found.*install it/s)
    }))

  it.effect("is not chosen by a variable that is not valid", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(took({}, { MICROVM_MEM_BACKEND: "mmap" }, { firecracker: {} }))
      assert.match(Backend.explain(error), /^MICROVM_MEM_BACKEND is not valid/)
    }))

  it.effect("is none without what was asked for", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(took({}, { MICROVM_QEMU_ACCELERATOR: "kvm" }))
      assert.match(Backend.explain(error), /KVM was asked for, but the CPU shows neither vmx nor svm: turn it on$/)
    }))
})

describe("explain", () => {
  const fault = (config: Config.Config<unknown>, env: Record<string, string>) =>
    Effect.map(Effect.flip(config.parse(ConfigProvider.fromEnv({ env }))), Backend.explain)

  it.effect("names the variable and what it may be, without its value", () =>
    Effect.gen(function*() {
      const size = Config.nested(Config.Int("SIZE"), "MICROVM")
      assert.strictEqual(
        yield* fault(size, { MICROVM_SIZE: "hunter2" }),
        "MICROVM_SIZE is not valid: Expected a string representing a finite number"
      )
    }))

  it("gives the message of other errors", () => {
    assert.deepStrictEqual([new Error("why"), "text"].map(Backend.explain), ["why", "text"])
  })
})
