import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterEach, assert, beforeEach, describe, it as test, layer, vi } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import { connect } from "node:net"
import { release, tmpdir } from "node:os"
import { dirname, join } from "node:path"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import { describeCpu } from "../../src/qemu/internal/NodeCpu.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import { QemuHost } from "../../src/qemu/QemuHost.ts"

const host = NodeQemuHost.layer.pipe(Layer.provide(NodeProcessSpawner.layer), Layer.provideMerge(NodeServices.layer))

const own = { _tag: "Own", why: "a test" } as const

/** A place of our own for what is temporary, so that what is left of it can be seen. */
let work = ""
let temporary = ""
beforeEach(() => {
  vi.unstubAllEnvs()
  work = NodeFs.mkdtempSync(join(tmpdir(), "node-qemu-host-"))
  temporary = join(work, "tmp")
  NodeFs.mkdirSync(temporary)
  vi.stubEnv("TMPDIR", temporary)
})
afterEach(() => {
  vi.unstubAllEnvs()
  // Under load, what a test has started may still write.
  NodeFs.rmSync(work, { recursive: true, maxRetries: 10, retryDelay: 50 })
})

/** The file of a command. */
const realpathOf = (command: string): string => NodeFs.realpathSync(`/usr/bin/${command}`)

/** A connection, and when it is over, by whatever means. */
const dial = (path: string) => {
  const socket = connect(path)
  const { promise, resolve } = Promise.withResolvers<void>()
  socket.on("error", () => {}).on("close", () => resolve())
  return { socket, closed: Effect.promise(() => promise) }
}

layer(host, { excludeTestServices: true })("a receiver", (it) => {
  const receive = (file: string) => QemuHost.use((service) => service.receive(file, own))

  it.effect("writes what one connection sends, and is not to be found any more", () =>
    Effect.gen(function*() {
      const file = join(work, "state")
      const bytes = Buffer.alloc(3_000_000, "0123456789")
      yield* Effect.scoped(Effect.gen(function*() {
        const { path, received } = yield* receive(file)
        assert.strictEqual(NodeFs.statSync(path).mode & 0o777, 0o600)
        assert.strictEqual(NodeFs.statSync(dirname(path)).mode & 0o777, 0o711)
        const socket = connect(path)
        yield* Effect.promise(() => once(socket, "connect"))
        socket.write(bytes.subarray(0, 1_000_000))
        socket.end(bytes.subarray(1_000_000))
        yield* received
        assert.deepStrictEqual(NodeFs.readdirSync(temporary), [])
        assert.isTrue(NodeFs.readFileSync(file).equals(bytes))
      }))
      assert.strictEqual(NodeFs.statSync(file).mode & 0o777, 0o600)
    }))

  it.effect("takes no second connection", () =>
    Effect.gen(function*() {
      const file = join(work, "state")
      const { path, received } = yield* receive(file)
      // Both are in the queue before the first is taken.
      const [first, second] = [dial(path), dial(path)]
      second.socket.end("second")
      first.socket.end("first")
      yield* received
      yield* second.closed
      assert.strictEqual(NodeFs.readFileSync(file, "utf8"), "first")
    }))

  it.effect("that nobody connects to leaves nothing", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Scope.provide(receive(join(work, "state")), scope)
      assert.lengthOf(NodeFs.readdirSync(temporary), 1)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(NodeFs.readdirSync(temporary), [])
    }))

  it.effect("hangs up when it is given up", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { path } = yield* Scope.provide(receive(join(work, "state")), scope)
      const { closed, socket } = dial(path)
      yield* Effect.promise(() => once(socket, "connect"))
      socket.write("a part")
      yield* Scope.close(scope, Exit.void)
      yield* closed
      assert.deepStrictEqual(NodeFs.readdirSync(temporary), [])
    }))

  it.effect("hangs up on whoever connects while it is given up", () =>
    Effect.forEach(
      Array.from({ length: 200 }, (_, index) => join(work, `state-${index}`)),
      (file) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const { path } = yield* Scope.provide(receive(file), scope)
          const { closed, socket } = dial(path)
          // It is through, and nobody here may have heard of it.
          yield* Effect.promise(() => once(socket, "connect"))
          yield* Scope.close(scope, Exit.void)
          yield* closed
          assert.deepStrictEqual(NodeFs.readdirSync(temporary), [])
        }),
      { discard: true }
    ))

  it.effect("overwrites nothing, and names what cannot be made", () =>
    Effect.gen(function*() {
      const file = join(work, "state")
      NodeFs.writeFileSync(file, "old")
      assert.match((yield* Effect.flip(receive(file))).message, /state: it cannot be written: .*EEXIST/)
      assert.match((yield* Effect.flip(receive(join(work, "no", "state")))).message, /ENOENT/)
      vi.stubEnv("TMPDIR", join(work, "no"))
      assert.match((yield* Effect.flip(receive(join(work, "other")))).message, /no directory for a socket: .*ENOENT/)
    }))
})

layer(host, { excludeTestServices: true })("memory without a name", (it) => {
  const size = 5 * 2 ** 20 + 4096
  const makeRam = (bytes: number) => QemuHost.use((service) => service.makeRam(bytes))

  it.effect("is shared with our children, copied with its holes, and gone with us", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { copyTo, path } = yield* Scope.provide(makeRam(size), scope)
      assert.match(NodeFs.readlinkSync(path), /\(deleted\)$/)
      assert.strictEqual(NodeFs.statSync(path).nlink, 0)
      const child = `printf first | dd of=${path} conv=notrunc 2>&1; printf last | dd of=${path} bs=1 seek=${
        size - 4
      } conv=notrunc 2>&1`
      execFileSync("/bin/sh", ["-c", child])
      const expected = NodeFs.readFileSync(path)
      assert.strictEqual(expected.length, size)
      assert.strictEqual(expected.toString("latin1", 0, 5), "first")

      const copy = join(work, "memory")
      yield* copyTo(copy, 0o666)
      assert.isTrue(NodeFs.readFileSync(copy).equals(expected))
      const { blocks, mode } = NodeFs.statSync(copy)
      assert.strictEqual(mode & 0o777, 0o666)
      assert.isAtMost(blocks * 512, 256 * 1024)

      yield* Scope.close(scope, Exit.void)
      assert.isFalse(NodeFs.existsSync(path))
    }))

  it.effect("is zero, and so is its copy", () =>
    Effect.gen(function*() {
      const { copyTo } = yield* makeRam(size)
      const copy = join(work, "memory")
      yield* copyTo(copy, 0o600)
      assert.isTrue(NodeFs.readFileSync(copy).equals(Buffer.alloc(size)))
      assert.match((yield* Effect.flip(copyTo(copy, 0o600))).message, /memory: the memory cannot be copied: .*EEXIST/)
    }))

  it.effect("that cannot be read to its end is not copied as if it were zero", () =>
    Effect.gen(function*() {
      const { copyTo, path } = yield* makeRam(size)
      NodeFs.truncateSync(path, size - 4096)
      const { message } = yield* Effect.flip(copyTo(join(work, "memory"), 0o600))
      assert.include(message, `the memory cannot be copied: Error: nothing could be read at ${size - 4096}`)
    }))

  it.effect("that there is no room for says how much there is, and where", () =>
    Effect.gen(function*() {
      const { message } = yield* Effect.flip(makeRam(2 ** 50))
      assert.include(message, "no room for 1073741888 MiB of memory: ")
      assert.match(message, /\/dev\/shm has \d+ MiB free; .*\/tmp has \d+ MiB free/)
    }))
})

layer(host, { excludeTestServices: true })("a file", (it) => {
  const inspect = (path: string, writable?: boolean) => QemuHost.use((service) => service.inspect(path, { writable }))
  const copy = (from: string, to: string) => QemuHost.use((service) => service.copy(from, to))

  it.effect("is looked at, also as one to be written, without a trace", () =>
    Effect.gen(function*() {
      const file = join(work, "memory")
      NodeFs.writeFileSync(file, "memory")
      NodeFs.chmodSync(file, 0o642)
      const times = () => {
        const { ctimeNs, mtimeNs, size } = NodeFs.statSync(file, { bigint: true })
        return [ctimeNs, mtimeNs, size]
      }
      const before = times()
      const facts = { path: file, worldReadable: false, worldWritable: true }
      assert.deepStrictEqual(yield* inspect(file), facts)
      assert.deepStrictEqual(yield* inspect(file, true), facts)
      assert.deepStrictEqual(times(), before)
    }))

  it.effect("that cannot be opened says why, and for what", () =>
    Effect.gen(function*() {
      const fault = (path: string, writable?: boolean) => Effect.map(inspect(path, writable), (facts) => facts.fault)
      assert.strictEqual(yield* fault(join(work, "no")), "it cannot be opened: ENOENT")
      assert.strictEqual(yield* fault(join(work, "no"), true), "it cannot be opened for writing: ENOENT")
      assert.strictEqual(yield* fault(work), "it is no regular file")
      assert.strictEqual(yield* fault(work, true), "it cannot be opened for writing: EISDIR")
      execFileSync("mkfifo", [join(work, "pipe")])
      assert.strictEqual(yield* fault(join(work, "pipe"), true), "it is no regular file")
    }))

  it.effect("is copied whole, for all to read and nobody else to write", () =>
    Effect.gen(function*() {
      const [from, to] = [join(work, "vmlinuz"), join(work, "kernel")]
      NodeFs.writeFileSync(from, Buffer.alloc(3_000_000, "0123456789"), { mode: 0o600 })
      NodeFs.chmodSync(from, 0o4700)
      yield* copy(from, to)
      assert.isTrue(NodeFs.readFileSync(to).equals(NodeFs.readFileSync(from)))
      assert.strictEqual(NodeFs.statSync(to).mode & 0o7777, 0o644)
      assert.strictEqual(NodeFs.statSync(from).mode & 0o7777, 0o4700)
      assert.match((yield* Effect.flip(copy(from, to))).message, /kernel: no copy of .*vmlinuz can be made: .*EEXIST/)
      assert.match((yield* Effect.flip(copy(join(work, "no"), join(work, "new")))).message, /no can be made: .*ENOENT/)
      assert.isFalse(NodeFs.existsSync(join(work, "new")))
    }))

  it.effect("is copied to its end when that is interrupted", () =>
    Effect.gen(function*() {
      const [from, to] = [join(work, "vmlinuz"), join(work, "kernel")]
      NodeFs.writeFileSync(from, Buffer.alloc(64 << 20, "0123456789"))
      const copying = yield* Effect.forkChild(copy(from, to), { startImmediately: true })
      yield* Fiber.interrupt(copying)
      const { mode, size } = NodeFs.statSync(to)
      assert.deepStrictEqual([mode & 0o777, size], [0o644, 64 << 20])
    }))
})

describe("the processor", () => {
  const cpuinfo = "processor\t: 0\nmodel name\t: Model 1\nflags\t\t: fpu vme\n\nprocessor\t: 1\nmodel name\t: Model 2\n"
  const unusable = { _tag: "Unusable", why: "", remedy: "" } as const
  const usable = { _tag: "Usable", gid: 0, mode: 0o666 } as const

  layer(host, { excludeTestServices: true })((it) => {
    it.effect("is the first one, told apart by its features, and with KVM by the kernel too", () =>
      Effect.sync(() => {
        const cpu = (text: string, kernel: string) => describeCpu(text, usable, kernel)
        assert.match(describeCpu(cpuinfo, unusable, "6.1.0"), /^Model 1 \(features [0-9a-f]{8}\)$/)
        assert.strictEqual(describeCpu(cpuinfo, unusable, "6.1.0"), describeCpu(cpuinfo, unusable, "6.2.0"))
        assert.match(cpu(cpuinfo, "6.1.0"), /^Model 1 \(features [0-9a-f]{8}, Linux 6\.1\.0\)$/)
        assert.notStrictEqual(cpu(cpuinfo, "6.1.0"), cpu(cpuinfo, "6.2.0"))
        assert.notStrictEqual(cpu(cpuinfo, "6.1.0"), cpu(cpuinfo.replace("vme", "de"), "6.1.0"))
      }))

    it.effect("has a name, and a digest of its features", () =>
      Effect.gen(function*() {
        const script = join(work, "qemu")
        NodeFs.writeFileSync(script, "#!/bin/sh\necho QEMU emulator version 7.2.22\n", { mode: 0o755 })
        const { cpu, kvm } = yield* QemuHost.use((service) => service.observe({ binary: script }))
        const kernel = kvm._tag === "Usable" ? `, Linux ${release()}` : ""
        assert.match(cpu, /^\S.* \(features [0-9a-f]{8}[^)]*\)$/)
        assert.isTrue(cpu.endsWith(`${kernel})`))
      }))
  })
})

describe("what programs say", () => {
  const version = (directory: string, binary: string, afresh?: boolean) =>
    QemuHost.use((service) => service.observe({ binary, afresh })).pipe(
      Effect.map((seen) => `${seen.version.major}.${seen.version.minor}`),
      Effect.catch((error) => Effect.succeed(error.message)),
      Effect.provide(NodeQemuHost.layerWith({ versions: directory }).pipe(Layer.provide(NodeProcessSpawner.layer))),
      Effect.runPromise
    )

  /** An ELF file, as echo(1) is one: which it is, and so what it says, is not looked at here. */
  const keep = (directory: string, binary: string, answer: string): void => {
    const file = join(directory, "qemu.json")
    const kept = NodeFs.readFileSync(file, "utf8")
    assert.include(kept, `"${binary} `)
    NodeFs.writeFileSync(file, kept.replace(/"answer":"[^"]*"/, `"answer":"${answer}"`))
  }

  test("is kept as long as it is the same program, and is asked for afresh", async () => {
    const directory = join(work, "versions")
    const binary = join(work, "qemu")
    NodeFs.copyFileSync(realpathOf("true"), binary)
    NodeFs.chmodSync(binary, 0o755)
    const unknown = await version(directory, binary)
    assert.include(unknown, "coreutils")
    keep(directory, binary, "QEMU emulator version 9.8.7")
    assert.strictEqual(await version(directory, binary), "9.8")
    assert.strictEqual(await version(directory, binary, true), unknown)
    keep(directory, binary, "QEMU emulator version 9.8.7")
    NodeFs.utimesSync(binary, 1, 1)
    assert.strictEqual(await version(directory, binary), unknown)
  })

  test("is kept with the digest of the program, which is not read again", async () => {
    const directory = join(work, "versions")
    const binary = join(work, "qemu")
    const digest = (from: string | undefined) =>
      QemuHost.use((service) => service.observe({ binary })).pipe(
        Effect.map((seen) => seen.digest),
        Effect.provide(NodeQemuHost.layerWith({ versions: from }).pipe(Layer.provide(NodeProcessSpawner.layer))),
        Effect.runPromise
      )
    NodeFs.copyFileSync(realpathOf("true"), binary)
    NodeFs.chmodSync(binary, 0o755)
    await version(directory, binary)
    const real = createHash("sha256").update(NodeFs.readFileSync(binary)).digest("hex")
    const file = join(directory, "qemu.json")
    assert.include(NodeFs.readFileSync(file, "utf8"), real)
    keep(directory, binary, "QEMU emulator version 9.8.7")
    assert.strictEqual(await digest(directory), real)
    NodeFs.writeFileSync(file, NodeFs.readFileSync(file, "utf8").replace(real, "b".repeat(64)))
    assert.strictEqual(await digest(directory), "b".repeat(64))
    // Of a script, too, though it is asked each time.
    const script = "#!/bin/sh\necho QEMU emulator version 6.5.4\n"
    NodeFs.writeFileSync(binary, script, { mode: 0o755 })
    const ofScript = createHash("sha256").update(script).digest("hex")
    assert.deepStrictEqual([await digest(directory), await digest(undefined)], [ofScript, ofScript])
  })

  test("is not kept of a script, and a file of nonsense is none", async () => {
    const directory = join(work, "versions")
    const binary = join(work, "qemu")
    NodeFs.writeFileSync(binary, "#!/bin/sh\necho QEMU emulator version 6.5.4\n", { mode: 0o755 })
    assert.strictEqual(await version(directory, binary), "6.5")
    assert.isFalse(NodeFs.existsSync(join(directory, "qemu.json")))
    NodeFs.copyFileSync(realpathOf("true"), binary)
    NodeFs.mkdirSync(directory, { recursive: true })
    NodeFs.writeFileSync(join(directory, "qemu.json"), "[")
    assert.include(await version(directory, binary), "coreutils")
    NodeFs.writeFileSync(join(directory, "qemu.json"), "0".repeat(5000))
    assert.include(await version(directory, binary), "coreutils")
    NodeFs.rmSync(join(directory, "qemu.json"))
    execFileSync("mkfifo", [join(directory, "qemu.json")])
    assert.include(await version(directory, binary), "coreutils")
    assert.isTrue(NodeFs.statSync(join(directory, "qemu.json")).isFile())
  })

  test("is not kept when the program failed", async () => {
    const directory = join(work, "versions")
    const binary = join(work, "qemu")
    NodeFs.copyFileSync(realpathOf("false"), binary)
    NodeFs.chmodSync(binary, 0o755)
    await version(directory, binary)
    assert.isFalse(NodeFs.existsSync(join(directory, "qemu.json")))
  })

  test("is not kept when the program said nothing", async () => {
    const directory = join(work, "versions")
    const binary = join(work, "qemu")
    NodeFs.copyFileSync(realpathOf("test"), binary)
    NodeFs.chmodSync(binary, 0o755)
    assert.include(await version(directory, binary), "says \"\"")
    assert.isFalse(NodeFs.existsSync(join(directory, "qemu.json")))
  })

  test("is not kept where nothing can be, which is no fault", async () => {
    NodeFs.copyFileSync(realpathOf("true"), join(work, "qemu"))
    NodeFs.chmodSync(join(work, "qemu"), 0o755)
    assert.include(await version("/dev/null/versions", join(work, "qemu")), "coreutils")
  })
})
