import { assert, describe, it } from "@effect/vitest"
import { JailPlan } from "effect-microvm-runtime/firecracker"
import * as Result from "effect/Result"

const host: JailPlan.JailHost = {
  executable: "/usr/bin/firecracker",
  base: "/srv/jailer",
  cgroups: { unified: { mount: "/sys/fs/cgroup", controllers: ["cpu", "memory", "pids"] }, separate: new Map() }
}
const options: JailPlan.Options = {
  id: "vm-1",
  jailer: "/usr/bin/jailer",
  uid: 123,
  gid: 100,
  machine: { vcpus: 2, memoryMib: 256 }
}
const versionOne: JailPlan.CGroups = {
  unified: { mount: "/sys/fs/cgroup/unified", controllers: [] },
  separate: new Map([["memory", "/sys/fs/cgroup/memory"], ["pids", "/sys/fs/cgroup/pids"]])
}

const make = (more: Partial<JailPlan.Options> = {}, here: Partial<JailPlan.JailHost> = {}) =>
  Result.getOrThrow(JailPlan.make({ ...host, ...here }, { ...options, ...more }))

const refused = (more: Partial<JailPlan.Options>, here: Partial<JailPlan.JailHost> = {}) =>
  Result.match(JailPlan.make({ ...host, ...here }, { ...options, ...more }), {
    onFailure: ({ reason }) => reason._tag === "InvalidRequest" ? reason.faults.map(({ field }) => field) : [],
    onSuccess: () => []
  })

const memoryLimit = String((256 + 4 + 128) * 2 ** 20)

describe("the command line", () => {
  it("limits the machine, and gives the socket of the API", () => {
    assert.deepStrictEqual(make().argv, [
      "/usr/bin/jailer",
      "--id",
      "vm-1",
      "--exec-file",
      "/usr/bin/firecracker",
      "--uid",
      "123",
      "--gid",
      "100",
      "--chroot-base-dir",
      "/srv/jailer",
      "--cgroup-version",
      "2",
      "--parent-cgroup",
      "firecracker",
      "--cgroup",
      "pids.max=34",
      "--cgroup",
      `memory.max=${memoryLimit}`,
      "--",
      "--api-sock",
      "/api.sock"
    ])
  })

  it("has cgroups of version 1 where only those have the controllers, and their own names", () => {
    const plan = make({}, { cgroups: versionOne })
    const version = plan.argv.indexOf("--cgroup-version")
    assert.deepStrictEqual(plan.argv.slice(version, version + 8), [
      "--cgroup-version",
      "1",
      "--parent-cgroup",
      "firecracker",
      "--cgroup",
      "pids.max=34",
      "--cgroup",
      `memory.limit_in_bytes=${memoryLimit}`
    ])
    assert.deepStrictEqual(plan.cgroup.directories.map(({ path }): string => path), [
      "/sys/fs/cgroup/pids/firecracker/vm-1",
      "/sys/fs/cgroup/memory/firecracker/vm-1"
    ])
    assert.strictEqual(make({ cgroupVersion: 1 }, { cgroups: versionOne }).cgroup.version, 1)
  })

  it("names each hierarchy of version 1 once", () => {
    const one = "/sys/fs/cgroup/all"
    const cgroups = { unified: undefined, separate: new Map([["memory", one], ["pids", one]]) }
    assert.lengthOf(make({}, { cgroups }).cgroup.directories, 1)
  })

  it("has everything that was asked for before the arguments of Firecracker, and nothing else", () => {
    const { argv } = make({
      parentCgroup: "microvm.slice/web",
      cgroup: { "memory.max": "1G", "cpu.max": "50000 100000" },
      fileSize: 4096,
      openFiles: 1024,
      netns: "/var/run/netns/a",
      newPidNamespace: true,
      daemonize: true,
      args: ["--log-path", "/log"]
    })
    assert.deepStrictEqual(argv.slice(argv.indexOf("--parent-cgroup")), [
      "--parent-cgroup",
      "microvm.slice/web",
      "--cgroup",
      "pids.max=34",
      "--cgroup",
      "memory.max=1G",
      "--cgroup",
      "cpu.max=50000 100000",
      "--resource-limit",
      "fsize=4096",
      "--resource-limit",
      "no-file=1024",
      "--netns",
      "/var/run/netns/a",
      "--new-pid-ns",
      "--daemonize",
      "--",
      "--api-sock",
      "/api.sock",
      "--log-path",
      "/log"
    ])
    assert.notInclude(argv, "--numa-node")
  })

  it("says who is to be looked after, and what can be sent to it", () => {
    const facts = ({ ignoresTermination, leavesJailer }: JailPlan.JailPlan) => [leavesJailer, ignoresTermination]
    assert.deepStrictEqual(facts(make()), [false, false])
    assert.deepStrictEqual(facts(make({ daemonize: true })), [true, false])
    assert.deepStrictEqual(facts(make({ newPidNamespace: true })), [true, true])
  })
})

describe("the layout", () => {
  it("follows the name of Firecracker's file", () => {
    const plan = make({}, { executable: "/opt/fc/firecracker-v1.16.1" })
    assert.deepInclude(plan, {
      directory: JailPlan.HostPath("/srv/jailer/firecracker-v1.16.1/vm-1"),
      root: JailPlan.HostPath("/srv/jailer/firecracker-v1.16.1/vm-1/root"),
      pidFile: JailPlan.HostPath("/srv/jailer/firecracker-v1.16.1/vm-1/root/firecracker-v1.16.1.pid"),
      api: {
        inside: JailPlan.JailPath("/api.sock"),
        outside: JailPlan.HostPath("/srv/jailer/firecracker-v1.16.1/vm-1/root/api.sock")
      }
    })
    assert.strictEqual(plan.cgroup.parent, "firecracker-v1.16.1")
  })

  it("has a path inside and one outside for each file, the vsock's socket too", () => {
    const plan = make({
      files: [
        { how: "bind", name: "vmlinux", from: "/images/vmlinux" },
        { how: "copy", name: "work.ext4", from: "/x/work.ext4", writable: true },
        { how: "empty", name: "log" }
      ]
    })
    assert.deepStrictEqual(plan.files.map(({ place: { inside } }): string => inside), [
      "/vmlinux",
      "/work.ext4",
      "/log"
    ])
    assert.strictEqual(
      Result.getOrThrow(JailPlan.place(plan, "vsock.sock")).outside,
      JailPlan.HostPath("/srv/jailer/firecracker/vm-1/root/vsock.sock")
    )
    assert.isTrue(Result.isFailure(JailPlan.place(plan, "dev")))
    assert.isTrue(Result.isFailure(JailPlan.place(plan, "../x")))
  })

  it.each([
    ["/v/workspace.ext4", "drive-0.img", "workspace.ext4"],
    ["..", "drive-3.img", "drive-3.img"],
    ["/v/", "drive-1.img", "drive-1.img"],
    ["/v/.hidden", "drive-1.img", "drive-1.img"],
    ["/v/ü", "drive-1.img", "drive-1.img"]
  ])("names %s", (path, otherwise, name) => {
    assert.strictEqual(JailPlan.fileName(path, otherwise), name)
  })
})

describe("what is refused", () => {
  const bind = (name: string): JailPlan.JailFile => ({ how: "bind", name, from: "/images/a" })

  it.each<readonly [Partial<JailPlan.Options>, Partial<JailPlan.JailHost>, ReadonlyArray<string>]>([
    [{ id: "" }, {}, ["id"]],
    [{ id: "a_b" }, {}, ["id"]],
    [{ id: "../x" }, {}, ["id"]],
    [{ id: "a".repeat(65) }, {}, ["id"]],
    [{ id: "a".repeat(64) }, {}, []],
    [{ jailer: "jailer" }, {}, ["jailer"]],
    [{}, { executable: "firecracker" }, ["executable"]],
    [{}, { executable: "/usr/bin/../bin/firecracker" }, ["executable"]],
    [{ version: { major: 1, minor: 12, patch: 1 } }, { executable: "/usr/bin/fc" }, ["executable"]],
    [{ version: { major: 1, minor: 13, patch: 0 } }, { executable: "/usr/bin/fc" }, []],
    [{}, { base: "srv" }, ["base"]],
    [{}, { base: "/srv//jailer" }, ["base"]],
    [{ uid: 0 }, {}, ["uid"]],
    [{ uid: 4_294_967_295 }, {}, ["uid"]],
    [{ gid: -1 }, {}, ["gid"]],
    [{ machine: { vcpus: 0, memoryMib: Number.NaN } }, {}, ["machine.vcpus", "machine.memoryMib"]],
    [{ netns: "netns/a" }, {}, ["netns"]],
    [{ fileSize: -1, openFiles: 0.5 }, {}, ["fileSize", "openFiles"]],
    [{ parentCgroup: "/abs" }, {}, ["parentCgroup"]],
    [{ parentCgroup: "a/../b" }, {}, ["parentCgroup"]],
    [{ parentCgroup: "." }, {}, ["parentCgroup"]],
    [{ parentCgroup: "--x" }, {}, ["parentCgroup"]],
    [{ parentCgroup: "microvm.slice" }, {}, []],
    [{ cgroup: { "cpu.max": "" } }, {}, ["cgroup"]],
    [{ cgroup: { "cpu.max": "a=b" } }, {}, ["cgroup"]],
    [{ cgroup: { "../x": "1" } }, {}, ["cgroup", "cgroup"]],
    [{ cgroup: { "cpuset.mems": "0" } }, {}, ["cgroup"]],
    [{ cgroupVersion: 1 }, {}, ["cgroup"]],
    [{}, { cgroups: { unified: undefined, separate: new Map() } }, ["cgroup"]],
    [{ files: [bind("dev")] }, {}, ["files[0].name"]],
    [{ files: [bind("a"), bind("firecracker.pid")] }, {}, ["files[1].name"]],
    [{ files: [bind("../a")] }, {}, ["files[0].name"]],
    [{ files: [bind("a/b")] }, {}, ["files[0].name"]],
    [{ files: [bind("a"), { how: "empty", name: "a" }] }, {}, ["files[1].name"]],
    [{ files: [{ how: "copy", name: "a", from: "a" }] }, {}, ["files[0].from"]],
    [{ args: ["--no-seccomp", "--id", "--api-sock"] }, {}, ["args", "args", "args"]],
    [{ args: ["--seccomp-filter", "/filter.bpf"] }, {}, []]
  ])("%o %o", (more, here, fields) => {
    assert.deepStrictEqual(refused(more, here), fields)
  })

  it("is all told at once", () => {
    assert.deepStrictEqual(
      refused({ id: "a_b", uid: 0, netns: "x", args: ["--no-seccomp"], files: [bind("dev"), bind("dev")] }, {
        base: "x"
      }),
      ["id", "base", "uid", "netns", "files[0].name", "files[1].name", "files[1].name", "args"]
    )
  })
})
