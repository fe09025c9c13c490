import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as TestClock from "effect/testing/TestClock"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const seen: QemuHost.Observations = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  kvm: { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy: "turn on virtualization" },
  cpu: "Model 1",
  uid: 1000,
  setpriv: true,
  path: "/bin"
}
const kvm = (mode: number, gid: number): QemuHost.Kvm => ({ _tag: "Usable", mode, gid })

const choose = (observations: Partial<QemuHost.Observations>, options?: QemuHost.Options) =>
  Result.getOrThrow(QemuHost.choose({ ...seen, ...observations }, options))

const refusal = (observations: Partial<QemuHost.Observations>, options?: QemuHost.Options) =>
  Result.match(QemuHost.choose({ ...seen, ...observations }, options), {
    onFailure: (error) => error.message,
    onSuccess: () => undefined
  })

describe("the accelerator", () => {
  it("is KVM when that is usable, else TCG, and says why", () => {
    assert.deepInclude(choose({ kvm: kvm(0o666, 0) }), { accelerator: "kvm", because: "KVM is usable" })
    assert.deepInclude(choose({}), { accelerator: "tcg", because: "the CPU shows neither vmx nor svm" })
  })

  it("is what was asked for, or nothing", () => {
    assert.deepInclude(choose({ kvm: kvm(0o666, 0) }, { accelerator: "tcg" }), {
      accelerator: "tcg",
      because: "asked for"
    })
    assert.strictEqual(
      refusal({}, { accelerator: "kvm" }),
      "The qemu backend cannot be used, KVM was asked for, but the CPU shows neither vmx nor svm: turn on virtualization"
    )
  })
})

describe("the user", () => {
  const nobody = { _tag: "Unprivileged", uid: 65534, gid: 65534 } as const
  for (
    const [what, observations, options, expected] of [
      ["is our own when that is an ordinary one", {}, {}, { _tag: "Own", why: "uid 1000" }],
      ["has none of the capabilities that we pass on", { passesCapabilities: true }, {}, {
        _tag: "Own",
        why: "uid 1000",
        dropsCapabilities: true
      }],
      ["has no rights when we are root", { uid: 0 }, {}, { ...nobody, groups: [] }],
      ["has none in a container that has a nobody", { uid: 0, others: [{ first: 0, last: 65_535 }] }, {}, {
        ...nobody,
        groups: []
      }],
      ["is root when that is asked for", { uid: 0 }, { user: "keep" }, { _tag: "Own", why: "root, as asked for" }],
      ["may open a /dev/kvm for all", { uid: 0, kvm: kvm(0o666, 0) }, {}, { ...nobody, groups: [] }],
      ["is in the group of /dev/kvm", { uid: 0, kvm: kvm(0o660, 104) }, {}, { ...nobody, groups: [104] }],
      ["does not need that group for TCG", { uid: 0, kvm: kvm(0o660, 104) }, { accelerator: "tcg" }, {
        ...nobody,
        groups: []
      }]
    ] as const
  ) {
    it(what, () => assert.deepStrictEqual(choose(observations, options).user, expected))
  }

  it("would keep capabilities of ours where nothing takes them, so there is no machine", () => {
    assert.include(
      refusal({ passesCapabilities: true, setpriv: false }),
      "keep our capabilities: apt-get install util-linux"
    )
    assert.isUndefined(refusal({ passesCapabilities: true, setpriv: false, uid: 0 }))
  })

  it("stays root, and says why, when root is needed", () => {
    for (
      const [observations, why] of [
        [{ setpriv: false }, "setpriv"],
        [{ kvm: kvm(0o600, 0) }, "/dev/kvm"],
        [{ others: [] }, "another user"],
        [{ others: [{ first: 0, last: 999 }] }, "another user"],
        // Membership in root's own group would be worse than the group it helps against.
        [{ kvm: kvm(0o660, 0) }, "/dev/kvm"]
      ] as const
    ) {
      const { user } = choose({ uid: 0, ...observations })
      assert.isTrue(user._tag === "Own" && user.why.includes(why))
    }
  })
})

describe("the version", () => {
  it("is read from the first line", () => {
    assert.deepStrictEqual(
      QemuHost.parseVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright"),
      { major: 7, minor: 2, micro: 22 }
    )
    for (const text of ["", "QEMU emulator version 7", "GNU bash, version 5.2.15"]) {
      assert.isUndefined(QemuHost.parseVersion(text))
    }
  })

  it("must not be too old", () => {
    assert.isUndefined(refusal({ version: { major: 6, minor: 0, micro: 0 } }))
    assert.strictEqual(
      refusal({ version: { major: 5, minor: 2, micro: 0 } }),
      "The qemu backend cannot be used, qemu-system-x86_64 is version 5.2.0: install QEMU 6.0 or later"
    )
  })
})

describe("looking at the host", () => {
  const observe = (script: ScriptedProcess.Options["script"]) =>
    QemuHost.QemuHost.use((host) => host.observe({ binary: "qemu" })).pipe(
      Effect.provide(NodeQemuHost.layer.pipe(Layer.provide(ScriptedProcess.layer({ script }))))
    )

  it.effect("asks the programs what they are", () =>
    Effect.gen(function*() {
      const looking = yield* Effect.forkChild(
        observe(({ executable }) => ({
          exitAfter: "1 millis",
          stdout: executable === "qemu" ? "QEMU emulator version 8.0.4 (x)\nCopyright\n" : "BusyBox v1.35.0 (x)\n"
        })),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("1 second")
      const { setpriv, version } = yield* Fiber.join(looking)
      assert.deepStrictEqual(version, { major: 8, minor: 0, micro: 4 })
      // That of busybox takes other options.
      assert.isFalse(setpriv)
    }))

  it.effect("does not wait for ever for an answer", () =>
    Effect.gen(function*() {
      const looking = yield* Effect.forkChild(Effect.flip(observe(() => ({}))), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      assert.include((yield* Fiber.join(looking)).message, "qemu --version gave no answer within 10 seconds")
    }))
})
