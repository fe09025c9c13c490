import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterEach, assert, beforeEach, describe, layer, test, vi } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import type { FirecrackerError } from "../../src/firecracker/FirecrackerError.ts"
import * as FirecrackerHost from "../../src/firecracker/FirecrackerHost.ts"
import * as NodeFirecrackerHost from "../../src/firecracker/NodeFirecrackerHost.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"

const isRoot = process.geteuid?.() === 0
if (!isRoot) console.warn("skipped: a session of another user, for only root can make one")

const seen: FirecrackerHost.Observations = {
  binary: "/usr/bin/firecracker",
  version: { major: 1, minor: 16, patch: 1 },
  snapshotFormat: "10.0.0",
  architecture: "x86_64",
  kvm: { _tag: "Usable" },
  cpu: "Model 1",
  kernel: "6.1.0",
  uid: 0
}

describe("choose", () => {
  const decide = (observed: Partial<FirecrackerHost.Observations>, options?: FirecrackerHost.Options) =>
    Result.match(FirecrackerHost.choose({ ...seen, ...observed }, options), {
      onSuccess: ({ because }) => because,
      onFailure: (error) => error.message
    })
  const kvm = { _tag: "Unusable", why: "there is no /dev/kvm", remedy: "load it" } as const

  test("takes a Firecracker with KVM", () => {
    assert.strictEqual(decide({}), "KVM is usable")
    assert.strictEqual(decide({ version: { major: 1, minor: 7, patch: 0 } }), "KVM is usable")
  })
  test("refuses one that is too old, and says which is not", () => {
    assert.strictEqual(
      decide({ version: { major: 1, minor: 6, patch: 9 } }),
      "The firecracker backend cannot be used, /usr/bin/firecracker is version 1.6.9: install Firecracker 1.7 or later"
    )
  })
  test("needs KVM, or to be told that it is there", () => {
    assert.strictEqual(
      decide({ kvm }),
      "The firecracker backend cannot be used, there is no /dev/kvm: load it"
    )
    assert.strictEqual(decide({ kvm }, { kvm: "assume" }), "KVM is taken for usable, though there is no /dev/kvm")
  })
})

describe("choose, with a jailer", () => {
  const jailer = (patch: number) => ({ binary: "/usr/bin/jailer", version: { major: 1, minor: 16, patch } })

  test("wants one of the same release", () => {
    const same = FirecrackerHost.choose({ ...seen, jailer: jailer(1) })
    assert.strictEqual(Result.getOrThrow(same).jailer, "/usr/bin/jailer")
    const other = FirecrackerHost.choose({ ...seen, jailer: jailer(0) })
    assert.include(
      Result.isFailure(other) ? other.failure.message : "",
      "/usr/bin/jailer is version 1.16.0, and /usr/bin/firecracker is 1.16.1"
    )
  })
})

const host = NodeFirecrackerHost.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

/** A place of our own. */
let work = ""
beforeEach(() => {
  work = NodeFs.mkdtempSync(join(tmpdir(), "firecracker-host-"))
})
afterEach(() => {
  vi.unstubAllEnvs()
  NodeFs.rmSync(work, { recursive: true })
})

const write = (name: string, bytes: string | Uint8Array, mode = 0o600): string => {
  const path = join(work, name)
  NodeFs.writeFileSync(path, bytes, { mode })
  return path
}

const use = <A, E>(run: (service: FirecrackerHost.FirecrackerHost["Service"]) => Effect.Effect<A, E>) =>
  FirecrackerHost.FirecrackerHost.use(run)

layer(host, { excludeTestServices: true })("a host", (it) => {
  const program = (version: string, snapshot = "v10.0.0") =>
    write("firecracker", `#!/bin/sh\ncase $1 in --version) echo "${version}" ;; *) echo "${snapshot}" ;; esac\n`, 0o755)
  const refusal = (options: FirecrackerHost.Options) =>
    use(({ observe }) => observe(options)).pipe(
      Effect.flip,
      Effect.map(({ reason }) => reason._tag === "BackendUnavailable" ? `${reason.why}: ${reason.remedy}` : reason._tag)
    )

  it.effect("is seen as it is", () =>
    Effect.gen(function*() {
      const binary = program("Firecracker v1.16.1")
      const observed = yield* use(({ observe }) => observe({ binary }))
      assert.deepInclude(observed, {
        binary,
        version: { major: 1, minor: 16, patch: 1 },
        snapshotFormat: "10.0.0",
        uid: process.geteuid?.() ?? -1
      })
      assert.match(observed.cpu, /features [0-9a-f]{8}/)
    }))

  it.effect("has its Firecracker in PATH", () =>
    Effect.gen(function*() {
      const binary = program("Firecracker v1.7.0", "v1.0.0")
      vi.stubEnv("PATH", `/nonexistent:${work}:${process.env["PATH"]}`)
      const observed = yield* use(({ observe }) => observe({}))
      assert.deepInclude(observed, { binary, snapshotFormat: "1.0.0" })
    }))

  it.effect("without Firecracker says what to install", () =>
    Effect.gen(function*() {
      assert.match(
        yield* refusal({ binary: "firecracker-nonesuch" }),
        /not found in .*install a release.*MICROVM_FIRECRACKER_BIN/s
      )
      assert.match(yield* refusal({ binary: "/etc/passwd" }), /cannot be executed/)
      const binary = program("Firecracker v1.16.1")
      assert.match(yield* refusal({ binary, jailer: "/nonexistent/jailer" }), /no such file: .*MICROVM_JAILER_BIN/)
    }))

  it.effect("has a jailer, if one is wanted", () =>
    Effect.gen(function*() {
      const jailer = write("jailer", "#!/bin/sh\necho Jailer v1.16.1\n", 0o755)
      const observed = yield* use(({ observe }) => observe({ binary: program("Firecracker v1.16.1"), jailer }))
      assert.deepStrictEqual(observed.jailer, { binary: jailer, version: { major: 1, minor: 16, patch: 1 } })
    }))

  it.effect("with something else under that name says what that is", () =>
    Effect.gen(function*() {
      assert.match(yield* refusal({ binary: "env" }), /env --version says "env /)
      const slow = "#!/bin/sh\n[ $1 = --version ] && sleep 0.5\necho other\n"
      assert.match(yield* refusal({ binary: write("other", slow, 0o755) }), /other --version says "other/)
      assert.match(yield* refusal({ binary: program("Firecracker v1.16.1", "?") }), /--snapshot-version says "\?/)
    }))
})

layer(host, { excludeTestServices: true })("a file", (it) => {
  it.effect("is opened, and a kernel is known by its first bytes", () =>
    Effect.gen(function*() {
      const inspect = (path: string, writable?: boolean) => use((service) => service.inspect(path, { writable }))
      const bzImage = Buffer.alloc(0x300)
      bzImage.write("HdrS", 0x202)
      const arm = Buffer.alloc(64)
      arm.write("ARM\x64", 56)
      const short = write("short", "x")
      assert.deepStrictEqual(yield* inspect(short, true), { path: short })
      for (const [bytes, kernel] of [["\x7fELF", "ELF"], [bzImage, "bzImage"], [arm, "arm64 Image"]] as const) {
        assert.strictEqual((yield* inspect(write("kernel", bytes))).kernel, kernel)
      }
      assert.match((yield* inspect(join(work, "none"))).fault ?? "", /ENOENT/)
      assert.match((yield* inspect(work)).fault ?? "", /neither a regular file/)
      assert.match((yield* inspect(work, true)).fault ?? "", /cannot be opened for writing: EISDIR/)
    }))

  it.effect("is copied into one that was not there, and its end is shown", () =>
    Effect.gen(function*() {
      const from = write("from", "x".repeat(70_000) + "end")
      const to = join(work, "to")
      yield* use(({ copy }) => copy(from, to))
      assert.strictEqual(NodeFs.readFileSync(to, "utf8"), NodeFs.readFileSync(from, "utf8"))
      const again: FirecrackerError = yield* Effect.flip(use(({ copy }) => copy(from, to)))
      assert.include(again.message, "EEXIST")
      const end = yield* use(({ tail }) => tail(to))
      assert.strictEqual(end.length, 65_536)
      assert.isTrue(end.endsWith("xend"))
      yield* use(({ remove }) => remove([from, to, join(work, "none")]))
      assert.deepStrictEqual(NodeFs.readdirSync(work), [])
      assert.strictEqual(yield* use(({ tail }) => tail(to)), "")
    }))
})

layer(host, { excludeTestServices: true })("a log", (it) => {
  it.effect("that has grown gives its room back, and whoever writes it goes on", () =>
    Effect.gen(function*() {
      const path = write("log", "")
      const fd = NodeFs.openSync(path, "r+")
      const trimmed = use(({ trim }) => trim(path))
      NodeFs.writeSync(fd, "x".repeat(1_000_000))
      assert.isFalse(yield* trimmed)
      assert.strictEqual(NodeFs.statSync(path).size, 1_000_000)
      NodeFs.writeSync(fd, "x".repeat(1_000_000))
      assert.isTrue(yield* trimmed)
      assert.isFalse(yield* trimmed)
      NodeFs.writeSync(fd, "its last words\n")
      NodeFs.closeSync(fd)
      assert.isBelow(NodeFs.statSync(path).blocks * 512, 65_536)
      assert.strictEqual(yield* use(({ tail }) => tail(path)), "its last words\n")
      assert.isFalse(yield* use(({ trim }) => trim(join(work, "none"))))
      const secret = write("secret", "x".repeat(2_000_000))
      NodeFs.symlinkSync(secret, join(work, "link"))
      assert.isFalse(yield* use(({ trim }) => trim(join(work, "link"))))
      assert.strictEqual(NodeFs.statSync(secret).size, 2_000_000)
      assert.strictEqual(yield* use(({ tail }) => tail(join(work, "link"))), "")
    }))
})

layer(host, { excludeTestServices: true })("a directory", (it) => {
  const make = (
    options: Partial<FirecrackerHost.DirectoryOptions & { readonly parent: string | undefined }> = {}
  ) =>
    FirecrackerHost.FirecrackerHost.use(({ makeDirectory }) =>
      makeDirectory({ parent: join(work, "a", "b"), links: new Map(), files: [], ...options })
    )
  const where = Effect.scoped(Effect.map(make({ parent: undefined }), (path) => join(path, "..")))

  it.effect("is private, has in it what is asked for, and goes with the scope", () =>
    Effect.gen(function*() {
      const path = yield* Effect.scoped(Effect.gen(function*() {
        const directory = yield* make({ links: new Map([["drive-a", "/dev/null"]]), files: ["log"] })
        assert.strictEqual(NodeFs.statSync(directory).mode & 0o777, 0o700)
        assert.deepStrictEqual(NodeFs.readdirSync(directory).toSorted(), ["drive-a", "log"])
        assert.strictEqual(NodeFs.readlinkSync(join(directory, "drive-a")), "/dev/null")
        assert.strictEqual(NodeFs.statSync(join(directory, "log")).mode & 0o777, 0o600)
        return directory
      }))
      assert.isFalse(NodeFs.existsSync(path))
    }))

  it.effect("of a process that was killed is removed by the next one, and of one that lives is not", () =>
    Effect.gen(function*() {
      const parent = join(work, "swept")
      const mine = yield* make({ parent })
      const child = spawn("true")
      const stat = NodeFs.readFileSync(`/proc/${child.pid}/stat`, "utf8").split(") ")[1]?.split(" ")[19]
      const name = basename(mine).replace(/\.\d+\.\d+\./, `.${child.pid}.${stat}.`)
      NodeFs.mkdirSync(join(parent, name))
      yield* Effect.promise(() => once(child, "exit"))
      const another = yield* make({ parent }).pipe(Effect.provide(Layer.fresh(host)))
      assert.deepStrictEqual(NodeFs.readdirSync(parent).toSorted(), [basename(mine), basename(another)].toSorted())
    }).pipe(Effect.scoped))

  it.effect("is not made where others may write", () =>
    Effect.gen(function*() {
      const parent = join(work, "open")
      NodeFs.mkdirSync(parent)
      NodeFs.chmodSync(parent, 0o1777)
      const error = yield* Effect.flip(Effect.scoped(make({ parent })))
      assert.include(error.message, "others may write to it: let MICROVM_FIRECRACKER_STATE_DIR name")
      const file = yield* Effect.flip(Effect.scoped(make({ parent: write("file", "") })))
      assert.include(file.message, "it is no directory")
    }))

  it.effect("is by default one of this user's session, or below its home", () =>
    Effect.gen(function*() {
      vi.stubEnv("HOME", join(work, "home"))
      vi.stubEnv("XDG_RUNTIME_DIR", undefined)
      assert.strictEqual(yield* where, join(work, "home/.local/state/effect-microvm-runtime/firecracker"))
      vi.stubEnv("XDG_RUNTIME_DIR", work)
      assert.strictEqual(yield* where, join(work, "effect-microvm-runtime/firecracker"))
    }))

  it.effect.skipIf(!isRoot)("is not by default one of a session of another user", () =>
    Effect.gen(function*() {
      vi.stubEnv("HOME", join(work, "home"))
      vi.stubEnv("XDG_RUNTIME_DIR", work)
      NodeFs.chownSync(work, 65534, 65534)
      assert.strictEqual(yield* where, join(work, "home/.local/state/effect-microvm-runtime/firecracker"))
    }))
})

layer(host, { excludeTestServices: true })("a directory that is kept", (it) => {
  it.effect("is this very one, stays, and is made once", () =>
    Effect.gen(function*() {
      const path = join(work, "kept")
      const make = use(({ keepDirectory }) =>
        keepDirectory(path, { links: new Map([["drive-a", "/dev/null"]]), files: ["log"] })
      )
      yield* make
      assert.strictEqual(NodeFs.statSync(path).mode & 0o777, 0o700)
      assert.deepStrictEqual(NodeFs.readdirSync(path).toSorted(), ["drive-a", "log"])
      assert.include((yield* Effect.flip(make)).message, "there is, or was, a machine in it: give an empty one")
      NodeFs.mkdirSync(join(path, "below"))
      yield* use(({ empty }) => empty(path))
      assert.deepStrictEqual(NodeFs.readdirSync(path), [])
      assert.isTrue(NodeFs.statSync("/dev/null").isCharacterDevice())
      assert.include((yield* Effect.flip(use(({ empty }) => empty(join(work, "none"))))).message, "ENOENT")
    }))

  it.effect("has texts that are whole, for this user alone", () =>
    Effect.gen(function*() {
      const path = join(work, "text")
      const read = (file: string) => use((one) => one.read(file))
      assert.isUndefined(yield* read(path))
      yield* use((one) => one.write(path, "caf\u00e9"))
      assert.strictEqual(yield* read(path), "caf\u00e9")
      assert.strictEqual(NodeFs.statSync(path).mode & 0o777, 0o600)
      assert.isFalse(NodeFs.existsSync(`${path}.new`))
      NodeFs.symlinkSync(path, join(work, "text-link"))
      assert.include((yield* Effect.flip(read(join(work, "text-link")))).message, "ELOOP")
      assert.include((yield* Effect.flip(read(work))).message, "it is no file of")
      assert.include((yield* Effect.flip(read(write("large", "x".repeat(2 ** 20 + 1))))).message, "it is no file of")
    }))
})
