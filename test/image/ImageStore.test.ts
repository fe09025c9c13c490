import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { describe, expect, it } from "@effect/vitest"
import { Cpio, type ImageProgress, type ImageRecipe, ImageStore, NodeHasher } from "effect-microvm-runtime/image"
import { ProcessHost, SupervisorGuard } from "effect-microvm-runtime/process"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as PlatformError from "effect/PlatformError"
import { TestClock } from "effect/testing"
import { execFileSync } from "node:child_process"
import { dirname, join } from "node:path"
import { readCpio } from "./cpioReader.ts"
import { type Answer, fakeDebian } from "./FakeDebian.ts"

const recipe: ImageRecipe.ImageRecipe = {
  kernelPackage: "linux-image-cloud-amd64",
  agentPackage: "qemu-guest-agent",
  shellPackage: "busybox-static",
  modules: [{ name: "virtio_ring" }, { name: "virtio" }, { name: "virtio_net", device: 1 }],
  entries: [Cpio.file("init", "#!/bin/sh\n", 0o755)]
}

const SELF = 4242

/** The processes that are said to run; our own is one of them. */
const processes = (alive: ReadonlyArray<{ readonly pid: number; readonly startTime: number }> = []) =>
  Layer.mock(ProcessHost.ProcessHost, {
    bootId: "this-boot",
    self: SELF,
    cgroupRoot: Option.none(),
    cgroup: () => {
      throw new Error("no cgroups are expected")
    },
    inspect: (pid) =>
      Effect.succeed(Option.map(
        Option.fromUndefinedOr([{ pid: SELF, startTime: 7 }, ...alive].find((one) => one.pid === pid)),
        ({ startTime }): ProcessHost.ProcessInfo => ({
          pid,
          startTime,
          parent: 1,
          group: pid,
          session: pid,
          state: "S",
          command: "node",
          mark: undefined
        })
      ))
  })

const files = Layer.merge(NodeFileSystem.layer, NodePath.layer)

const withDirectory = <A, E, R>(
  use: (directory: string) => Effect.Effect<A, E, R>
) =>
  Effect.scoped(Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    return yield* use(yield* fs.makeTempDirectoryScoped({ prefix: "image-store-" }))
  })).pipe(Effect.provide(files))

type Alive = Parameters<typeof processes>[0]

/** What a store needs of its host. */
const host = (
  debian: ReturnType<typeof fakeDebian>,
  fileSystem: Layer.Layer<FileSystem.FileSystem> = NodeFileSystem.layer,
  alive?: Alive
) =>
  Layer.mergeAll(
    debian.layer,
    SupervisorGuard.layerNone,
    processes(alive),
    NodeHasher.layer,
    fileSystem,
    NodePath.layer
  )

const store = (
  directory: string,
  debian: ReturnType<typeof fakeDebian>,
  { alive, fileSystem, ...options }: Partial<ImageStore.StoreOptions> & {
    readonly alive?: Alive
    readonly fileSystem?: Layer.Layer<FileSystem.FileSystem>
  } = {}
) =>
  ImageStore.layerAt({ directory, recipes: { default: recipe }, ...options }).pipe(
    Layer.provide(host(debian, fileSystem, alive))
  )

/** Runs against a store of its own. */
const using = <A, E>(
  layer: Layer.Layer<ImageStore.ImageStore>,
  use: (images: ImageStore.ImageStore["Service"]) => Effect.Effect<A, E>
) => ImageStore.ImageStore.use(use).pipe(Effect.provide(layer))

const recorder = () => {
  const steps: Array<ImageProgress.Progress> = []
  return { steps, onProgress: (progress: ImageProgress.Progress) => Effect.sync(() => void steps.push(progress)) }
}

/** What is left beside images and names. */
const leftovers = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const top = (yield* fs.readDirectory(directory)).filter((name) => !["images", "names", "tmp"].includes(name))
  return [...top, ...yield* fs.readDirectory(path.join(directory, "tmp"))]
})

const failing = (step: string, answer: Answer) =>
  fakeDebian({
    answer: (command, args) => Effect.succeed([command, ...args].join(" ").includes(step) ? answer : undefined)
  })

describe("ImageStore", () => {
  it.effect("tells whether images could be built, and makes nothing", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      const writable = (below: string) =>
        Effect.result(using(store(`${directory}/${below}`, fakeDebian()), (images) => images.writable))
      expect(yield* writable("not/there/yet")).toMatchObject({ _tag: "Success" })
      yield* fs.writeFileString(`${directory}/file`, "")
      expect(yield* writable("file/cache")).toMatchObject({ failure: { reason: { _tag: "CacheUnusable" } } })
      expect(yield* fs.readDirectory(directory)).toEqual(["file"])
    })))

  it.effect("builds an image of what the packages hold and the recipe adds", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      const { onProgress, steps } = recorder()
      const image = yield* using(store(directory, fakeDebian()), (images) => images.ensure("default", { onProgress }))
      expect(image.kernelRelease).toBe("6.1.0-1-cloud-amd64")
      expect(yield* fs.readFileString(image.kernel)).toContain("a kernel")
      const members = readCpio(yield* fs.readFile(image.initramfs))
      expect(members.filter(({ mode }) => (mode & 0o170000) === 0o100000).map(({ path }) => path)).toEqual([
        "bin/busybox",
        "init",
        "lib/modules/microvm.list",
        "lib/modules/virtio_net.ko.xz",
        "lib/modules/virtio_ring.ko",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libglib-2.0.so.0",
        "lib/x86_64-linux-gnu/libpcre2-8.so.0",
        "lib64/ld-linux-x86-64.so.2",
        "usr/sbin/qemu-ga"
      ])
      // virtio is built into this kernel.
      const list = members.find(({ path }) => path === "lib/modules/microvm.list")
      expect(new TextDecoder().decode(list?.data)).toBe("- virtio_ring.ko\n0x0001 virtio_net.ko.xz\n")
      expect(image.manifest.packages.map(({ name }) => name)).toEqual([
        "busybox-static",
        "libc6",
        "libglib2.0-0",
        "libpcre2-8-0",
        "linux-image-6.1.0-1-cloud-amd64",
        "qemu-guest-agent"
      ])
      expect(image.manifest.packages[0]?.version).toBe("1:1.0-1")
      expect(Array.from(new Set(steps.map(({ _tag }) => _tag)))).toEqual([
        "Resolving",
        "Downloading",
        "Unpacking",
        "Assembling"
      ])
      expect(steps.findLast(({ _tag }) => _tag === "Downloading")).toEqual({
        _tag: "Downloading",
        receivedBytes: 6000,
        totalBytes: 6000
      })
      expect(yield* leftovers(directory)).toEqual([])
    })))

  for (const umask of [0o000, 0o077]) {
    it.effect(`lets all read the files, and nobody else write there, with a umask of ${umask.toString(8)}`, () =>
      withDirectory((directory) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          yield* Effect.acquireRelease(
            Effect.sync(() => process.umask(umask)),
            (before) => Effect.sync(() => process.umask(before))
          )
          const image = yield* using(store(directory, fakeDebian()), (images) => images.ensure())
          for (const file of [image.kernel, image.initramfs]) {
            expect((yield* fs.stat(file)).mode & 0o777).toBe(0o644)
            expect((yield* fs.stat(dirname(file))).mode & 0o002).toBe(0)
          }
        }).pipe(Effect.scoped)
      ))
  }

  it.effect("takes what is built without asking apt, and gives the same digest wherever it is built", () =>
    withDirectory((one) =>
      withDirectory(Effect.fnUntraced(function*(other) {
        const built = yield* using(store(one, fakeDebian()), (images) => images.ensure())
        const offline = fakeDebian({ absent: ["dpkg", "apt-cache", "apt-get", "dpkg-deb"] })
        expect(yield* using(store(one, offline), (images) => images.ensure())).toEqual(built)
        expect(offline.calls).toEqual([])
        const again = yield* using(store(other, fakeDebian()), (images) => images.ensure())
        expect(again.digest).toBe(built.digest)
      }))
    ))

  const damages: Readonly<
    Record<
      string,
      (image: ImageStore.Image, fs: FileSystem.FileSystem) => Effect.Effect<void, PlatformError.PlatformError>
    >
  > = {
    "another kernel of the same length": (image, fs) =>
      Effect.flatMap(fs.readFile(image.kernel), (bytes) => fs.writeFile(image.kernel, bytes.map((byte) => byte ^ 1))),
    "a file system that is cut short": (image, fs) => fs.truncate(image.initramfs, 100),
    "no kernel": (image, fs) => fs.remove(image.kernel),
    "a manifest without end": (image, fs) =>
      Effect.andThen(
        fs.remove(join(dirname(image.kernel), "manifest.json")),
        fs.symlink("/dev/zero", join(dirname(image.kernel), "manifest.json"))
      ),
    "a pipe for a kernel": (image, fs) =>
      Effect.andThen(fs.remove(image.kernel), Effect.sync(() => execFileSync("mkfifo", [image.kernel]))),
    "another manifest": (image, fs) =>
      fs.writeFileString(join(dirname(image.kernel), "manifest.json"), JSON.stringify(image.manifest, null, 1))
  }
  for (const [damage, doIt] of Object.entries(damages)) {
    it.effect(`builds again what was damaged: ${damage}`, () =>
      withDirectory(Effect.fnUntraced(function*(directory) {
        const fs = yield* FileSystem.FileSystem
        const { onProgress, steps } = recorder()
        yield* using(
          store(directory, fakeDebian()),
          Effect.fnUntraced(function*(images) {
            const image = yield* images.ensure()
            const kernel = yield* Effect.orDie(fs.readFileString(image.kernel))
            yield* Effect.orDie(doIt(image, fs))
            expect(yield* images.ensure("default", { onProgress })).toEqual(image)
            expect(yield* Effect.orDie(fs.readFileString(image.kernel))).toBe(kernel)
          })
        )
        expect(steps[0]).toMatchObject({ _tag: "Rebuilding" })
        expect(yield* leftovers(directory)).toEqual([])
      })))
  }

  it.effect("builds anew for another recipe, and keeps the image before", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const before = yield* using(store(directory, fakeDebian()), (images) => images.ensure())
      const changed = { ...recipe, entries: [Cpio.file("init", "#!/bin/sh\n: other\n", 0o755)] }
      yield* using(
        store(directory, fakeDebian(), { recipes: { default: changed } }),
        Effect.fnUntraced(function*(images) {
          const after = yield* images.ensure()
          expect(after.digest).not.toBe(before.digest)
          const listed = yield* images.list
          expect(listed).toHaveLength(2)
          expect(listed.find(({ digest }) => digest === after.digest)?.names).toEqual(["default"])
          expect(listed.find(({ digest }) => digest === before.digest)?.names).toEqual([])
          expect(yield* images.remove(before.digest)).toBe(true)
          expect((yield* images.list).map(({ digest }) => digest)).toEqual([after.digest])
          expect(yield* images.remove("default")).toBe(true)
          expect(yield* images.remove("default")).toBe(false)
          expect(yield* images.list).toEqual([])
        })
      )
    })))

  it.effect("update builds for newer packages only", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const debian = fakeDebian()
      yield* using(
        store(directory, debian),
        Effect.fnUntraced(function*(images) {
          const first = yield* images.ensure()
          debian.calls.length = 0
          expect(yield* images.update()).toEqual(first)
          expect(debian.calls.some((call) => call.startsWith("dpkg-deb"))).toBe(false)
          debian.state.revision = "2"
          const second = yield* images.update()
          expect(second.digest).not.toBe(first.digest)
          expect(yield* images.ensure()).toEqual(second)
        })
      )
    })))

  it.effect("two images of the same recipe share their files, until both are removed", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const recipes = { default: recipe, other: recipe }
      yield* using(
        store(directory, fakeDebian(), { recipes }),
        Effect.fnUntraced(function*(images) {
          const one = yield* images.ensure()
          expect((yield* images.ensure("other")).digest).toBe(one.digest)
          yield* images.remove("default")
          expect((yield* images.list).map(({ names }) => names)).toEqual([["other"]])
          yield* images.remove("other")
          expect(yield* images.list).toEqual([])
        })
      )
    })))

  it.effect("gives up on a mirror that says nothing, and does not ask it for lists", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      const debian = fakeDebian({
        answer: (command, args) =>
          command === "apt-get" && args.includes("download") && !args.includes("--print-uris")
            ? Effect.never
            : Effect.succeed(undefined)
      })
      const { onProgress, steps } = recorder()
      const fiber = yield* Effect.forkChild(
        using(store(directory, debian), (images) => Effect.flip(images.ensure("default", { onProgress })))
      )
      // Each look at the files is real input, so virtual time has to be given again and again.
      const error = yield* Effect.raceFirst(
        Fiber.join(fiber),
        Effect.forever(Effect.andThen(TestClock.adjust("200 millis"), TestClock.withLive(Effect.sleep("1 millis"))))
      )
      expect(error.message).toContain("nothing has come for a minute")
      expect(steps.filter(({ _tag }) => _tag === "Downloading").length).toBeGreaterThanOrEqual(300)
      expect(debian.calls.some((call) => call.endsWith("update"))).toBe(false)
      expect(yield* fs.readDirectory(join(directory, "tmp"))).toEqual([])
    })))

  it.effect("of two builders one builds and the other waits for it", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const started = yield* Deferred.make<void>()
      const go = yield* Deferred.make<void>()
      const slow = fakeDebian({
        answer: (command) =>
          command === "dpkg-deb"
            ? Deferred.succeed(started, undefined).pipe(Effect.andThen(Deferred.await(go)), Effect.as(undefined))
            : Effect.succeed(undefined)
      })
      const idle = fakeDebian()
      const waited = yield* Deferred.make<number>()
      const first = yield* Effect.forkChild(using(store(directory, slow), (images) => images.ensure()))
      yield* Deferred.await(started)
      const second = yield* Effect.forkChild(using(store(directory, idle), (images) =>
        images.ensure("default", {
          onProgress: (step) =>
            step._tag === "Waiting" ? Effect.asVoid(Deferred.succeed(waited, step.pid)) : Effect.void
        })))
      expect(yield* Deferred.await(waited)).toBe(SELF)
      yield* Deferred.succeed(go, undefined)
      const built = yield* Fiber.join(first)
      yield* TestClock.adjust("1 second")
      expect(yield* Fiber.join(second)).toEqual(built)
      expect(idle.calls).toEqual([])
      expect(yield* leftovers(directory)).toEqual([])
    })))

  const lockOf = (pid: number, startTime: number, bootId = "this-boot") => JSON.stringify({ bootId, pid, startTime })
  const deadLocks = {
    "whose owner is gone": lockOf(99, 1),
    "whose owner's pid is now another's": lockOf(50, 1),
    "of another boot": lockOf(50, 5, "another-boot"),
    "that cannot be read": "{"
  }
  for (const [which, content] of Object.entries(deadLocks)) {
    it.effect(`takes over a lock ${which}`, () =>
      withDirectory(Effect.fnUntraced(function*(directory) {
        const fs = yield* FileSystem.FileSystem
        yield* fs.writeFileString(`${directory}/lock`, content)
        yield* using(
          store(directory, fakeDebian(), { alive: [{ pid: 50, startTime: 5 }] }),
          (images) => images.ensure()
        )
        expect(yield* leftovers(directory)).toEqual([])
      })))
  }

  it.effect("waits for a living builder as long as its patience, and says who it is", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      yield* fs.writeFileString(`${directory}/lock`, lockOf(50, 5))
      const waiting = yield* Deferred.make<void>()
      const options = { alive: [{ pid: 50, startTime: 5 }], patience: "1 minute" } as const
      const fiber = yield* Effect.forkChild(
        using(store(directory, fakeDebian(), options), (images) =>
          Effect.flip(images.ensure("default", {
            onProgress: () => Effect.asVoid(Deferred.succeed(waiting, undefined))
          })))
      )
      yield* Deferred.await(waiting)
      // Each look at the lock is real input, so virtual time has to be given again and again.
      const error = yield* Effect.raceFirst(
        Fiber.join(fiber),
        Effect.forever(Effect.andThen(TestClock.adjust("10 seconds"), TestClock.withLive(Effect.sleep("5 millis"))))
      )
      expect(error.reason).toEqual({ _tag: "Busy", pid: 50, path: `${directory}/lock` })
      expect(error.message).toContain("process 50")
      expect(yield* fs.readFileString(`${directory}/lock`)).toBe(lockOf(50, 5))
    })))

  it.effect("removes what dead builders left, and leaves the living theirs", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      for (const name of ["this-boot.99.1.abc", "this-boot.50.5.abc", "other-boot.50.5.abc"]) {
        yield* fs.makeDirectory(`${directory}/tmp/${name}/root`, { recursive: true })
      }
      yield* using(store(directory, fakeDebian(), { alive: [{ pid: 50, startTime: 5 }] }), (images) => images.ensure())
      expect(yield* leftovers(directory)).toEqual(["this-boot.50.5.abc"])
    })))

  it.effect("clears up before it makes anything of its own, as the disk may be full of what a dead builder left", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      const dead = `${directory}/tmp/this-boot.99.1.abc`
      yield* fs.makeDirectory(dead, { recursive: true })
      const full = Layer.succeed(FileSystem.FileSystem, {
        ...fs,
        makeTempDirectory: (options) =>
          Effect.flatMap(fs.exists(dead), (isFull) =>
            isFull
              ? PlatformError.systemError({ _tag: "Unknown", module: "FileSystem", method: "makeTempDirectory" })
              : fs.makeTempDirectory(options))
      })
      const layer = store(directory, fakeDebian(), { fileSystem: full })
      expect((yield* using(layer, (images) => images.ensure())).name).toBe("default")
      expect(yield* leftovers(directory)).toEqual([])
    })))

  it.effect("a pipe in the place of a name is none, and what is built takes its place", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      yield* fs.makeDirectory(join(directory, "names"))
      execFileSync("mkfifo", [join(directory, "names", "default.json")])
      yield* using(
        store(directory, fakeDebian()),
        Effect.fnUntraced(function*(images) {
          expect(Option.isNone(yield* images.known())).toBe(true)
          const built = yield* images.ensure()
          expect((yield* images.list).map(({ digest, names }) => ({ digest, names }))).toEqual([
            { digest: built.digest, names: ["default"] }
          ])
        })
      )
    })))

  it.effect("is not kept from building by a leftover that cannot be removed", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      const stuck = join(directory, "tmp", "this-boot.99.1.abc")
      yield* fs.makeDirectory(stuck, { recursive: true })
      const tried = yield* Deferred.make<void>()
      const busy = Layer.succeed(FileSystem.FileSystem, {
        ...fs,
        remove: (path, options) =>
          path === stuck
            ? Deferred.succeed(tried, undefined).pipe(
              Effect.andThen(PlatformError.systemError({ _tag: "Busy", module: "FileSystem", method: "remove" }))
            )
            : fs.remove(path, options)
      })
      const layer = store(directory, fakeDebian(), { fileSystem: busy })
      const fiber = yield* Effect.forkChild(using(layer, (images) => images.ensure()))
      yield* Deferred.await(tried)
      yield* TestClock.adjust("1 minute")
      expect((yield* Fiber.join(fiber)).name).toBe("default")
    })))

  it.effect("an interrupted build leaves nothing", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const started = yield* Deferred.make<void>()
      const hanging = fakeDebian({
        answer: (command) =>
          command === "dpkg-deb"
            ? Effect.andThen(Deferred.succeed(started, undefined), Effect.never)
            : Effect.succeed(undefined)
      })
      const fiber = yield* Effect.forkChild(using(store(directory, hanging), (images) => images.ensure()))
      yield* Deferred.await(started)
      yield* Fiber.interrupt(fiber)
      expect(yield* leftovers(directory)).toEqual([])
      expect(yield* using(store(directory, fakeDebian()), (images) => images.list)).toEqual([])
    })))

  const failures: ReadonlyArray<{
    readonly what: string
    readonly debian: ReturnType<typeof fakeDebian>
    readonly reason: string
    readonly says: ReadonlyArray<string>
  }> = [
    {
      what: "no apt",
      debian: fakeDebian({ absent: ["apt-cache"] }),
      reason: "AptUnavailable",
      says: ["apt-cache", "MICROVM_CACHE_DIR"]
    },
    { what: "no dpkg", debian: fakeDebian({ absent: ["dpkg"] }), reason: "AptUnavailable", says: ["dpkg"] },
    {
      what: "another architecture",
      debian: failing("--print-architecture", { stdout: "riscv64\n" }),
      reason: "UnsupportedArchitecture",
      says: ["riscv64", "amd64"]
    },
    {
      what: "a package that apt does not know",
      debian: failing("apt-cache depends", { code: 100, stderr: "E: No packages found" }),
      reason: "PackageMissing",
      says: ["linux-image-cloud-amd64", "apt-get update", "E: No packages found"]
    },
    {
      what: "a package without an address",
      debian: failing("--print-uris", { stdout: "" }),
      reason: "PackageMissing",
      says: ["qemu-guest-agent"]
    },
    {
      what: "a download that fails",
      debian: failing("Acquire::Retries", { code: 100, stderr: "E: 404 Not Found" }),
      reason: "DownloadFailed",
      says: ["apt-get download", "E: 404 Not Found"]
    },
    {
      what: "a download that fills the disk",
      debian: failing("Acquire::Retries", {
        code: 100,
        stderr: "E: Write error - write (28: No space left on device)"
      }),
      reason: "NoSpace",
      says: ["no space left"]
    },
    {
      what: "a package that cannot be unpacked",
      debian: failing("dpkg-deb", { code: 2, stderr: "dpkg-deb: error: unexpected end of file" }),
      reason: "UnpackFailed",
      says: ["unexpected end of file"]
    },
    {
      what: "a package without what is needed of it",
      debian: failing("dpkg-deb", {}),
      reason: "UnexpectedContent",
      says: ["boot/vmlinuz-6.1.0-1-cloud-amd64"]
    }
  ]
  for (const { debian, reason, says, what } of failures) {
    it.effect(`fails in order: ${what}`, () =>
      withDirectory(Effect.fnUntraced(function*(directory) {
        const error = yield* using(store(directory, debian), (images) => Effect.flip(images.ensure()))
        expect(error.reason._tag).toBe(reason)
        for (const part of says) expect(error.message).toContain(part)
        if (error.reason._tag === "NoSpace") expect(error.reason.path).toBe(directory)
        expect(yield* leftovers(directory)).toEqual([])
      })))
  }

  it.effect("a recipe whose shell is linked against libraries makes no image: its guest would not start", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const recipes = { default: { ...recipe, shellPackage: "busybox" } }
      const layer = store(directory, fakeDebian(), { recipes })
      const { message, reason } = yield* using(layer, (images) => Effect.flip(images.ensure()))
      expect(reason._tag).toBe("UnexpectedContent")
      for (const part of ["bin/busybox", "libc.so.6", "shellPackage", "busybox-static"]) expect(message).toContain(part)
    })))

  it.effect("updates apt's lists once where it may, and tries again", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      let updated = false
      const debian = fakeDebian({
        answer: (command, args) =>
          Effect.sync(() => {
            if (command === "apt-get" && args.includes("update")) {
              updated = true
              return {}
            }
            return command === "apt-cache" && !updated ? { code: 100, stderr: "E: No packages found" } : undefined
          })
      })
      const mayWriteLists = Layer.effect(
        FileSystem.FileSystem,
        Effect.map(FileSystem.FileSystem, (fs): FileSystem.FileSystem => ({
          ...fs,
          access: (path, options) => path.startsWith("/var/lib/apt/lists") ? Effect.void : fs.access(path, options)
        }))
      ).pipe(Layer.provide(NodeFileSystem.layer))
      const { onProgress, steps } = recorder()
      const layer = store(directory, debian, { fileSystem: mayWriteLists })
      yield* using(layer, (images) => images.ensure("default", { onProgress }))
      expect(steps.map(({ _tag }) => _tag).slice(0, 4)).toEqual([
        "Resolving",
        "UpdatingLists",
        "Resolving",
        "Downloading"
      ])
    })))

  it.effect("a full disk and a cache that cannot be written have names of their own", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const breaking = (method: "link" | "rename", code: string) =>
        Layer.effect(
          FileSystem.FileSystem,
          Effect.map(FileSystem.FileSystem, (fs) => ({
            ...fs,
            [method]: () =>
              Effect.fail(PlatformError.systemError({
                _tag: "Unknown",
                module: "FileSystem",
                method,
                cause: Object.assign(new Error(code), { code })
              }))
          }))
        ).pipe(Layer.provide(NodeFileSystem.layer))
      const errorWith = (fileSystem: Layer.Layer<FileSystem.FileSystem>) =>
        using(
          store(directory, fakeDebian(), { fileSystem }),
          (images) => Effect.flip(images.ensure())
        )
      expect((yield* errorWith(breaking("rename", "ENOSPC"))).reason).toEqual({ _tag: "NoSpace", path: directory })
      expect((yield* errorWith(breaking("link", "EROFS"))).reason).toMatchObject({
        _tag: "CacheUnusable",
        path: directory
      })
      expect(yield* leftovers(directory)).toEqual([])
    })))

  it.effect("knows its images only", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const error = yield* using(store(directory, fakeDebian()), (images) => Effect.flip(images.ensure("../x")))
      expect(error.message).toBe("there is no image \"../x\": the images are default")
    })))

  const places: ReadonlyArray<readonly [Record<string, string>, string]> = [
    [{ MICROVM_CACHE_DIR: "/a/b", XDG_CACHE_HOME: "/c", HOME: "/h" }, "/a/b"],
    [{ XDG_CACHE_HOME: "/c", HOME: "/h" }, "/c/effect-microvm-runtime"],
    [{ XDG_CACHE_HOME: "relative", HOME: "/h" }, "/h/.cache/effect-microvm-runtime"],
    [{ HOME: "/h" }, "/h/.cache/effect-microvm-runtime"]
  ]
  it.effect.each(places)("finds its directory in the environment", ([env, expected]) =>
    Effect.gen(function*() {
      const asked: Array<string> = []
      const fs = FileSystem.layerNoop({
        readDirectory: (path) => Effect.sync(() => (asked.push(path), []))
      })
      const layer = ImageStore.layer.pipe(
        Layer.provide(host(fakeDebian(), fs)),
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
      )
      yield* ImageStore.ImageStore.use((images) => images.list).pipe(Effect.provide(layer))
      expect(asked).toEqual([`${expected}/names`, `${expected}/images`])
    }))
})
