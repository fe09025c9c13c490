import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { type FirecrackerError, Jail, JailPlan, NodeJail, UidPool } from "effect-microvm-runtime/firecracker"
import { NodeProcessHost, NodeProcessSpawner } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"

const uid = process.geteuid?.() ?? 0
const isRoot = uid === 0
const rootOnly = (name: string): string => isRoot ? name : `${name}: not run, as only root can`

const services = NodeJail.layer.pipe(
  Layer.provide(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeProcessHost.layer),
  Layer.provideMerge(NodeServices.layer)
)

/** A directory with a program, a jailer that is none, and a place for jails. */
interface Stage {
  readonly directory: string
  readonly base: string
  readonly host: JailPlan.JailHost
  readonly file: (name: string, content: string, mode?: number) => string
}

const stage = Effect.acquireRelease(
  Effect.sync((): Stage => {
    const directory = Fs.realpathSync(Fs.mkdtempSync(join(tmpdir(), "jail-")))
    const base = join(directory, "jails")
    Fs.mkdirSync(base)
    const file: Stage["file"] = (name, content, mode = 0o644) => {
      const path = join(directory, name)
      Fs.writeFileSync(path, content, { mode })
      return path
    }
    const executable = file("firecracker", "#!/bin/sh\n", 0o755)
    file("jailer", "#!/bin/sh\n", 0o755)
    const cgroups = { unified: { mount: "/sys/fs/cgroup/none", controllers: ["memory", "pids"] }, separate: new Map() }
    return { directory, base, host: { executable, base, cgroups }, file }
  }),
  ({ directory }) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
)

const id = "web-1"
/** Root gives the files away; others can only have jails of their own user. */
const user = isRoot ? 54_321 : uid

const planned = (
  { directory, host }: Stage,
  options: Partial<JailPlan.Options> = {},
  here: Partial<JailPlan.JailHost> = {}
) =>
  Result.getOrThrow(JailPlan.make({ ...host, ...here }, {
    id,
    jailer: join(directory, "jailer"),
    uid: user,
    gid: isRoot ? user : process.getegid?.() ?? user,
    machine: { vcpus: 1, memoryMib: 128 },
    ...options
  }))

const prepare = (plan: JailPlan.JailPlan) => Jail.Jail.use((jail) => jail.prepare(plan))

type Body<A, E> = Effect.Effect<A, E, Jail.Jail | Layer.Success<typeof services> | Scope.Scope>

const live = Object.assign(
  <A, E>(name: string, body: (stage: Stage) => Body<A, E>) =>
    it.live(name, () => Effect.scoped(Effect.flatMap(stage, body)).pipe(Effect.provide(services))),
  {
    each: <const T>(cases: ReadonlyArray<T>) => <A, E>(name: string, body: (each: T, stage: Stage) => Body<A, E>) =>
      it.live.each([...cases])(
        name,
        (each) => Effect.scoped(Effect.flatMap(stage, (here) => body(each, here))).pipe(Effect.provide(services))
      )
  }
)

const why = (error: FirecrackerError.FirecrackerError): string => `${error.reason._tag}: ${error.message}`

const inodeOf = (path: string) => {
  const { gid, ino, mode, nlink, uid: owner } = Fs.statSync(path)
  return { gid, ino, mode, nlink, owner }
}

const isMounted = (path: string): boolean => Fs.readFileSync("/proc/self/mountinfo", "utf8").includes(` ${path} `)

const mounted = (point: string, args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => execFileSync("mount", [...args, point])),
    () => Effect.sync(() => isMounted(point) ? execFileSync("umount", [point]) : undefined)
  )

const loopDevice = (file: string, ...options: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => execFileSync("losetup", ["--find", "--show", ...options, file], { encoding: "utf8" }).trim()),
    (device) => Effect.sync(() => execFileSync("losetup", ["--detach", device]))
  )

/** A process that looks like one of the jail: its arguments name it, and it works there. Ended with the scope. */
const inmate = (plan: JailPlan.JailPlan, cwd: string = plan.root) =>
  Effect.acquireRelease(
    Effect.promise(() =>
      new Promise<ChildProcess & { readonly pid: number }>((resolve, reject) => {
        const child = spawn("/bin/sh", ["-c", "read _", "sh", "--id", plan.id], {
          cwd,
          stdio: ["pipe", "ignore", "ignore"]
        })
        child.once("error", reject)
        child.once("spawn", () => {
          const { pid } = child
          if (pid !== undefined) resolve(Object.assign(child, { pid }))
        })
      })
    ),
    (child) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )

const exitOf = (child: ChildProcess) =>
  new Promise<NodeJS.Signals | null>((resolve) => child.once("exit", (_, signal) => resolve(signal)))

const readText = (path: string): string => {
  try {
    return Fs.readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const cgroupMount = (version: 1 | 2, { base, host: { executable } }: Stage) =>
  Effect.map(
    Jail.Jail.use((jail) => jail.observe({ executable, base })),
    ({ cgroups: { separate, unified } }) => version === 2 ? unified?.mount : separate.get("pids")
  )

const removeGroups = (path: string): void => {
  if (!Fs.existsSync(path)) return
  for (const entry of Fs.readdirSync(path, { withFileTypes: true })) {
    if (entry.isDirectory()) removeGroups(join(path, entry.name))
  }
  Fs.rmdirSync(path)
}

describe("observe", () => {
  live(
    "finds the file itself, the directory itself, and the cgroups",
    ({ base, directory, host }) =>
      Effect.gen(function*() {
        const link = join(directory, "link")
        Fs.symlinkSync(host.executable, link)
        Fs.symlinkSync(base, join(directory, "base"))
        const jail = yield* Jail.Jail
        const seen = yield* jail.observe({ executable: link, base: join(directory, "base") })
        assert.deepInclude(seen, { executable: host.executable, base })
        const { separate, unified } = seen.cgroups
        assert.isTrue(separate.size > 0 || unified !== undefined)
        const missing = yield* Effect.flip(jail.observe({ executable: base, base: join(directory, "none") }))
        assert.match(why(missing), /^InvalidRequest: .*executable is .*; base is .*\(ENOENT\)/)
      })
  )
})

describe("prepare", () => {
  live("puts copies and empty files into the jail, and takes all away in the end", (here) =>
    Effect.gen(function*() {
      const from = here.file("rootfs.ext4", "content", 0o640)
      const before = inodeOf(from)
      const plan = planned(here, {
        files: [
          { how: "copy", name: "rootfs.ext4", from, writable: true },
          { how: "copy", name: "vmlinux", from },
          { how: "empty", name: "log" }
        ]
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const { hadRemains } = yield* prepare(plan)
        assert.isFalse(hadRemains)
        assert.deepStrictEqual(Fs.readdirSync(plan.root).toSorted(), ["log", "rootfs.ext4", "vmlinux"])
        assert.deepStrictEqual(Fs.readdirSync(join(plan.directory, "new")), [])
        for (const [name, mode] of [["log", 0o600], ["rootfs.ext4", 0o600], ["vmlinux", 0o400]] as const) {
          const seen = inodeOf(join(plan.root, name))
          assert.deepInclude(seen, { owner: plan.user.uid, gid: plan.user.gid, nlink: 1 })
          assert.strictEqual(seen.mode & 0o7777, mode)
          assert.notStrictEqual(seen.ino, before.ino)
        }
        assert.strictEqual(Fs.readFileSync(join(plan.root, "rootfs.ext4"), "utf8"), "content")
        Fs.writeFileSync(join(plan.root, "rootfs.ext4"), "other")
      }))
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
      assert.deepStrictEqual(inodeOf(from), before)
      assert.strictEqual(Fs.readFileSync(from, "utf8"), "content")
    }))

  live(rootOnly("gives a jail nodes of block devices, which are the devices themselves"), (here) =>
    isRoot
      ? Effect.gen(function*() {
        const [data, shared] = [
          yield* loopDevice(here.file("data", "d".repeat(4096))),
          yield* loopDevice(here.file("shared", "s".repeat(4096)))
        ]
        const link = join(here.directory, "volume")
        Fs.symlinkSync(data, link)
        const files: JailPlan.Options["files"] = [
          { how: "copy", name: "data", from: link, writable: true },
          { how: "bind", name: "shared", from: shared }
        ]
        const before = [data, shared].map((path) => inodeOf(path))
        const plan = planned(here, { files })
        yield* Effect.scoped(Effect.gen(function*() {
          yield* prepare(plan)
          assert.deepStrictEqual(Fs.readdirSync(join(plan.directory, "new")), [])
          for (
            const [name, device, owner, mode] of [["data", data, user, 0o600], ["shared", shared, 0, 0o440]] as const
          ) {
            const node = Fs.statSync(join(plan.root, name))
            assert.isTrue(node.isBlockDevice())
            assert.strictEqual(node.rdev, Fs.statSync(device).rdev)
            assert.deepInclude(inodeOf(join(plan.root, name)), { owner, gid: user, nlink: 1 })
            assert.strictEqual(node.mode & 0o7777, mode)
          }
          // As the user of the jail, whom the jailer gives its root: one it can write to, and the other only read.
          Fs.chownSync(plan.root, user, user)
          const inJail = (...args: ReadonlyArray<string>) =>
            spawnSync("setpriv", [`--reuid=${user}`, `--regid=${user}`, "--clear-groups", ...args], { cwd: plan.root })
              .status
          assert.strictEqual(inJail("dd", "if=/dev/zero", "of=data", "bs=4096", "count=1", "conv=notrunc,fsync"), 0)
          assert.strictEqual(inJail("dd", "if=shared", "of=/dev/null", "bs=4096", "count=1"), 0)
          assert.notStrictEqual(inJail("dd", "if=/dev/zero", "of=shared", "bs=4096", "count=1", "conv=notrunc"), 0)
          assert.notStrictEqual(inJail("chmod", "660", "shared"), 0)
        }))
        assert.deepStrictEqual(Fs.readdirSync(here.base), [])
        assert.deepStrictEqual([data, shared].map((path) => inodeOf(path)), before)
        assert.strictEqual(Fs.readFileSync(join(here.directory, "data"), "latin1"), "\0".repeat(4096))
      })
      : Effect.void)

  live(rootOnly("refuses to write to a block device that is read-only"), (here) =>
    isRoot
      ? Effect.gen(function*() {
        const from = yield* loopDevice(here.file("data", "d".repeat(4096)), "--read-only")
        const error = yield* Effect.flip(
          prepare(planned(here, { files: [{ how: "copy", name: "data", from, writable: true }] }))
        )
        assert.match(why(error), /files\[0\]\.from .*a block device that we can write to/)
        assert.deepStrictEqual(Fs.readdirSync(here.base), [])
        const plan = planned(here, { files: [{ how: "copy", name: "data", from }] })
        const { add } = yield* prepare(plan)
        assert.isTrue(Fs.statSync(join(plan.root, "data")).isBlockDevice())
        assert.match(
          why(yield* Effect.flip(add({ how: "copy", name: "more", from, writable: true }))),
          /file\.from .*a block device that we can write to/
        )
        yield* add({ how: "copy", name: "more", from })
        assert.isTrue(Fs.statSync(join(plan.root, "more")).isBlockDevice())
      })
      : Effect.void)

  live("copies without filling holes", (here) =>
    Effect.gen(function*() {
      const from = here.file("sparse", "a")
      Fs.truncateSync(from, 20 * 2 ** 20)
      const end = Fs.openSync(from, "r+")
      Fs.writeSync(end, "z", 10 * 2 ** 20)
      Fs.closeSync(end)
      const plan = planned(here, { files: [{ how: "copy", name: "sparse", from }] })
      yield* prepare(plan)
      const to = join(plan.root, "sparse")
      assert.isTrue(Fs.readFileSync(to).equals(Fs.readFileSync(from)))
      assert.isBelow(Fs.statSync(to).blocks * 512, 4 * 2 ** 20)
    }))

  live("tells all that is wrong before it makes anything", (here) =>
    Effect.gen(function*() {
      const hidden = here.file("hidden", "", 0o600)
      const plan = planned(here, {
        jailer: join(here.directory, "none"),
        netns: join(here.directory, "netns"),
        files: [
          { how: "copy", name: "a", from: join(here.directory, "missing") },
          { how: "bind", name: "b", from: here.base },
          ...(isRoot ? [{ how: "bind", name: "c", from: hidden } as const] : [])
        ]
      }, { base: join(here.directory, "nowhere") })
      const error = yield* Effect.flip(prepare(plan))
      assert.strictEqual(error.reason._tag, "InvalidRequest")
      if (error.reason._tag !== "InvalidRequest") return
      assert.deepStrictEqual(error.reason.faults.map(({ field }) => field), [
        "jailer",
        "base",
        "netns",
        "files[0].from",
        "files[1].from",
        ...(isRoot ? ["files[2].from"] : [])
      ])
      if (isRoot) assert.match(error.message, /let uid 54321 read it, or copy it/)
      assert.isFalse(Fs.existsSync(join(here.directory, "nowhere")))
    }))

  live("refuses paths that lead over symbolic links", (here) =>
    Effect.gen(function*() {
      const link = join(here.directory, "fc")
      Fs.symlinkSync(here.host.executable, link)
      const error = yield* Effect.flip(prepare(planned(here, {}, { executable: link })))
      assert.match(why(error), /^InvalidRequest: .*executable is .*symbolic link/)
    }))

  live("refuses directories that others may write to", (here) =>
    Effect.gen(function*() {
      Fs.chmodSync(here.base, 0o777)
      const others = /^InvalidRequest: .*base is .*jails": give a directory of root's that nobody else may write to/
      assert.match(why(yield* Effect.flip(prepare(planned(here)))), others)
      // As /tmp is: what is in it is its owner's.
      Fs.chmodSync(here.base, 0o1777)
      const group = join(here.base, "firecracker")
      Fs.mkdirSync(group)
      Fs.chmodSync(group, 0o777)
      assert.match(
        why(yield* Effect.flip(prepare(planned(here)))),
        /^InvalidRequest: .*base is .*jails\/firecracker": give/
      )
      Fs.chmodSync(group, 0o755)
      yield* prepare(planned(here))
    }))

  live("is for one at a time, and again after that", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* prepare(plan)
        const error = yield* Effect.flip(Effect.scoped(prepare(plan)))
        assert.match(why(error), new RegExp(`^HostFailed: .*process ${process.pid} has the lock`))
        assert.isTrue(Fs.existsSync(plan.root))
        const { root } = planned(here, { id: "web-2" })
        yield* prepare(planned(here, { id: "web-2" }))
        assert.isTrue(Fs.existsSync(root))
      }))
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
      yield* prepare(plan)
    }))

  live("removes what a machine has left that has ended", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      Fs.mkdirSync(join(plan.root, "dev/net"), { recursive: true })
      Fs.writeFileSync(plan.pidFile, "2147483646")
      Fs.writeFileSync(join(plan.root, "dev/net/tun"), "")
      const { hadRemains } = yield* prepare(plan)
      assert.isTrue(hadRemains)
      assert.deepStrictEqual(Fs.readdirSync(plan.root), [])
    }))

  live(
    "removes what programs that were killed have left of other machines, and nothing else",
    (here) =>
      Effect.gen(function*() {
        const left = planned(here, { id: "left" })
        const running = planned(here, { id: "running" })
        const foreign = planned(here, { id: "foreign" })
        const group = dirname(left.directory)
        for (const { root } of [left, running, foreign]) Fs.mkdirSync(root, { recursive: true })
        const dead = JSON.stringify({ bootId: "an earlier boot", pid: 2_147_483_646, startTime: 1 })
        for (const plan of [left, running]) Fs.writeFileSync(join(group, `${plan.id}.lock`), dead)
        const { pid } = yield* inmate(running)
        Fs.writeFileSync(running.pidFile, String(pid))
        yield* prepare(planned(here))
        assert.deepStrictEqual(
          Fs.readdirSync(group).filter((name) => !name.endsWith(".lock") && name !== "web-1").toSorted(),
          ["foreign", "running"]
        )
      })
  )

  live("leaves a machine alone that runs", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      Fs.mkdirSync(plan.root, { recursive: true })
      const { exitCode, pid } = yield* inmate(plan)
      Fs.writeFileSync(plan.pidFile, String(pid))
      const error = yield* Effect.flip(Effect.scoped(prepare(plan)))
      assert.match(why(error), new RegExp(`^HostFailed: .*end it first: process ${pid}$`))
      assert.isTrue(Fs.existsSync(plan.pidFile))
      assert.isNull(exitCode)
      process.kill(pid, 0)
    }))

  live(rootOnly("leaves nothing when a step fails"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      yield* mounted(here.base, ["-t", "tmpfs", "-o", "size=1m", "none"])
      const small = here.file("small", "a")
      const large = here.file("large", "b".repeat(2 ** 22))
      const plan = planned(here, {
        files: [
          { how: "bind", name: "small", from: small },
          { how: "copy", name: "a", from: small },
          { how: "copy", name: "b", from: large }
        ]
      })
      const error = yield* Effect.flip(Effect.scoped(prepare(plan)))
      assert.match(why(error), /^HostFailed: copy .*large to .*new\/\d+-b: ENOSPC$/)
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
    }))

  live("leaves nothing when it is interrupted", (here) =>
    Effect.gen(function*() {
      const from = here.file("huge", "")
      Fs.truncateSync(from, 2 ** 40)
      const plan = planned(here, { files: [{ how: "copy", name: "huge", from }] })
      const fiber = yield* Effect.forkChild(Effect.scoped(prepare(plan)))
      const isUnderWay = Effect.sync(() => Fs.globSync(join(plan.directory, "new", "*-huge")).length > 0)
      // Where the file system can clone, it is through already.
      yield* isUnderWay.pipe(
        Effect.repeat({
          until: (holds) => holds || fiber.pollUnsafe() !== undefined,
          schedule: Schedule.spaced("1 millis")
        }),
        Effect.timeout("10 seconds")
      )
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
    }))
})

describe("mounts", () => {
  live(rootOnly("are read-only, change nothing of the file, and go with the jail"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      const from = here.file("vmlinux", "kernel")
      const before = inodeOf(from)
      const plan = planned(here, { files: [{ how: "bind", name: "vmlinux", from }] })
      const to = join(plan.root, "vmlinux")
      yield* Effect.scoped(Effect.gen(function*() {
        yield* prepare(plan)
        assert.strictEqual(Fs.readFileSync(to, "utf8"), "kernel")
        assert.strictEqual(Fs.statSync(to).ino, before.ino)
        assert.throws(() => Fs.writeFileSync(to, "x"), /EROFS/)
        assert.throws(() => Fs.chownSync(to, 1, 1), /EROFS/)
      }))
      assert.isFalse(isMounted(to))
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
      assert.deepStrictEqual(inodeOf(from), before)
    }))

  live(rootOnly("of a program that was killed go with what else it left"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      const from = here.file("vmlinux", "kernel")
      const plan = planned(here)
      const to = join(plan.root, "vmlinux")
      Fs.mkdirSync(plan.root, { recursive: true })
      Fs.writeFileSync(to, "")
      // Twice, one on top of the other.
      yield* mounted(to, ["--bind", from])
      yield* mounted(to, ["--bind", from])
      const { hadRemains } = yield* prepare(plan)
      assert.isTrue(hadRemains)
      assert.isFalse(isMounted(to))
      assert.deepStrictEqual(Fs.readdirSync(plan.root), [])
      assert.strictEqual(Fs.readFileSync(from, "utf8"), "kernel")
    }))

  live(rootOnly("of others are not crossed, and named"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      const outside = join(here.directory, "outside")
      Fs.mkdirSync(outside)
      Fs.writeFileSync(join(outside, "precious"), "")
      const plan = planned(here)
      yield* Effect.scoped(Effect.gen(function*() {
        const { release } = yield* prepare(plan)
        const point = join(plan.root, "dev", "shm")
        Fs.mkdirSync(point, { recursive: true })
        Fs.writeFileSync(join(plan.root, "log"), "")
        yield* Effect.scoped(Effect.gen(function*() {
          yield* mounted(point, ["--bind", outside])
          assert.deepStrictEqual(yield* release, [{ path: point, why: "something is mounted there" }])
          // It went on after that.
          assert.deepStrictEqual(Fs.readdirSync(plan.root), ["dev"])
        }))
        assert.deepStrictEqual(yield* release, [])
        assert.isFalse(Fs.existsSync(plan.directory))
      }))
      assert.deepStrictEqual(Fs.readdirSync(outside), ["precious"])
    }))
})

describe("release", () => {
  live("removes what the jailer leaves, and follows no link", (here) =>
    Effect.gen(function*() {
      const outside = join(here.directory, "outside")
      Fs.mkdirSync(outside)
      Fs.writeFileSync(join(outside, "precious"), "")
      const plan = planned(here)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* prepare(plan)
        const { root } = plan
        Fs.mkdirSync(join(root, "dev", "net"), { recursive: true })
        Fs.mkdirSync(join(root, "run"), { mode: 0o700 })
        Fs.mkdirSync(join(root, ...Array.from({ length: 60 }, () => "deep")), { recursive: true })
        execFileSync("mkfifo", [join(root, "metrics")])
        if (isRoot) execFileSync("mknod", [join(root, "dev", "kvm"), "c", "10", "232"])
        Fs.copyFileSync(here.host.executable, join(root, "firecracker"))
        Fs.writeFileSync(plan.pidFile, "2147483646")
        Fs.symlinkSync(outside, join(root, "link"))
        Fs.symlinkSync("/", join(root, "dev", "root"))
        Fs.linkSync(join(outside, "precious"), join(root, "hard"))
      }))
      assert.deepStrictEqual(Fs.readdirSync(here.base), [])
      assert.deepStrictEqual(Fs.readdirSync(outside), ["precious"])
    }))

  live("follows no link that takes the place of a directory meanwhile", (here) =>
    Effect.gen(function*() {
      const outside = join(here.directory, "outside")
      Fs.mkdirSync(outside)
      Fs.writeFileSync(join(outside, "precious"), "")
      const { plan, release } = yield* prepare(planned(here))
      const [one, other] = [join(plan.root, "one"), join(plan.root, "other")]
      const many = Array.from({ length: 500 }, (_, index) => String(index))
      for (const directory of [one, other]) {
        Fs.mkdirSync(directory)
        for (const name of many) Fs.writeFileSync(join(directory, name), "")
      }
      // An inmate that nobody knows of: whichever directory has its turn, the other is to be a link by then.
      const isBegun = (path: string): boolean => Fs.existsSync(path) && Fs.readdirSync(path).length < many.length
      const swap = Effect.suspend(() => {
        const later = isBegun(one) ? other : isBegun(other) ? one : undefined
        if (later === undefined) return Effect.as(Effect.sleep(0), false)
        Fs.renameSync(later, join(here.directory, "moved"))
        Fs.symlinkSync(outside, later)
        return Effect.succeed(true)
      }).pipe(Effect.repeat({ until: (isDone) => isDone }))
      yield* Effect.all([release, swap], { concurrency: 2 })
      assert.deepStrictEqual(Fs.readdirSync(outside), ["precious"])
      Fs.rmSync(one, { force: true })
      Fs.rmSync(other, { force: true })
    }))

  live("does nothing outside of its directory when that is a link", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      const group = join(here.base, "firecracker")
      Fs.mkdirSync(join(here.directory, "outside", "root"), { recursive: true })
      Fs.mkdirSync(group)
      Fs.symlinkSync(join(here.directory, "outside"), plan.directory)
      const error = yield* Effect.flip(Effect.scoped(prepare(plan)))
      assert.match(why(error), /^HostFailed: .*it is no directory, or is reached by a symbolic link/)
      assert.deepStrictEqual(Fs.readdirSync(join(here.directory, "outside")), ["root"])
      // It was there before.
      assert.deepStrictEqual(Fs.readdirSync(group), [id])
    }))

  live("kills what still runs in it, and nobody else", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      const { release } = yield* prepare(plan)
      const child = yield* inmate(plan)
      const stranger = yield* inmate(plan, here.directory)
      const ended = exitOf(child)
      Fs.writeFileSync(plan.pidFile, String(child.pid))
      assert.deepStrictEqual(yield* release, [])
      assert.strictEqual(yield* Effect.promise(() => ended), "SIGKILL")
      assert.isFalse(Fs.existsSync(plan.directory))
      assert.isNull(stranger.signalCode)
    }))

  live.each(["stranger", "ourselves", "init"])(
    "kills no %s whose number an inmate has written down",
    (who, here) =>
      Effect.gen(function*() {
        const plan = planned(here)
        const { release } = yield* prepare(plan)
        const stranger = yield* inmate(plan, here.directory)
        Fs.writeFileSync(plan.pidFile, String({ stranger: stranger.pid, ourselves: process.pid, init: 1 }[who]))
        assert.deepStrictEqual(yield* release, [])
        assert.isNull(stranger.signalCode)
      })
  )

  for (const version of [1, 2] as const) {
    live(
      rootOnly(`empties and removes cgroups of version ${version}, and a parent that was not there before`),
      (here) =>
        Effect.gen(function*() {
          const mount = yield* cgroupMount(version, here)
          if (!isRoot || mount === undefined) return
          const parent = `test-jails-${process.pid}`
          yield* Effect.addFinalizer(() => Effect.sync(() => removeGroups(join(mount, parent))))
          const cgroups = version === 2
            ? { unified: { mount, controllers: ["memory", "pids"] }, separate: new Map<string, string>() }
            : { unified: undefined, separate: new Map([["memory", mount], ["pids", mount]]) }
          const plan = (name: string, below: string) =>
            planned(here, { id: name, parentCgroup: `${parent}${below}` }, { cgroups })
          const first = plan("web-1", "/deep")
          const second = plan("web-2", "/deep")

          yield* Effect.scoped(Effect.gen(function*() {
            const { killScope, release } = yield* prepare(first)
            const path = join(mount, parent, "deep", "web-1")
            assert.strictEqual(killScope._tag, version === 2 ? "CGroup" : "Process")
            // As the jailer does.
            Fs.mkdirSync(path, { recursive: true })
            const child = yield* inmate(first)
            const ended = exitOf(child)
            Fs.writeFileSync(join(path, "cgroup.procs"), String(child.pid))
            yield* Effect.scoped(Effect.gen(function*() {
              yield* prepare(second)
              Fs.mkdirSync(join(mount, parent, "deep", "web-2"))
            }))
            // Another machine is there.
            assert.isFalse(Fs.existsSync(join(mount, parent, "deep", "web-2")))
            assert.isTrue(Fs.existsSync(path))
            assert.deepStrictEqual(yield* release, [])
            assert.strictEqual(yield* Effect.promise(() => ended), "SIGKILL")
          }))
          assert.isFalse(Fs.existsSync(join(mount, parent)))

          // One that was there before stays, and a machine whose process lives is not taken for remains.
          const kept = join(mount, parent)
          Fs.mkdirSync(join(kept, "web-3"), { recursive: true })
          yield* Effect.scoped(prepare(plan("web-4", "")))
          assert.isTrue(Fs.existsSync(kept))
          const third = plan("web-3", "")
          yield* Effect.scoped(Effect.gen(function*() {
            const child = yield* inmate(third, here.directory)
            Fs.writeFileSync(join(kept, "web-3", "cgroup.procs"), String(child.pid))
            const error = yield* Effect.flip(Effect.scoped(prepare(third)))
            assert.match(why(error), new RegExp(`^HostFailed: .*end it first: process ${child.pid}$`))
            assert.isNull(child.signalCode)
          }))
          const { hadRemains } = yield* prepare(third)
          assert.isTrue(hadRemains)
          assert.deepStrictEqual(Fs.readdirSync(kept).filter((name) => name === "web-3"), [])
        })
    )
  }
})

describe("find", () => {
  live("waits for the process that the pid file names", (here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      const { find } = yield* prepare(plan)
      const fiber = yield* Effect.forkChild(find())
      const child = yield* inmate(plan)
      yield* Effect.sleep("20 millis")
      assert.isUndefined(fiber.pollUnsafe())
      Fs.writeFileSync(plan.pidFile, "")
      yield* Effect.sleep("20 millis")
      Fs.writeFileSync(plan.pidFile, String(child.pid))
      const identity = yield* Fiber.join(fiber)
      assert.strictEqual(identity.pid, child.pid)
      assert.isAbove(identity.startTime, 0)
    }))

  live.each(
    [
      ["no number", "firecracker", /no process is named there, within 200ms$/],
      ["a link", undefined, /no process is named there, within 200ms$/],
      ["one that has ended", "2147483646", /process 2147483646 has ended already$/],
      [
        "one that is none of the jail",
        String(process.pid),
        new RegExp(`process ${process.pid} is none of this jail, within 200ms$`)
      ]
    ] as const
  )("fails for %s", ([, content, expected], here) =>
    Effect.gen(function*() {
      const plan = planned(here)
      const { find } = yield* prepare(plan)
      if (content === undefined) Fs.symlinkSync(here.file("pid", String(process.pid)), plan.pidFile)
      else Fs.writeFileSync(plan.pidFile, content)
      const error = yield* Effect.flip(find("200 millis"))
      assert.strictEqual(error.reason._tag, "HostFailed")
      assert.match(error.message, expected)
    }))

  live(rootOnly("finds the first process of a namespace, whose root is the jail"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      const shell = Fs.realpathSync("/bin/sh")
      const libraries = execFileSync("ldd", [shell], { encoding: "utf8" }).match(/\/\S+/g) ?? []
      const plan = planned(here, {
        newPidNamespace: true,
        files: [{ how: "copy", name: "sh", from: shell }]
      })
      const { find, release } = yield* prepare(plan)
      for (const library of libraries) {
        Fs.mkdirSync(join(plan.root, library, ".."), { recursive: true })
        Fs.copyFileSync(library, join(plan.root, library))
      }
      Fs.chmodSync(join(plan.root, "sh"), 0o755)
      execFileSync("mkfifo", [join(plan.root, "wait")])
      // It ends at once, and leaves another process, as the jailer does.
      const script = "unshare --pid --fork chroot \"$1\" /sh -c 'echo $$ >/inner; read _ </wait' sh --id web-1 &"
      execFileSync("sh", ["-c", script, "sh", plan.root], { stdio: "ignore" })
      const isThere = Effect.sync(() => readText(join(plan.root, "inner")) === "1\n")
      yield* isThere.pipe(
        Effect.repeat({ until: (holds) => holds, schedule: Schedule.spaced("5 millis") }),
        Effect.timeout("10 seconds")
      )
      const pid = Fs.readdirSync("/proc").find((name) =>
        /^\d+$/.test(name) && readText(`/proc/${name}/cmdline`).startsWith("/sh\0-c\0")
        && Fs.statSync(`/proc/${name}/root/.`).ino === Fs.statSync(plan.root).ino
      )
      Fs.writeFileSync(plan.pidFile, pid ?? "")
      const identity = yield* find()
      assert.strictEqual(String(identity.pid), pid)
      // It ignores this.
      process.kill(identity.pid, "SIGTERM")
      assert.deepStrictEqual(yield* release, [])
      assert.isFalse(Fs.existsSync(`/proc/${pid}/root/sh`))
      assert.isFalse(Fs.existsSync(plan.directory))
    }))
})

describe("a jail at work", () => {
  live("takes copies and empty files, and replaces nothing", (here) =>
    Effect.gen(function*() {
      const from = here.file("state", "state")
      const { add, plan } = yield* prepare(planned(here))
      const { outside } = yield* add({ how: "copy", name: "snapshot.state", from })
      assert.strictEqual(outside, join(plan.root, "snapshot.state"))
      assert.strictEqual(Fs.readFileSync(outside, "utf8"), "state")
      const again = yield* Effect.flip(add({ how: "empty", name: "snapshot.state" }))
      assert.match(why(again), /^HostFailed: .*EEXIST$/)
      const name = yield* Effect.flip(add({ how: "empty", name: "firecracker.pid" }))
      assert.match(why(name), /^InvalidRequest: /)
      const missing = yield* Effect.flip(add({ how: "copy", name: "none", from: join(here.directory, "missing") }))
      assert.match(why(missing), /file\.from/)
      // An inmate that has a link ready gets nothing of it.
      Fs.symlinkSync(from, join(plan.root, "link"))
      assert.match(why(yield* Effect.flip(add({ how: "empty", name: "link" }))), /EEXIST$/)
      assert.strictEqual(Fs.readFileSync(from, "utf8"), "state")
      assert.deepStrictEqual(Fs.readdirSync(join(plan.directory, "new")), [])
    }))

  live("takes one of two of the same name at the same time", (here) =>
    Effect.gen(function*() {
      const { add, plan } = yield* prepare(planned(here))
      const done = yield* Effect.forEach(["one", "other"], (content) =>
        Effect.exit(add({ how: "copy", name: "state", from: here.file(content, content.repeat(1 << 20)) })), {
        concurrency: 2
      })
      assert.deepStrictEqual(done.filter(Exit.isSuccess).length, 1)
      assert.include([3 << 20, 5 << 20], Fs.statSync(join(plan.root, "state")).size)
      assert.deepStrictEqual(Fs.readdirSync(join(plan.directory, "new")), [])
    }))

  live("gives files out, but no links", (here) =>
    Effect.gen(function*() {
      const { collect, plan } = yield* prepare(planned(here))
      const to = join(here.directory, "memory")
      Fs.writeFileSync(join(plan.root, "memory"), "pages", { mode: 0o644 })
      Fs.chownSync(join(plan.root, "memory"), plan.user.uid, plan.user.gid)
      yield* collect(JailPlan.JailPath("/memory"), to)
      assert.strictEqual(Fs.readFileSync(to, "utf8"), "pages")
      assert.deepInclude(inodeOf(to), { owner: uid, nlink: 1 })
      assert.strictEqual(Fs.statSync(to).mode & 0o777, 0o600)

      const precious = here.file("precious", "precious", 0o600)
      Fs.symlinkSync(precious, join(plan.root, "symbolic"))
      Fs.linkSync(precious, join(plan.root, "hard"))
      execFileSync("mkfifo", [join(plan.root, "fifo")])
      for (const name of ["symbolic", "hard", "fifo", "missing"]) {
        const error = yield* Effect.flip(collect(JailPlan.JailPath(`/${name}`), join(here.directory, "got")))
        assert.match(why(error), /^HostFailed: move \/.* out of the jail/)
        assert.isFalse(Fs.existsSync(join(here.directory, "got")))
      }
      assert.match(why(yield* Effect.flip(collect(JailPlan.JailPath("/a/b"), to))), /^InvalidRequest/)
    }))

  live(
    "gives out no file that is larger than it can be, however little of it there is",
    (here) =>
      Effect.gen(function*() {
        const { collect, plan } = yield* prepare(planned(here))
        const [memory, to] = [join(plan.root, "memory"), join(here.directory, "memory")]
        Fs.writeFileSync(memory, "pages")
        Fs.truncateSync(memory, 2 ** 43)
        const endless = collect(JailPlan.JailPath("/memory"), to, { maxBytes: 2 ** 20 })
        assert.match(why(yield* Effect.flip(endless)), /it has more than the 1048576 bytes that it can have$/)
        assert.isFalse(Fs.existsSync(to))
        Fs.truncateSync(memory, 2 ** 20)
        yield* endless
        assert.strictEqual(Fs.statSync(to).size, 2 ** 20)
      })
  )

  live("gives out nothing that has taken the place of a file meanwhile", (here) =>
    Effect.gen(function*() {
      const { collect, plan } = yield* prepare(planned(here))
      const memory = join(plan.root, "memory")
      const other = join(plan.root, "other")
      const to = join(here.directory, "memory")
      // Whichever step it comes between, what is given out is the file that was looked at, or nothing.
      const swap = (delay: number) =>
        Effect.andThen(
          Effect.repeat(Effect.sleep(0), { times: delay }),
          // It may be gone by then.
          Effect.ignore(Effect.try(() => {
            Fs.renameSync(memory, other)
            Fs.mkdirSync(join(memory, "deep"), { recursive: true })
          }))
        )
      for (let delay = 0; delay < 8; delay++) {
        Fs.writeFileSync(memory, "pages")
        yield* Effect.all([Effect.ignore(collect(JailPlan.JailPath("/memory"), to)), swap(delay)], { concurrency: 2 })
        if (Fs.existsSync(to)) assert.strictEqual(Fs.readFileSync(to, "utf8"), "pages")
        for (const path of [memory, other, to]) Fs.rmSync(path, { recursive: true, force: true })
      }
    }))

  live("a file that cannot be given out stays where it is", (here) =>
    Effect.gen(function*() {
      const { collect, plan } = yield* prepare(planned(here))
      Fs.writeFileSync(join(plan.root, "memory"), "pages")
      const error = yield* Effect.flip(collect(JailPlan.JailPath("/memory"), join(here.directory, "none", "memory")))
      assert.match(why(error), /ENOENT$/)
      assert.strictEqual(Fs.readFileSync(join(plan.root, "memory"), "utf8"), "pages")
    }))

  live(rootOnly("gives files out to another file system"), (here) =>
    Effect.gen(function*() {
      if (!isRoot) return
      const point = join(here.directory, "elsewhere")
      Fs.mkdirSync(point)
      yield* mounted(point, ["-t", "tmpfs", "-o", "size=1m", "none"])
      const { collect, plan } = yield* prepare(planned(here))
      Fs.writeFileSync(join(plan.root, "memory"), "pages")
      yield* collect(JailPlan.JailPath("/memory"), join(point, "memory"))
      assert.strictEqual(Fs.readFileSync(join(point, "memory"), "utf8"), "pages")
      assert.deepStrictEqual(Fs.readdirSync(plan.root), [])
      // What finds no room there stays where it is.
      Fs.writeFileSync(join(plan.root, "large"), Buffer.alloc(2 << 20, "x"))
      const error = yield* Effect.flip(collect(JailPlan.JailPath("/large"), join(point, "large")))
      assert.match(why(error), /ENOSPC$/)
      assert.deepStrictEqual(Fs.readdirSync(point), ["memory"])
      assert.strictEqual(Fs.statSync(join(plan.root, "large")).size, 2 << 20)
    }))
})

describe("UidPool", () => {
  live("gives each a user of its own, and says when there is none", () =>
    Effect.gen(function*() {
      const pool = yield* UidPool.make({ first: 70_000, count: 2 })
      const first = yield* Effect.scoped(pool.take)
      yield* Effect.scoped(Effect.gen(function*() {
        const taken = [yield* pool.take, yield* pool.take]
        assert.deepStrictEqual(taken, [{ uid: 70_001, gid: 70_001 }, first])
        const error = yield* Effect.flip(pool.take)
        assert.match(why(error), /^HostFailed: .*uids 70000 to 70001: all are in use/)
      }))
      yield* pool.take
    }))

  live.each(["alone", "shared"])(
    "gives out no user that a process runs as, whoever has left it (%s)",
    (kind, here) =>
      Effect.gen(function*() {
        // Only root has processes of others.
        if (!isRoot) return
        const sleeping = Effect.acquireRelease(
          Effect.sync(() => spawn("sleep", ["60"], { uid: 70_100, gid: 70_100, stdio: "ignore" })),
          (child) =>
            Effect.promise(() => {
              const ended = exitOf(child)
              child.kill("SIGKILL")
              return ended
            })
        )
        const options = {
          first: 70_100,
          count: 2,
          directory: kind === "alone" ? undefined : join(here.directory, "uids")
        }
        yield* Effect.scoped(Effect.gen(function*() {
          yield* sleeping
          const pool = yield* UidPool.make(options)
          assert.strictEqual((yield* Effect.scoped(pool.take)).uid, 70_101)
          assert.strictEqual((yield* pool.take).uid, 70_101)
          assert.match(why(yield* Effect.flip(pool.take)), /all are in use/)
        }))
        if (kind === "shared") return
        const pool = yield* UidPool.make(options)
        // Of one that was given back, too.
        yield* Effect.scoped(pool.take)
        yield* Effect.scoped(Effect.gen(function*() {
          yield* sleeping
          assert.strictEqual((yield* Effect.scoped(pool.take)).uid, 70_101)
          assert.strictEqual((yield* Effect.scoped(pool.take)).uid, 70_101)
        }))
        assert.sameMembers([(yield* pool.take).uid, (yield* pool.take).uid], [70_100, 70_101])
      })
  )

  live("leaves a directory that is there as it is", (here) =>
    Effect.gen(function*() {
      const mode = (path: string) => Fs.statSync(path).mode & 0o777
      const shared = join(here.directory, "shared")
      Fs.mkdirSync(shared, { mode: 0o755 })
      const own = join(here.directory, "own", "uids")
      yield* UidPool.make({ first: 70_000, count: 1, directory: shared })
      yield* UidPool.make({ first: 70_000, count: 1, directory: own })
      assert.deepStrictEqual([mode(shared), mode(own)], [0o755, 0o700])
    }))

  live("shares its range by files, if it is to", (here) =>
    Effect.gen(function*() {
      const options = { first: 70_000, count: 2, directory: join(here.directory, "uids") }
      // Each is another program to the other: only the files tell them apart.
      const [one, other] = [yield* UidPool.make(options), yield* UidPool.make(options)]
      yield* Effect.scoped(Effect.gen(function*() {
        assert.strictEqual((yield* one.take).uid, 70_000)
        assert.strictEqual((yield* other.take).uid, 70_001)
        assert.strictEqual((yield* Effect.flip(one.take)).reason._tag, "HostFailed")
      }))
      assert.deepStrictEqual(Fs.readdirSync(options.directory).filter((name) => name.endsWith(".lock")), [])
      // Of a program that was killed.
      const dead = JSON.stringify({ bootId: "an earlier boot", pid: 1, startTime: 1 })
      for (const name of ["70000.lock", "70001.lock"]) Fs.writeFileSync(join(options.directory, name), dead)
      assert.sameMembers([(yield* one.take).uid, (yield* one.take).uid], [70_000, 70_001])
    }))

  live.each(
    [
      [{ first: 0, count: 1 }, ["first"]],
      [{ first: 1, count: 0 }, ["count"]],
      [{ first: Number.NaN, count: 0.5 }, ["first", "count"]],
      [{ first: 4_294_967_294, count: 2 }, ["count"]]
    ] as const
  )("refuses %o", ([options, fields]) =>
    Effect.gen(function*() {
      const { reason } = yield* Effect.flip(UidPool.make(options))
      assert.deepStrictEqual(reason._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : [], [
        ...fields
      ])
    }))
})
