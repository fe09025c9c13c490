import { describe, expect, it } from "@effect/vitest"
import { Limits } from "effect-microvm-runtime/host"
import { ProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import { TestClock } from "effect/testing"

const token = "00112233445566ff"

/** A host, as a tree of files: a directory has no text. Files that end on "!" may not be written to. */
type Tree = Readonly<Record<string, string | null>>

interface World {
  readonly files: Map<string, string | null>
  readonly writes: Array<string>
}

/** A file system of a host. `refuses` are the files that no text is good for. */
const hostOf = (tree: Tree, refuses: ReadonlyArray<string> = []) => {
  const readOnly = new Set(Object.keys(tree).filter((path) => path.endsWith("!")).map((path) => path.slice(0, -1)))
  const world: World = {
    files: new Map(Object.entries(tree).map(([path, text]) => [path.replace(/!$/, ""), text])),
    writes: []
  }
  const { files, writes } = world
  const failed = (
    tag: "NotFound" | "PermissionDenied" | "AlreadyExists" | "InvalidData",
    method: string,
    path: string
  ) => PlatformError.systemError({ module: "FileSystem", _tag: tag, method, pathOrDescriptor: path })
  const make = (path: string) => {
    files.set(path, null)
    // The kernel fills a cgroup with its files.
    const parent = path.slice(0, path.lastIndexOf("/"))
    const on = files.get(`${parent}/cgroup.subtree_control`)
    const v1 = /^\/sys\/fs\/cgroup\/(memory|pids|blkio|cpu,cpuacct|cpu)\//.exec(path)?.[1]
    const has = on === undefined || on === null
      ? (v1 === undefined ? [] : [v1])
      : on.split(" ").filter((name) => name !== "")
    files.set(`${path}/cgroup.procs`, "")
    if (v1 === undefined) {
      files.set(`${path}/cgroup.controllers`, has.join(" "))
      files.set(`${path}/cgroup.subtree_control`, "")
      files.set(`${path}/cgroup.events`, "populated 0\n")
    }
    const of: Readonly<Record<string, ReadonlyArray<string>>> = v1 === undefined
      ? {
        memory: ["memory.max", "memory.oom.group", "memory.swap.max"],
        cpu: ["cpu.max"],
        pids: ["pids.max"],
        io: ["io.max"]
      }
      : {
        memory: ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
        cpu: ["cpu.cfs_period_us", "cpu.cfs_quota_us"],
        "cpu,cpuacct": ["cpu.cfs_period_us", "cpu.cfs_quota_us"],
        pids: ["pids.max"],
        blkio: ["blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device"]
      }
    for (const name of has) for (const file of of[name] ?? []) files.set(`${path}/${file}`, "")
  }
  const fs = FileSystem.layerNoop({
    readFileString: (path) => {
      const text = files.get(path)
      return typeof text === "string" ? Effect.succeed(text) : Effect.fail(failed("NotFound", "readFileString", path))
    },
    exists: (path) => Effect.sync(() => files.has(path)),
    access: (path) =>
      !files.has(path)
        ? Effect.fail(failed("NotFound", "access", path))
        : readOnly.has(path) || readOnly.has("/")
        ? Effect.fail(failed("PermissionDenied", "access", path))
        : Effect.void,
    makeDirectory: (path, options) =>
      Effect.suspend(() => {
        if (files.has(path)) {
          return options?.recursive === true ? Effect.void : Effect.fail(failed("AlreadyExists", "makeDirectory", path))
        }
        make(path)
        return Effect.void
      }),
    writeFileString: (path, text, options) =>
      Effect.suspend(() => {
        expect(options?.flag).toBe("r+")
        if (!files.has(path)) return Effect.fail(failed("NotFound", "writeFile", path))
        if (refuses.some((end) => path.endsWith(end))) return Effect.fail(failed("InvalidData", "writeFile", path))
        const isControl = path.endsWith("/cgroup.subtree_control")
        files.set(path, isControl ? `${files.get(path)} ${text.replaceAll("+", "")}`.trim() : text)
        writes.push(`${path} ${text}`)
        return Effect.void
      })
  })
  const removed: Array<string> = []
  const processes = Layer.mock(ProcessHost.ProcessHost, {
    bootId: "this-boot",
    self: 1,
    cgroupRoot: Option.none(),
    cgroup: (path) => ({
      path,
      members: Effect.succeed([]),
      populated: Effect.succeed(false),
      watch: Effect.never,
      signal: () => Effect.succeed([]),
      kill: Effect.void,
      remove: Effect.sync(() => {
        removed.push(path)
        for (const file of files.keys()) if (file === path || file.startsWith(`${path}/`)) files.delete(file)
        return true
      })
    })
  })
  return { ...world, layer: Layer.merge(fs, processes), removed }
}

const mount = (point: string, type: string, options: string, root = "/") =>
  `30 20 0:26 ${root} ${point} rw,nosuid shared:4 - ${type} ${type} rw,${options}\n`

const cgroup = (path: string, controllers = "", on = "", procs = "", isRoot = false): Tree => ({
  [path]: null,
  [`${path}/cgroup.procs`]: procs,
  [`${path}/cgroup.controllers`]: controllers,
  [`${path}/cgroup.subtree_control`]: on,
  ...(isRoot ? {} : { [`${path}/cgroup.events`]: "populated 1\n" })
})

const all = "cpuset cpu io memory hugetlb pids"

const unified = mount("/sys/fs/cgroup", "cgroup2", "nsdelegate,memory_recursiveprot")

const own = (path: string) => `0::${path}\n`

const v1 = (...names: ReadonlyArray<string>) =>
  names.map((name) => mount(`/sys/fs/cgroup/${name}`, "cgroup", name)).join("")

/** What a layout comes to: where each of the limits is held, or why not. */
const layouts: Readonly<
  Record<string, { readonly tree: Tree; readonly path?: string; readonly by: Readonly<Record<string, string>> }>
> = {
  "v2, as the root of all": {
    tree: {
      "/proc/self/mountinfo": unified,
      "/proc/self/cgroup": own("/"),
      ...cgroup("/sys/fs/cgroup", all, "", "1\n2\n", true)
    },
    path: "/sys/fs/cgroup",
    by: { memory: "v2", swap: "v2", cpus: "v2", pids: "v2", io: "v2" }
  },
  "v2, a unit with Delegate= and DelegateSubgroup=": {
    tree: {
      "/proc/self/mountinfo": unified,
      "/proc/self/cgroup": own("/system.slice/mv.service/supervisor"),
      ...cgroup("/sys/fs/cgroup/system.slice/mv.service", "cpu memory pids"),
      ...cgroup("/sys/fs/cgroup/system.slice/mv.service/supervisor", "", "", "77\n")
    },
    path: "/sys/fs/cgroup/system.slice/mv.service",
    by: {
      memory: "v2",
      swap: "v2",
      cpus: "v2",
      pids: "v2",
      io: "the cgroup /sys/fs/cgroup/system.slice/mv.service does not have the controller io"
    }
  },
  "v2, a unit with Delegate= alone": {
    tree: {
      "/proc/self/mountinfo": unified,
      "/proc/self/cgroup": own("/system.slice/mv.service"),
      ...cgroup("/sys/fs/cgroup/system.slice", all, all),
      ...cgroup("/sys/fs/cgroup/system.slice/mv.service", all, "", "77\n")
    },
    path: "/sys/fs/cgroup/system.slice/mv.service",
    by: Object.fromEntries(["memory", "swap", "cpus", "pids", "io"].map((name) => [
      name,
      "there are processes in /sys/fs/cgroup/system.slice/mv.service, so nothing can be switched on below it"
    ]))
  },
  "v2, a session of an ordinary user": {
    tree: {
      "/proc/self/mountinfo": unified,
      "/proc/self/cgroup": own("/user.slice/user-1000.slice/session-1.scope"),
      "/sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope!": null
    },
    by: Object.fromEntries(["memory", "swap", "cpus", "pids", "io"].map((name) => [
      name,
      "/sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope is not writable"
    ]))
  },
  "v2, a container that may": {
    tree: {
      "/proc/self/mountinfo": mount("/sys/fs/cgroup", "cgroup2", "x", "/docker/abc"),
      "/proc/self/cgroup": own("/docker/abc"),
      ...cgroup("/sys/fs/cgroup", all, "memory pids", "1\n")
    },
    path: "/sys/fs/cgroup",
    by: {
      memory: "v2",
      swap: "v2",
      cpus: "there are processes in /sys/fs/cgroup, so nothing can be switched on below it",
      pids: "v2",
      io: "there are processes in /sys/fs/cgroup, so nothing can be switched on below it"
    }
  },
  "v2, a container whose cgroups are elsewhere": {
    tree: {
      "/proc/self/mountinfo": mount("/sys/fs/cgroup", "cgroup2", "x", "/docker/abc"),
      "/proc/self/cgroup": own("/other")
    },
    by: Object.fromEntries(
      ["memory", "swap", "cpus", "pids", "io"].map((name) => [name, "our cgroup is not below /sys/fs/cgroup"])
    )
  },
  "hybrid: v1 with an empty v2": {
    tree: {
      "/proc/self/mountinfo": v1("memory", "cpu,cpuacct", "pids", "blkio") +
        mount("/sys/fs/cgroup/unified", "cgroup2", "x"),
      "/proc/self/cgroup": "9:name=systemd:/\n8:pids:/\n7:blkio:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n",
      ...cgroup("/sys/fs/cgroup/unified", "hugetlb", "", "1\n", true),
      "/sys/fs/cgroup/memory/a/b": null,
      "/sys/fs/cgroup/cpu,cpuacct": null,
      "/sys/fs/cgroup/pids!": null,
      "/sys/fs/cgroup/blkio": null
    },
    path: "/sys/fs/cgroup/unified",
    by: {
      memory: "/sys/fs/cgroup/memory/a/b",
      swap: "/sys/fs/cgroup/memory/a/b",
      cpus: "/sys/fs/cgroup/cpu,cpuacct",
      pids: "/sys/fs/cgroup/pids is not writable",
      io: "/sys/fs/cgroup/blkio"
    }
  },
  "v1 alone": {
    tree: {
      "/proc/self/mountinfo": v1("memory", "cpu"),
      "/proc/self/cgroup": "2:memory:/x\n1:cpu:/\n",
      "/sys/fs/cgroup/memory/x": null,
      "/sys/fs/cgroup/cpu": null
    },
    by: {
      memory: "/sys/fs/cgroup/memory/x",
      swap: "/sys/fs/cgroup/memory/x",
      cpus: "/sys/fs/cgroup/cpu",
      pids: "no cgroup v2 file system is mounted",
      io: "no cgroup v2 file system is mounted"
    }
  },
  "none at all": {
    tree: {},
    by: Object.fromEntries(
      ["memory", "swap", "cpus", "pids", "io"].map((name) => [name, "no cgroup v2 file system is mounted"])
    )
  }
}

const limits: Limits.Options = {
  memoryMib: 256,
  cpus: 1.5,
  pids: 100,
  io: [{ device: "254:0", readBytes: 1000, writeOperations: 7 }]
}

describe("where limits are held", () => {
  for (const [what, { by, path, tree }] of Object.entries(layouts)) {
    it.effect(what, () => {
      const host = hostOf(tree)
      return Effect.gen(function*() {
        const planned = yield* Limits.plan({ token }, limits)
        expect(host.writes).toEqual([])
        expect(planned.data.path).toBe(path === undefined ? undefined : `${path}/effect-microvm-machines/${token}`)
        const held = Object.fromEntries(planned.applied.map((one) => {
          if ("unavailable" in one) return [one.limit, one.unavailable]
          expect(one.by.endsWith(`/effect-microvm-machines/${token}`)).toBe(true)
          return [
            one.limit,
            one.by === planned.data.path ? "v2" : one.by.slice(0, -`/effect-microvm-machines/${token}`.length)
          ]
        }))
        expect(held).toEqual(by)
        const made = yield* Limits.make(planned)
        expect(made.applied).toEqual(planned.applied)
        expect(made.enter).toEqual([
          ...(planned.data.path === undefined ? [] : [planned.data.path]),
          ...planned.data.v1
        ])
        for (const directory of made.enter) expect(host.files.has(`${directory}/cgroup.procs`)).toBe(true)
      }).pipe(Effect.provide(host.layer))
    })
  }

  it.effect("what is written, in version 2", () => {
    const host = hostOf(layouts["v2, as the root of all"]?.tree ?? {})
    return Effect.gen(function*() {
      yield* Limits.make(yield* Limits.plan({ token }, { ...limits, swapMib: 10 }))
      const parent = "/sys/fs/cgroup/effect-microvm-machines"
      const machine = `${parent}/${token}`
      expect(host.writes).toEqual([
        "/sys/fs/cgroup/cgroup.subtree_control +memory +cpu +pids +io",
        `${parent}/cgroup.subtree_control +memory +cpu +pids +io`,
        `${machine}/memory.max 268435456`,
        `${machine}/memory.oom.group 1`,
        `${machine}/memory.swap.max 10485760`,
        `${machine}/cpu.max 150000 100000`,
        `${machine}/pids.max 100`,
        `${machine}/io.max 254:0 rbps=1000 wiops=7`
      ])
    }).pipe(Effect.provide(host.layer))
  })

  it.effect("what is written, in version 1", () => {
    const host = hostOf(layouts["hybrid: v1 with an empty v2"]?.tree ?? {})
    return Effect.gen(function*() {
      yield* Limits.make(yield* Limits.plan({ token }, limits))
      const at = (base: string, text: string) => `/sys/fs/cgroup/${base}/effect-microvm-machines/${token}/${text}`
      expect(host.writes).toEqual([
        at("memory/a/b", "memory.limit_in_bytes 268435456"),
        at("memory/a/b", "memory.memsw.limit_in_bytes 268435456"),
        at("cpu,cpuacct", "cpu.cfs_period_us 100000"),
        at("cpu,cpuacct", "cpu.cfs_quota_us 150000"),
        at("blkio", "blkio.throttle.read_bps_device 254:0 1000"),
        at("blkio", "blkio.throttle.write_iops_device 254:0 7")
      ])
    }).pipe(Effect.provide(host.layer))
  })

  it.effect("without limits there is a cgroup all the same, and no controller is switched on", () => {
    const host = hostOf(layouts["v2, as the root of all"]?.tree ?? {})
    return Effect.gen(function*() {
      const made = yield* Limits.make(yield* Limits.plan({ token }, {}))
      expect(made).toEqual({
        data: { path: `/sys/fs/cgroup/effect-microvm-machines/${token}`, v1: [] },
        applied: [],
        enter: [`/sys/fs/cgroup/effect-microvm-machines/${token}`]
      })
      expect(host.writes).toEqual([])
    }).pipe(Effect.provide(host.layer))
  })

  it.effect("a cgroup that is named is taken", () => {
    const host = hostOf({
      "/proc/self/mountinfo": unified,
      "/proc/self/cgroup": own("/x"),
      ...cgroup("/sys/fs/cgroup/mine", all)
    })
    return Effect.gen(function*() {
      const { data } = yield* Limits.plan({ token }, { pids: 5, root: "/sys/fs/cgroup/mine" })
      expect(data).toEqual({ path: `/sys/fs/cgroup/mine/effect-microvm-machines/${token}`, v1: [] })
    }).pipe(Effect.provide(host.layer))
  })
})

describe("what cannot be", () => {
  it.effect("required limits that cannot be had are told before anything is made", () => {
    const host = hostOf(layouts["v2, a unit with Delegate= alone"]?.tree ?? {})
    return Effect.gen(function*() {
      const failure = yield* Effect.flip(Limits.plan({ token }, { ...limits, required: ["memory", "cpus"] }))
      expect(failure.message).toBe(
        "the limit memory of 256 MiB and the limit cpus of 1.5 cannot be had, there are processes in " +
          "/sys/fs/cgroup/system.slice/mv.service, so nothing can be switched on below it: run it as a systemd unit with " +
          "Delegate=yes and DelegateSubgroup=supervisor, or name a cgroup that is delegated to you"
      )
      expect(host.writes).toEqual([])
    }).pipe(Effect.provide(host.layer))
  })

  it.effect("a value that the kernel does not take is told, or is an error and nothing is left", () => {
    const host = hostOf(layouts["v2, as the root of all"]?.tree ?? {}, ["/memory.swap.max"])
    return Effect.gen(function*() {
      const made = yield* Limits.make(yield* Limits.plan({ token }, limits))
      expect(made.applied.filter((one) => "unavailable" in one).map(({ limit }) => limit)).toEqual(["swap"])
      const other = yield* Limits.plan({ token: "ffffffffffffffff" }, { ...limits, required: ["swap"] })
      const failure = yield* Effect.flip(Limits.make(other))
      expect(failure.message).toContain("the limit swap of 0 MiB cannot be had")
      expect(host.removed).toEqual([other.data.path])
      expect([...host.files.keys()].filter((path) => path.includes("ffffffffffffffff"))).toEqual([])
    }).pipe(Effect.provide(host.layer))
  })

  it.effect("all that is wrong is told at once", () => {
    const wrong: Limits.Options = {
      memoryMib: 0.5,
      cpus: 0,
      pids: -1,
      io: [{ device: "/dev/vda", readBytes: 0 }, { device: "8:0" }],
      required: ["cpus"]
    }
    return Effect.gen(function*() {
      const { reason } = yield* Effect.flip(Limits.plan({ token }, wrong))
      expect(reason._tag === "InvalidArgument" && reason.faults.map(({ field }) => field)).toEqual([
        "memoryMib",
        "cpus",
        "pids",
        "io[0].device",
        "io[0].readBytes",
        "io[1]"
      ])
      for (
        const [options, field] of [
          [{ swapMib: 1 }, "swapMib"],
          [{ memoryMib: 1, swapMib: -1 }, "swapMib"],
          [{ cpus: Number.NaN }, "cpus"],
          [{ cpus: Number.POSITIVE_INFINITY }, "cpus"],
          [{ pids: 1, required: ["memory"] }, "required"]
        ] satisfies ReadonlyArray<readonly [Limits.Options, string]>
      ) {
        const one = yield* Effect.flip(Limits.plan({ token }, options))
        expect(one.reason._tag === "InvalidArgument" && one.reason.faults.map((fault) => fault.field)).toEqual([field])
      }
    }).pipe(Effect.provide(hostOf({}).layer))
  })
})

describe("reclaiming", () => {
  const owner = { id: "web-1", token, bootId: "this-boot" }
  const v2 = `/sys/fs/cgroup/unified/effect-microvm-machines/${token}`
  const memory = `/sys/fs/cgroup/memory/effect-microvm-machines/${token}`

  /** Cgroups with so many attempts until they can be removed. */
  const world = (directories: Readonly<Record<string, number>>) => {
    const left = new Map(Object.entries(directories))
    const done: Array<string> = []
    const layer = Layer.merge(
      FileSystem.layerNoop({ exists: (path) => Effect.sync(() => left.has(path.replace(/\/cgroup\.procs$/, ""))) }),
      Layer.mock(ProcessHost.ProcessHost, {
        bootId: "this-boot",
        self: 1,
        cgroupRoot: Option.none(),
        cgroup: (path) => ({
          path,
          members: Effect.sync(() => left.has(path) ? [4711] : []),
          populated: Effect.sync(() => left.has(path)),
          watch: Effect.never,
          signal: (signal) => Effect.sync(() => [done.push(`${signal} ${path}`)]),
          kill: Effect.sync(() => void done.push(`kill ${path}`)),
          remove: Effect.sync(() => {
            const attempts = (left.get(path) ?? 0) - 1
            if (attempts > 0) left.set(path, attempts)
            else left.delete(path)
            return attempts <= 0
          })
        })
      })
    )
    return { layer, done, left }
  }
  const reclaim = (data: Limits.Data, dryRun = false) =>
    Effect.map(Limits.kind.reclaim([{ owner, data }], { dryRun }), ([verdict]) => verdict)

  it.effect("kills, removes, and says that it is not there the second time", () => {
    const { done, layer, left } = world({ [v2]: 1, [memory]: 1 })
    return Effect.gen(function*() {
      const data = { path: v2, v1: [memory] }
      expect(yield* reclaim(data, true)).toEqual({ _tag: "Released" })
      expect(done).toEqual([])
      expect(yield* reclaim(data)).toEqual({ _tag: "Released" })
      expect(done).toEqual([`kill ${v2}`, `SIGKILL ${memory}`])
      expect(left.size).toBe(0)
      expect(yield* reclaim(data)).toEqual({ _tag: "Absent" })
    }).pipe(Effect.provide(layer))
  })

  it.effect("waits for what is busy still", () => {
    const { layer, left } = world({ [v2]: 5, [memory]: 20 })
    return Effect.gen(function*() {
      const reclaiming = yield* Effect.forkChild(reclaim({ path: v2, v1: [memory] }), { startImmediately: true })
      yield* TestClock.adjust("150 millis")
      expect(reclaiming.pollUnsafe()).toBeUndefined()
      yield* TestClock.adjust("50 millis")
      expect(yield* Fiber.join(reclaiming)).toEqual({ _tag: "Released" })
      expect(left.size).toBe(0)
    }).pipe(Effect.provide(layer))
  })

  it.effect("what does not go is told, after 3 seconds", () => {
    const { layer } = world({ [v2]: 1, [memory]: 1_000_000 })
    return Effect.gen(function*() {
      const reclaiming = yield* Effect.forkChild(reclaim({ path: v2, v1: [memory] }), { startImmediately: true })
      yield* TestClock.adjust("3 seconds")
      expect(yield* Fiber.join(reclaiming)).toEqual({
        _tag: "Stuck",
        why: `${memory} cannot be removed, there are processes in it: 4711`,
        remedy: `see what they wait for (cat /proc/PID/stack), and then: rmdir ${memory}`
      })
    }).pipe(Effect.provide(layer))
  })

  for (
    const path of [
      "/sys/fs/cgroup/system.slice",
      `/sys/fs/cgroup/effect-microvm-machines/${"0".repeat(16)}`,
      `/sys/fs/cgroup/${token}`
    ]
  ) {
    it.effect(`${path} is not touched`, () => {
      const { done, layer, left } = world({ [path]: 1, [v2]: 1 })
      return Effect.gen(function*() {
        expect(yield* reclaim({ path: v2, v1: [path] })).toMatchObject({ _tag: "Foreign" })
        expect(done).toEqual([])
        expect(left.size).toBe(2)
      }).pipe(Effect.provide(layer))
    })
  }
})
