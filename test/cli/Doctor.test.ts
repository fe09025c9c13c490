import * as NodePath from "@effect/platform-node/NodePath"
import { assert, describe, it } from "@effect/vitest"
import { HostChecks, HostError, HostFacts } from "effect-microvm-runtime/host"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Doctor from "../../src/cli/Doctor.ts"
import * as FirecrackerError from "../../src/firecracker/FirecrackerError.ts"
import type { Observations } from "../../src/firecracker/FirecrackerHost.ts"
import type { JailHost } from "../../src/firecracker/JailPlan.ts"
import * as ImageError from "../../src/image/ImageError.ts"
import { ImageStore, type StoredImage } from "../../src/image/ImageStore.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import * as ProcessError from "../../src/process/ProcessError.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"
import { goodFacts, layerHostFacts } from "../host/hostFacts.ts"
import { microvm } from "./commandLine.ts"
import { fileSeals, firecracker as firecrackerOf, image, imageStore, observations, qemuHost } from "./world.ts"

const stored: StoredImage = {
  digest: image.digest,
  names: ["default"],
  kernelRelease: "6.1.0",
  directory: "/images",
  bytes: 1
}

interface Host {
  readonly observed?: Partial<QemuHost.Observations> | MicroVmError.MicroVmError
  readonly firecracker?: Partial<Observations>
  readonly forFirecracker?: Parameters<typeof firecrackerOf>[1]
  readonly images?: Effect.Effect<ReadonlyArray<StoredImage>, ImageError.ImageError>
  /** Programs that are not there. */
  readonly missing?: ReadonlyArray<string>
  readonly cache?: Effect.Effect<void, ImageError.ImageError>
  /** Bytes that may still be written to the cache. */
  readonly free?: number
  readonly cgroups?: boolean
  /** Is there room for the memory of a machine? Default true. */
  readonly memory?: boolean
  readonly env?: Record<string, string>
  readonly facts?: Parameters<typeof layerHostFacts>[0]
}

const jails: JailHost = {
  executable: "/usr/bin/firecracker",
  base: "/srv/jailer",
  cgroups: { unified: { mount: "/sys/fs/cgroup", controllers: ["cpu", "memory", "pids"] }, separate: new Map() }
}

const diagnose = (
  {
    cache = Effect.void,
    cgroups = true,
    env = {},
    facts,
    firecracker,
    free = 2 ** 40,
    forFirecracker = { jails: Effect.succeed(jails) },
    images = Effect.succeed([stored]),
    memory = true,
    missing = [],
    observed = {}
  }: Host,
  options?: Doctor.Options
) =>
  Doctor.diagnose(options).pipe(Effect.provide(Layer.mergeAll(
    Layer.succeed(QemuHost.QemuHost, {
      ...qemuHost(
        observed instanceof MicroVmError.MicroVmError
          ? Effect.fail(observed)
          : Effect.succeed({ ...observations, ...observed })
      ),
      ...(memory ? { makeRam: () => Effect.succeed({ path: "/dev/null", copyTo: () => Effect.void }) } : {})
    }),
    firecrackerOf(firecracker, forFirecracker),
    layerHostFacts(facts),
    fileSeals(free, (directory) => directory === "/cache"),
    NodePath.layer,
    Layer.succeed(ImageStore, { ...imageStore(Effect.succeed(image)), list: images, writable: cache }),
    ConfigProvider.layer(
      ConfigProvider.fromEnv({ env: { MICROVM_STATE_DIR: "/state", MICROVM_CACHE_DIR: "/cache", ...env } })
    ),
    ScriptedProcess.layer({
      cgroups,
      script: ({ executable: program }) =>
        missing.includes(program)
          ? ProcessError.fromReason(ProcessError.ProcessErrorReason.NotFound({ command: program, searched: [] }))
          : { exitAfter: 0 }
    })
  )))

/** A Firecracker, which few hosts have, is looked at by tests of its own. */
const failures = ({ checks }: Doctor.Diagnosis) =>
  checks.filter(({ name, ok }) => !ok && !name.startsWith("firecracker")).map(({ name }) => name)

describe("diagnose", () => {
  it.effect("finds nothing wrong with a good host", () =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose({ observed: { kvm: { _tag: "Usable", mode: 0o666, gid: 0 } } })
      assert.deepStrictEqual(diagnosis.checks.map(({ name }) => name), [
        "firecracker",
        "qemu",
        "kvm",
        "privileges",
        "cgroup",
        "image",
        "warm start",
        ...HostChecks.evaluate(goodFacts, { stateDirectory: "/state" }).map(({ name }) => name)
      ])
      assert.deepStrictEqual(failures(diagnosis), [])
      assert.isTrue(diagnosis.usable)
      assert.include(diagnosis.checks[1]?.found, "7.2.22")
    }))

  const unavailable = MicroVmError.make(
    new MicroVmError.BackendUnavailable({
      backend: "qemu",
      why: "it is not installed",
      remedy: "install qemu-system-x86"
    })
  )
  const hosts: ReadonlyArray<
    readonly [what: string, host: Host, usable: boolean, failed: ReadonlyArray<string>, told: RegExp]
  > = [
    ["QEMU", { observed: unavailable }, false, ["qemu"], /install qemu-system-x86/],
    [
      "a QEMU that is new enough",
      { observed: { version: { major: 5, minor: 2, micro: 0 } } },
      false,
      ["qemu"],
      /QEMU 6\.0/
    ],
    [
      "KVM",
      { observed: { kvm: { _tag: "Unusable", why: "no vmx", remedy: "turn it on" } } },
      true,
      ["kvm"],
      /no vmx, so guests run emulated, and slowly\n.*→ turn it on$/m
    ],
    [
      "a KVM that is asked for",
      {
        observed: { kvm: { _tag: "Unusable", why: "no vmx", remedy: "turn it on" } },
        env: { MICROVM_QEMU_ACCELERATOR: "kvm" }
      },
      false,
      ["qemu"],
      /no vmx\n.*turn it on/
    ],
    [
      "setpriv, as root",
      { observed: { uid: 0, setpriv: false } },
      true,
      ["kvm", "privileges"],
      /QEMU runs as root.*\n.*→ apt-get install util-linux$/m
    ],
    [
      "another user than root, as in a container without rights",
      { observed: { uid: 0, others: [{ first: 0, last: 999 }] } },
      true,
      ["kvm", "privileges"],
      /QEMU runs as root, who has not the right.*\n.*→ give the container CAP_SETUID/
    ],
    [
      "users for machines, as in a container",
      { observed: { uid: 0, others: [{ first: 0, last: 65_535 }] } },
      true,
      ["kvm", "privileges"],
      /QEMU runs as nobody, for all machines.*\n.*→ .*MICROVM_UIDS=FIRST-LAST$/m
    ],
    [
      "the users that are asked for",
      { observed: { uid: 0, others: [{ first: 0, last: 65_535 }] }, env: { MICROVM_UIDS: "100000-100099" } },
      false,
      ["qemu"],
      /MICROVM_UIDS is not valid: Expected users that there are here/
    ],
    ["a /dev/kvm for others than root", { observed: { uid: 0, kvm: { _tag: "Usable", mode: 0o600, gid: 0 } } }, true, [
      "privileges"
    ], /→ chgrp kvm/],
    [
      "a user for QEMU",
      { observed: { uid: 0 }, env: { MICROVM_QEMU_USER: "keep" } },
      true,
      ["kvm", "privileges"],
      /→ unset MICROVM_QEMU_USER$/m
    ],
    [
      "setpriv, with capabilities",
      { observed: { setpriv: false, passesCapabilities: true } },
      false,
      ["qemu"],
      /util-linux/
    ],
    ["cgroups", { cgroups: false }, true, ["kvm", "cgroup"], /Delegate=yes/],
    [
      "room for a golden machine",
      { memory: false },
      true,
      ["kvm", "warm start"],
      /there is no room, so each machine boots.*\n.*→ nothing to type/
    ],
    [
      "room for a golden machine's snapshot",
      { free: 268e6 },
      true,
      ["kvm", "warm start"],
      /warm start: it takes up to 268 MB in \/cache\/snapshots, and 268 MB are free.*\n.*→ export MICROVM_CACHE_DIR=DIRECTORY$/m
    ],
    [
      "room for an image that is not built",
      { free: 249e6, images: Effect.succeed([]) },
      false,
      ["kvm", "image", "warm start"],
      /image: default is not built, and cannot be: it takes up to 250 MB in \/cache, and 249 MB are free\n.*→ export MICROVM_CACHE_DIR=DIRECTORY$/m
    ],
    ["an image, with apt", { images: Effect.succeed([]) }, true, ["kvm"], /not built yet; the first run/],
    [
      "an image, and apt",
      { images: Effect.succeed([]), missing: ["apt-get"] },
      false,
      ["kvm", "image"],
      /copy its cache/
    ],
    [
      "a cache that can be read",
      {
        images: Effect.fail(
          ImageError.fromReason(ImageError.ImageErrorReason.CacheUnusable({ path: "/c", why: "EACCES" }))
        )
      },
      false,
      ["kvm", "image"],
      /\/c: EACCES: make it writable/
    ],
    [
      "a cache that can be written",
      {
        images: Effect.succeed([]),
        cache: Effect.fail(
          ImageError.fromReason(ImageError.ImageErrorReason.CacheUnusable({ path: "/c", why: "EROFS" }))
        )
      },
      false,
      ["kvm", "image", "warm start"],
      /\/c: EROFS.*\n.*→ export MICROVM_CACHE_DIR=DIRECTORY$/m
    ],
    [
      "a valid environment",
      { env: { MICROVM_QEMU_USER: "root" } },
      false,
      ["qemu"],
      /MICROVM_QEMU_USER is not valid: Expected "auto" | "keep"/
    ]
  ]
  it.effect.each(hosts)("a host without %s", ([, host, usable, failed, told]) =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose(host)
      assert.deepStrictEqual(failures(diagnosis), failed)
      assert.strictEqual(diagnosis.usable, usable)
      assert.match(Doctor.format(diagnosis), told)
      // The others are made all the same.
      assert.includeMembers(diagnosis.checks.map(({ name }) => name), ["qemu", "cgroup", "image"])
    }))

  it.effect("needs no QEMU where there is a Firecracker", () =>
    Effect.gen(function*() {
      const { checks, usable } = yield* diagnose({ firecracker: {}, observed: unavailable })
      assert.isTrue(usable)
      const { found, ok } = checks[0] ?? assert.fail("no checks")
      assert.deepStrictEqual(
        { found, ok },
        { ok: true, found: "/usr/bin/firecracker, version 1.15.1, snapshots of format 9.0.0; KVM is usable" }
      )
    }))

  it.effect("asks for the backend that MICROVM_BACKEND names, and for no other", () =>
    Effect.gen(function*() {
      const usable = (MICROVM_BACKEND: string, host: Host) =>
        Effect.map(diagnose({ ...host, env: { MICROVM_BACKEND } }), (diagnosis) => diagnosis.usable)
      assert.isFalse(yield* usable("firecracker", {}))
      assert.isTrue(yield* usable("firecracker", { firecracker: {}, observed: unavailable }))
      assert.isFalse(yield* usable("qemu", { firecracker: {}, observed: unavailable }))
    }))

  const kvm = { _tag: "Unusable", why: "no vmx", remedy: "turn it on" } as const
  const missing: ReadonlyArray<readonly [what: string, firecracker: Host["firecracker"], told: RegExp]> = [
    ["no Firecracker", undefined, /^warn {2}firecracker: it was not found\n {6}→ install it$/m],
    ["a Firecracker without KVM", { kvm }, /^warn {2}firecracker: .*version 1\.15\.1.*; no vmx\n {6}→ turn it on$/m],
    ["one that is too old", { version: { major: 1, minor: 6, patch: 0 } }, /→ install Firecracker 1\.7 or later$/m],
    [
      "no jailer",
      {},
      /^warn {2}firecracker jailer: it was not found\n {6}→ install it$/m
    ],
    [
      "a jailer of another release",
      { uid: 0, jailer: { binary: "/usr/bin/jailer", version: { major: 1, minor: 16, patch: 1 } } },
      /^warn {2}firecracker jailer: \/usr\/bin\/jailer is version 1\.16\.1/m
    ],
    [
      "a jailer that needs root",
      { jailer: { binary: "/usr/bin/jailer", version: { major: 1, minor: 15, patch: 1 } } },
      /^warn {2}firecracker jailer: it can only be started by root\n/m
    ],
    [
      "a jailer that can be used",
      { uid: 0, jailer: { binary: "/usr/bin/jailer", version: { major: 1, minor: 15, patch: 1 } } },
      /^ok {4}firecracker jailer: \/usr\/bin\/jailer, version 1\.15\.1, makes jails in \/srv\/jailer$/m
    ],
    [
      "a release with a fault",
      { version: { major: 1, minor: 16, patch: 0 } },
      /^warn {2}firecracker release: .*vsock/m
    ],
    [
      "nothing of a release that has faults only in what is not used",
      { version: { major: 1, minor: 17, patch: 0 } },
      /^(?![^]*firecracker release)/
    ]
  ]
  it.effect.each(missing)("tells of %s", ([, firecracker, told]) =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose(firecracker === undefined ? {} : { firecracker })
      assert.match(Doctor.format(diagnosis), told)
      assert.isTrue(diagnosis.usable)
    }))

  const jailer = { binary: "/usr/bin/jailer", version: { major: 1, minor: 15, patch: 1 } }
  const noBase = FirecrackerError.fail(
    new FirecrackerError.InvalidRequest({
      faults: [{ field: "base", value: "/srv/jailer", remedy: "give a directory that is there (ENOENT)" }]
    })
  )
  const noLimits = { ...jails, cgroups: { unified: undefined, separate: new Map() } }
  const noKoffi = FirecrackerError.fail(
    new FirecrackerError.PageServerFailed({ why: "the package koffi is not installed", cause: undefined })
  )
  const byVariables: ReadonlyArray<readonly [what: string, host: Host, told: RegExp]> = [
    [
      "a place for jails",
      { forFirecracker: { jails: noBase } },
      /^FAIL {2}firecracker jailer: base: \/srv\/jailer\n {6}→ give a directory that is there \(ENOENT\), and let MICROVM_JAILER_CHROOT_BASE name it$/m
    ],
    [
      "limits for jails",
      { forFirecracker: { jails: Effect.succeed(noLimits) } },
      /^FAIL {2}firecracker jailer: cgroup: .*\n {6}→ have these controllers available/m
    ],
    ["root", { firecracker: { jailer } }, /^FAIL {2}firecracker jailer: it can only be started by root\n/m],
    ["a jailer", { firecracker: { uid: 0 } }, /^FAIL {2}firecracker jailer: it was not found\n {6}→ install it$/m],
    [
      "koffi",
      { forFirecracker: { jails: Effect.succeed(jails), pages: noKoffi }, env: { MICROVM_MEM_BACKEND: "uffd" } },
      /^FAIL {2}firecracker pages: .*koffi is not installed.*\n {6}→ or set MICROVM_MEM_BACKEND=file$/m
    ]
  ]
  const jailedBy = { MICROVM_JAILER_BIN: "jailer", MICROVM_JAILER_UID: "200000", MICROVM_JAILER_GID: "200000" }
  it.effect.each(byVariables)(
    "cannot do without %s when variables ask for it",
    ([, of, told]) =>
      Effect.gen(function*() {
        const here = { firecracker: { uid: 0, jailer }, ...of, env: { ...jailedBy, ...of.env } }
        const diagnosis = yield* diagnose(here)
        assert.match(Doctor.format(diagnosis), told)
        assert.isFalse(diagnosis.usable)
        // Of no interest to who wants the other backend.
        assert.isTrue((yield* diagnose({ ...here, env: { ...here.env, MICROVM_BACKEND: "qemu" } })).usable)
      })
  )

  it.effect("finds nothing wrong where all is there that variables ask for", () =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose({
        firecracker: { uid: 0, jailer },
        env: { ...jailedBy, MICROVM_MEM_BACKEND: "uffd" }
      })
      assert.isTrue(diagnosis.usable)
      assert.match(Doctor.format(diagnosis), /^ok {4}firecracker jailer: .*\nok {4}firecracker pages: /m)
    }))

  it.effect("finds all that is wrong at once", () =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose({
        observed: unavailable,
        cgroups: false,
        images: Effect.succeed([]),
        missing: ["true", "apt-get"]
      })
      assert.deepStrictEqual(failures(diagnosis), ["qemu", "cgroup", "image"])
    }))

  it.effect("is the same after it was JSON", () =>
    Effect.gen(function*() {
      const diagnosis = yield* diagnose({ cgroups: false })
      const back = yield* Schema.decodeUnknownEffect(Doctor.Diagnosis, { onExcessProperty: "error" })(
        JSON.parse(JSON.stringify(diagnosis))
      )
      assert.deepStrictEqual(back, diagnosis)
    }))
})

/** Lacks what `--fix` can do something about, until it was done. */
const broken = (refused: ReadonlyArray<HostFacts.Fix["_tag"]> = []) => {
  const applied: Array<HostFacts.Fix> = []
  const has = (one: HostFacts.Fix) => applied.some((other) => JSON.stringify(one) === JSON.stringify(other))
  const facts = (): Partial<HostFacts.Facts> => ({
    state: applied.some(({ _tag }) => _tag === "MakeDirectory")
      ? goodFacts.state
      : { _tag: "Absent", parent: "/", isWritable: true, free: 2 ** 40 },
    tun: has(HostFacts.Fix.LoadModule({ module: "tun" })) ? "Usable" : "Missing",
    settings: {
      ...goodFacts.settings,
      "net/ipv4/ip_forward": has(HostFacts.Fix.Forward({ family: "ipv4", egress: "eth0" })) ? "1" : "0"
    }
  })
  const apply = (fix: HostFacts.Fix) =>
    refused.includes(fix._tag)
      ? HostError.fail(
        new HostError.CommandFailed({ program: "modprobe", what: "loading", status: "exited with code 1", stderr: "" })
      )
      : Effect.sync(() => {
        applied.push(fix)
        return `did ${fix._tag}`
      })
  return { applied, facts: { facts, apply } }
}

describe("with --fix", () => {
  it.effect("does what is safe, tells it, and looks again", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken()
      const diagnosis = yield* diagnose({ facts }, { network: "nat", fix: { forwarding: false } })
      assert.deepStrictEqual(applied.map(({ _tag }) => _tag), ["MakeDirectory", "LoadModule"])
      assert.deepStrictEqual(diagnosis.fixed, [
        { name: "state directory", ok: true, what: "did MakeDirectory" },
        { name: "tun", ok: true, what: "did LoadModule" }
      ])
      assert.deepStrictEqual(failures(diagnosis), ["kvm", "IPv4 forwarding"])
      assert.isFalse(diagnosis.usable)
      const text = Doctor.format(diagnosis)
      assert.match(text, /^done {2}tun: did LoadModule$/m)
      assert.match(
        text,
        /^FAIL {2}IPv4 forwarding: off\n {6}machines reach others .*\n {6}→ sysctl .*, or microvm doctor --fix --forwarding$/m
      )
    }))

  it.effect("makes a router of the host only when told to", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken()
      const diagnosis = yield* diagnose({ facts }, { network: "nat", fix: { forwarding: true } })
      assert.deepStrictEqual(applied.map(({ _tag }) => _tag), ["MakeDirectory", "LoadModule", "Forward"])
      assert.deepStrictEqual(failures(diagnosis), ["kvm"])
      assert.isTrue(diagnosis.usable)
    }))

  it.effect("goes on after what could not be done, and tells it", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken(["MakeDirectory", "LoadModule"])
      const diagnosis = yield* diagnose({ facts }, { network: "nat", fix: { forwarding: true } })
      assert.deepStrictEqual(applied.map(({ _tag }) => _tag), ["Forward"])
      assert.deepStrictEqual(diagnosis.fixed?.map(({ ok }) => ok), [false, false, true])
      assert.match(Doctor.format(diagnosis), /^FAIL {2}tun: loading: modprobe exited with code 1$/m)
      assert.deepStrictEqual(failures(diagnosis), ["kvm", "tun"])
      const back = yield* Schema.decodeUnknownEffect(Doctor.Diagnosis, { onExcessProperty: "error" })(
        JSON.parse(JSON.stringify(diagnosis))
      )
      assert.deepStrictEqual(back, diagnosis)
    }))

  it.effect("changes nothing without it", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken()
      const diagnosis = yield* diagnose({ facts }, { network: "nat" })
      assert.deepStrictEqual(applied, [])
      assert.isFalse("fixed" in diagnosis)
      assert.deepStrictEqual(
        diagnosis.checks.flatMap(({ fix, name }) => fix === undefined ? [] : [[name, fix]]),
        [["state directory", "--fix"], ["tun", "--fix"], ["IPv4 forwarding", "--fix --forwarding"]]
      )
    }))
})

describe("the command", () => {
  const built: Partial<Parameters<typeof microvm>[1]> = {
    images: {
      ...imageStore(Effect.succeed(image)),
      list: Effect.succeed([{ digest: "", names: ["default"], kernelRelease: "6.1.0", directory: "", bytes: 1 }])
    }
  }

  it.effect("requires of a network what machines are to have", () =>
    Effect.gen(function*() {
      const host = { ...built, facts: { facts: { tun: "Missing" } as const } }
      assert.strictEqual((yield* microvm(["doctor"], host)).code, 0)
      const { code, stdout } = yield* microvm(["doctor", "--network", "nat"], host)
      assert.strictEqual(code, 69)
      assert.match(
        stdout,
        /^FAIL {2}tun: there is no \/dev\/net\/tun\n.*\n {6}→ modprobe tun, or microvm doctor --fix$/m
      )
    }))

  it.effect("fixes, and counts machines", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken()
      const { code, stdout } = yield* microvm(
        ["doctor", "--network", "nat", "--machines", "1000", "--fix", "--forwarding", "--json"],
        { ...built, facts }
      )
      assert.strictEqual(code, 0)
      assert.lengthOf(applied, 3)
      const { checks, fixed } = yield* Schema.decodeEffect(Schema.fromJsonString(Doctor.Diagnosis))(stdout)
      assert.lengthOf(fixed ?? [], 3)
      const neighbours = checks.find(({ name }) => name === "neighbours")
      assert.strictEqual(neighbours?.remedy, "sysctl -w net.ipv4.neigh.default.gc_thresh3=4128")
    }))

  it.effect("tells of all that is wrong with its flags at once", () =>
    Effect.gen(function*() {
      const { applied, facts } = broken()
      const { code, stderr, stdout } = yield* microvm(["doctor", "--forwarding", "--machines", "0"], { facts })
      assert.strictEqual(code, 64)
      assert.deepStrictEqual(stderr, ["--forwarding goes with --fix", "--machines 0: give 1 to 100000"])
      assert.strictEqual(stdout, "")
      assert.deepStrictEqual(applied, [])
    }))
})

describe("format", () => {
  const check = { name: "kvm", ok: true, required: false, found: "usable" }
  it("has a line for each check, and one for the remedy", () => {
    assert.strictEqual(
      Doctor.format({
        usable: false,
        network: "nat",
        checks: [
          check,
          { ...check, ok: false, found: "no vmx", remedy: "turn it on" },
          { name: "qemu", ok: false, required: true, found: "not there", remedy: "install it" }
        ]
      }),
      [
        "ok    kvm: usable",
        "warn  kvm: no vmx",
        "      → turn it on",
        "FAIL  qemu: not there",
        "      → install it",
        "No machine with a network can run here."
      ].join("\n")
    )
    assert.strictEqual(
      Doctor.format({ usable: true, network: "none", checks: [check] }),
      "ok    kvm: usable\nMachines can run here."
    )
  })
})
