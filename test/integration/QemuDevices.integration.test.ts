/** Network cards and disks in real guests, with packets between them and the host's side of their TAP devices. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type { LaunchOptions } from "../../src/microvm/MicroVmProvider.ts"
import * as Snapshot from "../../src/microvm/Snapshot.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import { makeNetns, network, noNetns, tap } from "./network.ts"

const qemu = QemuProvider.layerConfig.pipe(
  Layer.provideMerge(NodeQemuHost.layer),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

if (noNetns !== undefined) console.log(`cards in real guests are not tested: ${noNetns}`)

const image = await Effect.runPromise(
  ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
)

type Devices = Partial<Pick<MachineSpec.MachineSpecOptions, "networks" | "drives">>

const specOf = (id: string, devices: Devices) =>
  MachineSpec.decode({
    id,
    kernel: image.kernel,
    initramfs: image.initramfs,
    channels: [GuestAgent.channelName],
    ...devices
  })

const boot = Effect.fnUntraced(function*(id: string, devices: Devices, options?: LaunchOptions) {
  const machine = yield* Machine.launch(yield* specOf(id, devices), options)
  yield* machine.start
  const agent = yield* GuestAgent.make(yield* machine.channel(GuestAgent.channelName), { within: "2 minutes" })
  return { agent, machine }
})

const run = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent, script: string) {
  const { status, stderr, stdout } = yield* agent.exec({ path: "/bin/sh", args: ["-c", script] })
  const [out, err] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes).trim())
  return { code: status._tag === "Exited" ? status.code : -1, out, err }
})

const sh = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent, script: string) {
  const { code, err, out = "" } = yield* run(agent, script)
  assert.deepStrictEqual([code, err], [0, ""], script)
  return out
})

const file = Effect.fnUntraced(function*(bytes: number) {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "disk-"))),
    (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true }))
  )
  const path = Path.join(directory, "disk")
  Fs.writeFileSync(path, "", { mode: 0o600 })
  Fs.truncateSync(path, bytes)
  return path
})

const faultOf = Effect.fnUntraced(function*(devices: Devices, options?: LaunchOptions) {
  const { reason } = yield* Effect.flip(Effect.scoped(Machine.launch(yield* specOf("refused", devices), options)))
  if (reason._tag !== "InvalidSpec") throw reason
  return reason.faults.map(({ field, remedy }) => `${field}: ${remedy}`)
})

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a guest with cards", (it) => {
  it.effect.skipIf(noNetns !== undefined)(
    "reaches the host's side of each, by both protocols",
    () =>
      Effect.gen(function*() {
        const netns = yield* makeNetns
        yield* netns.ip(...tap("web-0", 1), ...tap("web-1", 2, 1400))
        yield* netns.serve
        const { agent } = yield* boot(
          "cards",
          { networks: [{ ...network("web-0", 1), nameserver: "10.77.0.2" }, network("web-1", 2, 1400)] },
          { netns: netns.path }
        )
        assert.strictEqual(
          yield* sh(agent, "ping -c 1 -W 5 10.77.0.2 >/dev/null && ping -6 -c 1 -W 5 fd77::4 >/dev/null && echo yes"),
          "yes"
        )
        assert.strictEqual(
          yield* sh(agent, "nc -w 5 10.77.0.2 7; echo; nc -w 5 fd77::2 7; echo; nc -w 5 10.77.0.4 7"),
          "::ffff:10.77.0.3\nfd77::3\n::ffff:10.77.0.5"
        )
        assert.strictEqual(
          yield* sh(agent, "cat /sys/class/net/eth*/address /sys/class/net/eth*/mtu"),
          "02:77:00:00:00:01\n02:77:00:00:00:02\n1500\n1400"
        )
        assert.strictEqual(yield* sh(agent, "cat /etc/resolv.conf"), "nameserver 10.77.0.2")
        // A packet of the greatest size goes through, and no greater one.
        assert.strictEqual(yield* sh(agent, "ping -c 1 -W 5 -s 1372 10.77.0.4 >/dev/null && echo yes"), "yes")
        // All else leaves by the first card.
        assert.match(
          yield* sh(agent, "ip route get 192.0.2.1; ip -6 route get 2001:db8::1"),
          /via 10\.77\.0\.2 dev eth0.*via fd77::2 dev eth0/s
        )
        // The host reaches the guest as well, without a search for its address.
        assert.include(yield* netns.ip("neigh show dev web-0"), "02:77:00:00:00:01")
      })
  )

  it.effect.skipIf(noNetns !== undefined)("cannot be made without its TAP device", () =>
    Effect.gen(function*() {
      const netns = yield* makeNetns
      yield* netns.ip(...tap("mine", 1), "tuntap add dev theirs mode tap user 12345")
      const faults = Effect.fnUntraced(function*(name: string) {
        return yield* faultOf({ networks: [network(name, 1)] }, { netns: netns.path })
      })
      assert.deepStrictEqual(yield* faults("missing"), [
        "networks[0].tap: there is no such interface: make it first (ip tuntap add missing mode tap), and bring it up"
      ])
      assert.match(
        (yield* faults("theirs")).join(),
        /^networks\[0\]\.tap: Operation not permitted: it belongs to another user/
      )
      assert.match((yield* faults("lo")).join(), /^networks\[0\]\.tap: /)
      yield* Machine.launch(yield* specOf("first", { networks: [network("mine", 1)] }), { netns: netns.path })
      assert.match(
        (yield* faults("mine")).join(),
        /^networks\[0\]\.tap: Device or resource busy: another process has it/
      )
    }))
})

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a guest with disks", (it) => {
  it.effect("reads and writes them, finds them by their names, and cannot write to one that is to be read", () =>
    Effect.gen(function*() {
      const [data, readOnly] = [yield* file(4 << 20), yield* file(1 << 20)]
      Fs.writeFileSync(readOnly, "what was there", { flag: "r+" })
      const { agent, machine } = yield* boot("disks", {
        drives: [{ name: "data", path: data }, { name: "tools", path: readOnly, readOnly: true }]
      })
      assert.strictEqual(yield* sh(agent, "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial"), "data\ntools")
      assert.strictEqual(yield* sh(agent, "cat /sys/block/vd?/size /sys/block/vd?/ro"), "8192\n2048\n0\n1")
      assert.strictEqual(yield* sh(agent, "head -c 14 /dev/vdb"), "what was there")
      assert.notStrictEqual((yield* run(agent, "echo changed >/dev/vdb && sync")).code, 0)
      yield* sh(
        agent,
        "mke2fs -q /dev/vda && mkdir /mnt && mount -t ext4 /dev/vda /mnt && echo kept >/mnt/file && umount /mnt && sync"
      )
      assert.deepStrictEqual(yield* faultOf({ drives: [{ name: "data", path: "/nonexistent/disk" }] }), [
        "drives[0].path: it cannot be opened for writing: ENOENT: name a raw image that we may open"
      ])
      // Two machines that write to one disk would ruin it.
      const { reason } = yield* Effect.flip(
        Effect.scoped(Machine.launch(yield* specOf("second", { drives: [{ name: "data", path: data }] })))
      )
      assert.strictEqual(reason._tag, "LaunchFailed")
      assert.match(reason._tag === "LaunchFailed" ? reason.stderrTail : "", /lock/)
      yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
      assert.strictEqual(Fs.readFileSync(readOnly, "utf8").slice(0, 14), "what was there")

      const again = yield* boot("again", { drives: [{ name: "data", path: data, readOnly: true }] })
      assert.strictEqual(
        yield* sh(again.agent, "mkdir /mnt; mount -t ext4 -o ro,noload /dev/vda /mnt && cat /mnt/file"),
        "kept"
      )
    }))

  it.effect("goes on where it was saved only on disks that hold what they held then", () =>
    Effect.gen(function*() {
      const [data, tools, directory] = [yield* file(4 << 20), yield* file(1 << 20), Path.dirname(yield* file(1))]
      Fs.rmSync(Path.join(directory, "disk"))
      const drives = (given: { readonly data?: string; readonly tools?: string } = {}) => [
        { name: "data", path: given.data ?? data },
        { name: "tools", path: given.tools ?? tools, readOnly: true }
      ]
      const { agent, machine } = yield* boot("saved", { drives: drives() })
      yield* sh(agent, "echo something >/dev/vda && sync")
      yield* machine.pause
      const saved = yield* machine.save(directory)
      assert.deepStrictEqual(saved.disks?.map(({ name, size }) => [name, size]), [["data", 4 << 20], [
        "tools",
        1 << 20
      ]])
      yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
      const snapshot: Snapshot.Snapshot = {
        id: "f".repeat(64),
        directory,
        manifest: {
          format: 1,
          kind: "saved",
          ...Snapshot.told(saved),
          spec: Snapshot.specOf(machine.spec),
          createdAt: "2026-01-01T00:00:00Z",
          files: []
        }
      }
      const restore = (given: Parameters<typeof drives>[0], id = "restored") =>
        Effect.scoped(
          Effect.flatMap(Machine.restore(id, snapshot, { drives: drives(given) }), (one) => one.state)
        ).pipe(
          Effect.catchReason("MicroVmError", "SnapshotUnusable", ({ why }) => Effect.succeed(why.join("; ")))
        )
      const [clone, other] = [`${data}-clone`, `${tools}-other`]
      Fs.copyFileSync(data, clone)
      Fs.copyFileSync(tools, other)
      assert.strictEqual(yield* restore({}), "paused")
      assert.strictEqual(yield* restore({ data: clone, tools: other }), "paused")
      Fs.writeFileSync(other, "another", { flag: "r+" })
      Fs.truncateSync(clone, 8 << 20)
      assert.strictEqual(
        yield* restore({ data: clone, tools: other }),
        "its disk data has 4194304 bytes, here 8388608; its disk tools has another content here"
      )
      // It goes on, and writes to its disk: for another one, that is not what it was any more.
      yield* Effect.scoped(Effect.gen(function*() {
        const one = yield* Machine.restore("goes-on", snapshot, { drives: drives() })
        yield* one.resume
        const again = yield* GuestAgent.make(yield* one.channel(GuestAgent.channelName), { within: "1 minute" })
        yield* sh(again, "echo more >/dev/vda && sync")
        yield* one.shutdown({ request: { atLeast: "SIGKILL" } })
      }))
      assert.match(yield* restore({}), /^its disk data was written to since it was saved/)

      // A snapshot of somebody's own is loaded by any program of the same release.
      const { program = "", ...platform } = snapshot.manifest.platform
      assert.match(program, /^[0-9a-f]{16}$/)
      const elsewhere = {
        ...snapshot,
        manifest: { ...snapshot.manifest, platform: { ...platform, program: "another" } }
      }
      const later = `${data}-later`
      Fs.copyFileSync(data, later)
      const upgraded = Machine.restore("upgraded", elsewhere, { drives: drives({ data: later }) })
      assert.strictEqual(yield* Effect.scoped(Effect.flatMap(upgraded, (one) => one.state)), "paused")
    }))
})
