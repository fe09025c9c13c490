/** Machines of QEMU that meet their limits, and disks of their own. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { execFileSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as DiskClones from "../../src/host/DiskClones.ts"
import * as Limits from "../../src/host/Limits.ts"
import * as NodeDiskFiles from "../../src/host/NodeDiskFiles.ts"
import * as NodeHostCommands from "../../src/host/NodeHostCommands.ts"
import * as Templates from "../../src/host/Templates.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineEnd from "../../src/microvm/MachineEnd.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as NodeSupervisor from "../../src/supervisor/NodeSupervisor.ts"
import * as Resources from "../../src/supervisor/Resources.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"

const temporary = mkdtempSync(join(tmpdir(), "limits-"))
afterAll(() => rmSync(temporary, { recursive: true }))

const host = DiskClones.layerAt(join(temporary, "clones")).pipe(
  Layer.provideMerge(Templates.layerAt(join(temporary, "templates"))),
  Layer.provideMerge(Layer.mergeAll(NodeDiskFiles.layer, NodeHostCommands.layer)),
  Layer.provideMerge(QemuProvider.layerConfig.pipe(Layer.provide(NodeQemuHost.layer))),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const image = await Effect.runPromise(
  ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
)

/** Less than a guest of 256 MiB takes when it uses all of its memory, and more than it boots with. */
const memoryMib = 200

const limits: Limits.Options = { memoryMib, cpus: 2, pids: 100 }

/** Why these limits cannot be had here. */
const missing = await Effect.runPromise(
  Limits.plan({ token: "0".repeat(16) }, limits).pipe(
    Effect.map(({ applied }) =>
      applied.flatMap((one) => "unavailable" in one && one.limit !== "swap" ? [`${one.limit}: ${one.unavailable}`] : [])
    ),
    Effect.provide(NodeServices.layer)
  )
)
if (missing.length > 0) console.warn(`skipped: machines with limits: ${missing.join(", ")}`)

/** A supervisor of its own; closing the scope is its end. */
const supervisor = (name: string) =>
  Effect.map(
    Layer.build(Layer.fresh(NodeSupervisor.layer({ directory: join(temporary, name) }))),
    Context.get(Supervisor.Supervisor)
  )

const bring = ({ before, drives, id }: Supervisor.Provision) =>
  Effect.gen(function*() {
    const spec = yield* MachineSpec.decode({
      id,
      kernel: image.kernel,
      initramfs: image.initramfs,
      channels: [GuestAgent.channelName],
      drives
    })
    const machine = yield* Machine.launch(spec, yield* before(spec))
    yield* machine.start
    return { machine }
  })

const agentOf = (machine: Machine.Machine) =>
  Effect.flatMap(machine.channel(GuestAgent.channelName), (socket) => GuestAgent.make(socket, { within: "1 minute" }))

const ask = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent, script: string) {
  const { status, stderr, stdout } = yield* agent.exec({ path: "sh", args: ["-c", script] })
  assert.isTrue(ExitStatus.isSuccess(status), new TextDecoder().decode(stderr))
  return new TextDecoder().decode(stdout).trim()
})

/** Once for each machine: a channel is not for two. */
const sh = (machine: Machine.Machine, script: string) => Effect.flatMap(agentOf(machine), (agent) => ask(agent, script))

/** Fills the guest's memory after a while, when whoever has asked for it is gone. */
const gorge = (seconds: number) =>
  `(sleep ${seconds}; tail /dev/zero; cat /dev/zero >/tmp/all) >/dev/null 2>&1 </dev/null &`

const enough: MachineEnd.Shortage = { _tag: "Memory", limitMib: memoryMib }
const told = "the monitor was killed by the kernel: out of memory (limit 200 MiB)"

const cgroupsOf = ({ pid }: Machine.Machine): ReadonlyArray<string> =>
  readFileSync(`/proc/${Option.getOrThrow(pid)}/cgroup`, "utf8").trim().split("\n")

layer(host, { excludeTestServices: true, timeout: "1 minute" })("a machine with limits", (it) => {
  it.effect.skipIf(missing.length > 0)(
    "is in all of its cgroups, and told to be out of memory when it is killed for that",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor("memory")
        const { machine, supervised: { entry, released } } = yield* launch({
          id: "limits-memory",
          resources: [Resources.limits(limits)],
          bring
        })
        const { claims, labels } = yield* entry.record
        const [claim] = claims
        assert.strictEqual(claim?.kind, "cgroup")
        assert.match(labels["limits"] ?? "", /^memory 200 MiB, (swap 0 MiB, )?cpus 2, pids 100/)
        const own = cgroupsOf(machine)
        for (const controller of ["memory", "cpu", "pids"]) {
          const line = own.find((one) => one.split(":")[1]?.split(",").includes(controller)) ??
            own.find((one) => one.startsWith("0::"))
          assert.include(line, `/effect-microvm-machines/${entry.token}`)
        }
        assert.isTrue(own.some((one) => one.startsWith("0::") && one.endsWith(`/${entry.token}`)), own.join(" "))
        yield* sh(machine, gorge(0))
        const end = yield* machine.ended
        assert.deepStrictEqual(end._tag === "Killed" ? end.shortage : end, enough)
        assert.strictEqual(MachineEnd.format(end), told)
        const { left } = yield* released
        assert.strictEqual(left, 0)
        const directories = JSON.stringify(claims).match(/\/sys\/[^"]*/g) ?? []
        assert.isAtLeast(directories.length, 1)
        for (const directory of directories) assert.isFalse(existsSync(directory))
      }))
  )

  it.effect.skipIf(missing.length > 0)(
    "that is killed by somebody else is not out of anything",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor("killed")
        const { machine } = yield* launch({ id: "limits-killed", resources: [Resources.limits(limits)], bring })
        yield* sh(machine, "true")
        process.kill(Option.getOrThrow(machine.pid), "SIGKILL")
        const end = yield* machine.ended
        assert.strictEqual(MachineEnd.format(end), "the monitor was killed by SIGKILL")
        assert.notProperty(end, "shortage")
      }))
  )

  it.effect.skipIf(missing.length > 0)(
    "that cannot even be launched says why, and leaves nothing",
    () =>
      Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor("launch")
        const failing = (id: string, options: Limits.Options) =>
          Effect.flip(Effect.scoped(launch({ id, resources: [Resources.limits(options)], bring })))
        const few = yield* failing("limits-pids", { pids: 2 })
        const reason = few._tag === "MicroVmError" ? few.reason : few
        assert.deepStrictEqual(
          reason._tag === "LaunchFailed" ? reason.shortage : reason,
          { _tag: "Tasks", limit: 2 },
          few.message
        )
        assert.include(few.message, "out of processes and threads (limit 2)")
        const little = yield* failing("limits-little", { memoryMib: 8 })
        assert.include(little.message, "killed by SIGKILL, out of memory (limit 8 MiB)")
        const both = yield* failing("limits-bad", { memoryMib: 0.5, cpus: -1 })
        assert.include(both.message, "memoryMib: 0.5")
        assert.include(both.message, "cpus: -1")
      }))
  )

  it.effect.skipIf(missing.length > 0)(
    "is adopted with them, and its end is told by whoever looks after it, or comes later",
    () =>
      Effect.gen(function*() {
        // Whatever comes of this test, nothing is to outlive it.
        yield* Effect.addFinalizer(() =>
          Effect.flatMap(supervisor("adopted"), ({ recover }) => recover({ mode: "kill" })).pipe(
            Effect.scoped,
            Effect.orDie
          )
        )
        const resources = [Resources.limits(limits)]
        const [first, second] = ["limits-first", "limits-second"]
        yield* Effect.scoped(Effect.gen(function*() {
          const { launch } = yield* supervisor("adopted")
          for (const id of [first, second]) {
            const { machine } = yield* launch({ id, keep: true, resources, bring })
            yield* sh(machine, "true")
          }
        }))
        yield* Effect.scoped(Effect.gen(function*() {
          const { machines, recover } = yield* supervisor("adopted")
          assert.deepStrictEqual((yield* recover()).map(({ action }) => action), ["Adopted", "Adopted"])
          const all = yield* machines
          const one = all.find(({ machine }) => machine.id === first)
          const two = all.find(({ machine }) => machine.id === second)
          assert.isDefined(one)
          assert.isDefined(two)
          for (const { entry, machine } of all) {
            assert.isTrue(cgroupsOf(machine).some((line) => line.includes(entry.token)))
          }
          yield* sh(one.machine, gorge(0))
          assert.strictEqual(MachineEnd.format(yield* one.machine.ended), told)
          yield* one.released
          yield* sh(two.machine, gorge(2))
        }))
        const held = join(temporary, "adopted", "held")
        const hasEnded = Effect.sync(() =>
          execFileSync("find", [held, "-name", "exit.json"], { encoding: "utf8" }) !== ""
        )
        yield* hasEnded.pipe(
          Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (is) => is }),
          Effect.timeout("1 minute")
        )
        const [late] = yield* Effect.scoped(Effect.flatMap(supervisor("adopted"), ({ recover }) => recover()))
        assert.strictEqual(late?.action, "Reclaimed")
        assert.strictEqual(late?.end, told)
        assert.strictEqual(late?.released?.left, 0)
      })
  )
})

const env = { ...process.env, PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` }
const run = (program: string, ...args: ReadonlyArray<string>) => execFileSync(program, args, { env, encoding: "utf8" })
const lacking = ["mkfs.ext4", "debugfs", "resize2fs"].filter((program) => {
  try {
    run("sh", "-c", `command -v ${program}`)
    return false
  } catch {
    return true
  }
})
if (lacking.length > 0) console.warn(`skipped: machines with disks: there is no ${lacking.join(", ")}`)

layer(host, { excludeTestServices: true, timeout: "1 minute" })("a machine with a disk", (it) => {
  it.effect.skipIf(lacking.length > 0)(
    "has a clone of its own, as large as was asked for, which is gone with it",
    () =>
      Effect.gen(function*() {
        const file = join(temporary, "base.img")
        writeFileSync(join(temporary, "greeting"), "hello from the template")
        run("truncate", "-s", "16M", file)
        run("mkfs.ext4", "-q", "-F", file)
        run("debugfs", "-w", "-R", `write ${join(temporary, "greeting")} greeting`, file)
        yield* Templates.Templates.use((all) => all.add("base", file))
        const clone = join(temporary, "clones", "disk-one", "rootfs.ext4")
        yield* Effect.scoped(Effect.gen(function*() {
          const { launch } = yield* supervisor("disk")
          const resources = [Resources.disk({ name: "data", stack: "base", size: 32 * 2 ** 20 })]
          const none = yield* Effect.flip(launch({
            id: "disk-none",
            resources: [Resources.disk({ name: "data", stack: "no-such" })],
            bring
          }))
          assert.include(none.message, "no-such")
          const { machine } = yield* launch({ id: "disk-one", resources, bring })
          const agent = yield* agentOf(machine)
          assert.strictEqual(
            yield* ask(agent, "mkdir /mnt && mount -t ext4 /dev/vda /mnt && cat /mnt/greeting"),
            "hello from the template"
          )
          assert.strictEqual(
            yield* ask(agent, "cat /sys/block/vda/serial; echo; cat /sys/block/vda/size"),
            "data\n65536"
          )
          yield* ask(agent, "echo mine >/mnt/mine && umount /mnt && sync")
          assert.strictEqual(run("debugfs", "-R", "cat mine", clone), "mine\n")
          assert.notInclude(run("debugfs", "-R", "ls", join(temporary, "templates", "base", "rootfs.ext4")), "mine")
        }))
        assert.isFalse(existsSync(join(clone, "..")))
      })
  )
})
