import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  chmodSync,
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as GuestCommand from "../../src/guest/GuestCommand.ts"
import type * as Machine from "../../src/microvm/Machine.ts"
import * as MicroVmPool from "../../src/microvm/MicroVmPool.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as GoldenMachines from "../../src/warm/GoldenMachines.ts"
import * as NodeWarmMachine from "../../src/warm/NodeWarmMachine.ts"
import * as WarmMachine from "../../src/warm/WarmMachine.ts"

const temporary = mkdtempSync(join(tmpdir(), "warm-integration-"))
chmodSync(temporary, 0o711)
afterAll(() => rmSync(temporary, { recursive: true }))
const store = join(temporary, "store")

const services = NodeWarmMachine.layerAt({ directory: store }).pipe(
  Layer.provideMerge(QemuProvider.layerConfig.pipe(Layer.provide(NodeQemuHost.layer))),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const kill = (machine: Machine.Machine) => machine.shutdown({ request: { atLeast: "SIGKILL" } })

const sh = Effect.fnUntraced(function*({ agent }: WarmMachine.WarmMachine, script: string) {
  const { stdout } = yield* agent.exec({ path: "sh", args: ["-c", script] })
  return new TextDecoder().decode(stdout).trim()
})

const digestOf = (file: string): string => createHash("sha256").update(readFileSync(file)).digest("hex")

/** The directory of the only snapshot that there is. */
const only = Effect.map(SnapshotStore.use(({ list }) => list), (stored) => {
  assert.strictEqual(stored.length, 1)
  return join(store, "snapshots", stored[0]?.id ?? "")
})

/** What each machine must have alone, each by a way of its own to the kernel. */
const unique = {
  "host name": "hostname",
  "machine id": "cat /etc/machine-id",
  "boot id": "cat /proc/sys/kernel/random/boot_id",
  "random bytes": "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '",
  "kernel's uuid": "cat /proc/sys/kernel/random/uuid",
  "name of a temporary file": "mktemp -u /tmp/XXXXXXXXXXXX"
}

layer(services, { excludeTestServices: true, timeout: "2 minutes" })("machines from one golden machine", (it) => {
  it.effect(
    "a hundred share nothing that must be unique, and the golden machine stays as it is",
    () =>
      Effect.gen(function*() {
        yield* Effect.scoped(WarmMachine.launch({ id: "first" }))
        const memory = join(yield* only, "memory")
        const before = digestOf(memory)
        const names = Object.keys(unique)
        const found = yield* Effect.forEach(
          Array.from({ length: 100 }, (_, index) => `clone-${index}`),
          (id) =>
            Effect.scoped(Effect.gen(function*() {
              const clone = yield* WarmMachine.launch({ id })
              assert.strictEqual(clone.start._tag, "Restored", JSON.stringify(clone.start))
              const started = Date.now()
              const [time = "", ...told] = (yield* sh(clone, ["date +%s", ...Object.values(unique)].join("; "))).split(
                "\n"
              )
              yield* kill(clone.machine)
              // A second, as date(1) of the guest has no parts of it.
              assert.isAtLeast(Number(time) * 1000, started - 1050)
              assert.isAtMost(Number(time) * 1000, Date.now() + 50)
              assert.strictEqual(told.length, names.length)
              assert.strictEqual(told[0], id)
              return told
            })),
          { concurrency: 8 }
        )
        for (const [index, name] of names.entries()) {
          assert.strictEqual(new Set(found.map((told) => told[index])).size, 100, name)
        }
        assert.strictEqual(digestOf(memory), before)
      }),
    180_000
  )

  it.effect(
    "one byte of the golden machine is changed: it is noticed, and another one is made",
    () =>
      Effect.gen(function*() {
        yield* Effect.scoped(WarmMachine.launch({ id: "before" }))
        const memory = join(yield* only, "memory")
        const file = openSync(memory, "r+")
        const byte = Buffer.alloc(1)
        readSync(file, byte, 0, 1, 50 << 20)
        writeSync(file, Buffer.of((byte[0] ?? 0) ^ 1), 0, 1, 50 << 20)
        closeSync(file)
        const told: Array<string> = []
        const { start } = yield* Effect.scoped(
          WarmMachine.launch({
            id: "after",
            onProgress: (progress) => Effect.sync(() => void (progress._tag === "Remaking" && told.push(progress.why)))
          })
        )
        assert.strictEqual(start._tag, "Restored")
        assert.match(told.join(), /memory/)
        assert.notStrictEqual(join(yield* only, "memory"), memory)
      }),
    180_000
  )

  it.effect(
    "a machine that a command has changed is saved, goes on, and another one goes on from there",
    () =>
      Effect.gen(function*() {
        const one = yield* WarmMachine.launch({ id: "one" })
        yield* sh(
          one,
          "echo kept >/tmp/file; (while :; do date +%s >/run/new; mv /run/new /run/now; usleep 20000; done) </dev/null >/dev/null 2>&1 &"
        )
        yield* WarmMachine.save(one, "mine")
        yield* sh(one, "echo changed >/tmp/file")
        const two = yield* WarmMachine.launch({ id: "two", start: { from: "mine" } })
        assert.strictEqual(yield* sh(two, "cat /tmp/file; hostname"), "kept\ntwo")
        assert.strictEqual(yield* sh(one, "cat /tmp/file; hostname"), "changed\none")
        // What ran in the first runs in the second, by the second's clock.
        const now = Number(yield* sh(two, "sleep 0.1; cat /run/now"))
        assert.isBelow(Math.abs(now - Date.now() / 1000), 5)
        yield* Effect.forEach([one, two], ({ machine }) => kill(machine))
        yield* SnapshotStore.use(({ remove }) => remove("mine"))
      }).pipe(Effect.scoped),
    180_000
  )

  it.effect(
    "a snapshot of one QEMU is refused by another one",
    () =>
      Effect.gen(function*() {
        const one = yield* WarmMachine.launch({ id: "one" })
        yield* WarmMachine.save(one, "of-another")
        yield* kill(one.machine)
        // QEMU as it is, under an earlier version. It is found out as soon as a machine is launched, so none is here.
        const binary = join(temporary, "qemu-system-x86_64")
        const real = execFileSync("sh", ["-c", "command -v qemu-system-x86_64"], { encoding: "utf8" }).trim()
        const version = /version (\d+)\.(\d+)/.exec(execFileSync(real, ["--version"], { encoding: "utf8" }))
        const [major, minor] = [Number(version?.[1]), Number(version?.[2])]
        const told = minor > 0 ? `${major}.${minor - 1}.0` : `${major - 1}.0.0`
        writeFileSync(
          binary,
          `#!/bin/sh\n[ "$1" = --version ] && exec echo "QEMU emulator version ${told}"\nexec ${real} "$@"\n`,
          { mode: 0o755 }
        )
        const other = GoldenMachines.layerWith({}).pipe(
          Layer.provideMerge(QemuProvider.layerWith({ binary })),
          Layer.provide(NodeQemuHost.layer)
        )
        yield* Effect.gen(function*() {
          const refused = yield* Effect.flip(WarmMachine.launch({ id: "two", start: { from: "of-another" } }))
          assert.strictEqual(refused.reason._tag, "SnapshotUnusable")
          assert.include(refused.message, `its version is ${major}.${minor}, here it is`)
        }).pipe(Effect.provide(other))
        yield* SnapshotStore.use(({ remove }) => remove("of-another"))
      }).pipe(Effect.scoped),
    180_000
  )

  it.effect(
    "what waits in a golden machine starts the first command and powers off, and without it the agent does",
    () =>
      Effect.gen(function*() {
        const run = Effect.fnUntraced(function*({ agent, slots }: WarmMachine.WarmMachine, script: string) {
          const command = yield* GuestCommand.run(agent, slots, {
            command: "sh",
            args: ["-c", script],
            env: { A: "b" }
          })
          const [stdout, status] = yield* Effect.all([
            Stream.mkString(Stream.decodeText(command.stdout)),
            command.exit,
            Stream.runDrain(command.stderr),
            Stream.run(Stream.make(Buffer.from("input\n")), command.stdin)
          ], { concurrency: "unbounded" })
          return { stdout, status }
        }, Effect.scoped)
        const off = ({ agent, machine }: WarmMachine.WarmMachine) =>
          machine.shutdown({ leading: [{ name: "guest power-off", request: agent.powerOff, grace: "20 seconds" }] })
        const parent = "read -r line; echo $A $line $(tr '\\0' ' ' </proc/$PPID/cmdline)"

        const one = yield* WarmMachine.launch({ id: "one" })
        const golden = (yield* SnapshotStore.use(({ list }) => list)).find(({ manifest }) =>
          manifest?.kind === "golden"
        )
        assert.strictEqual(golden?.manifest?.labels["resident"], "alone")
        const first = yield* run(one, `${parent}; kill -9 $$`)
        assert.strictEqual(first.stdout, "b input /sbin/microvm-resident\n")
        assert.deepInclude(first.status, { _tag: "Signaled", signal: "SIGKILL" })
        const second = yield* run(one, `${parent}; exit 7`)
        assert.match(second.stdout, /^b input qemu-ga /)
        assert.deepInclude(second.status, { _tag: "Exited", code: 7 })
        // What a command has left behind is asked to end before the guest goes.
        const stays =
          "(trap 'echo asked >/dev/console; exit' TERM; while :; do sleep 0.1; done) </dev/null >/dev/null 2>&1 &"
        yield* sh(one, stays)
        assert.deepInclude(yield* off(one), { _tag: "Graceful", stage: "guest power-off" })
        assert.include(yield* one.machine.consoleTail, "asked")
        // The agent's program leaves it to the kernel, which says so.
        assert.notInclude(yield* one.machine.consoleTail, "reboot: Power down")

        // So is what the agent has started, also before the first command.
        const three = yield* WarmMachine.launch({ id: "three" })
        yield* three.agent.exec({ path: "/bin/sh", args: ["-c", stays] })
        assert.match((yield* run(three, parent)).stdout, /^b input qemu-ga /)
        assert.deepInclude(yield* off(three), { _tag: "Graceful", stage: "guest power-off" })
        assert.include(yield* three.machine.consoleTail, "asked")

        // With nobody left, it is off at once.
        const four = yield* WarmMachine.launch({ id: "four" })
        assert.strictEqual((yield* run(four, `${parent}; exit 3`)).status._tag, "Exited")
        assert.deepInclude(yield* off(four), { _tag: "Graceful", stage: "guest power-off" })
        assert.notInclude(yield* four.machine.consoleTail, "reboot: Power down")

        const two = yield* WarmMachine.launch({ id: "two" })
        yield* sh(two, "kill -9 $(pidof microvm-resident)")
        // Nor does it start a command any more.
        assert.match((yield* run(two, parent)).stdout, /^b input qemu-ga /)
        assert.deepInclude(yield* off(two), { _tag: "Graceful", stage: "guest power-off" })
        assert.include(yield* two.machine.consoleTail, "reboot: Power down")
      }).pipe(Effect.scoped),
    180_000
  )

  it.effect("a pool hands each machine out once, and leaves nothing", () =>
    Effect.gen(function*() {
      let made = 0
      const ids = new Set<string>()
      yield* Effect.scoped(Effect.gen(function*() {
        const pool = yield* MicroVmPool.make({
          acquire: Effect.suspend(() => WarmMachine.launch({ id: `pooled-${++made}` })),
          ended: ({ machine }: WarmMachine.WarmMachine) => machine.ended,
          min: 2,
          max: 3
        })
        for (let round = 0; round < 5; round++) {
          yield* Effect.scoped(Effect.gen(function*() {
            const taken = yield* pool.take
            ids.add(yield* sh(taken, "hostname; touch /run/used; ls /run/used-before 2>/dev/null"))
            yield* kill(taken.machine)
          }))
        }
      }))
      assert.strictEqual(ids.size, 5)
      const children = readFileSync(`/proc/self/task/${process.pid}/children`, "utf8").split(" ").filter((pid) =>
        pid !== ""
      )
      const monitors = children.filter((pid) => readFileSync(`/proc/${pid}/comm`, "utf8").startsWith("qemu"))
      assert.deepStrictEqual(monitors, [])
      assert.deepStrictEqual(readdirSync(join(store, "tmp")), [])
    }), 180_000)

  it.effect(
    "with as many slots as there can be is restored, saved and restored again, and each slot is one",
    () =>
      Effect.gen(function*() {
        const useAll = Effect.fnUntraced(function*({ agent, slots }: WarmMachine.WarmMachine) {
          const told = yield* Effect.forEach(
            Array.from({ length: 9 }, (_, nth) => `${nth}`),
            (nth) =>
              Effect.scoped(Effect.gen(function*() {
                const cat = yield* GuestCommand.run(agent, slots, { command: "cat" })
                yield* Stream.run(Stream.encodeText(Stream.make(nth)), cat.stdin)
                return yield* Stream.mkString(Stream.decodeText(cat.stdout))
              })),
            { concurrency: "unbounded" }
          )
          assert.strictEqual(told.join(""), "012345678")
          assert.deepStrictEqual(yield* slots.usage, { free: 9, inUse: 0, retired: 0 })
        })
        const one = yield* WarmMachine.launch({ id: "one", slots: 9 })
        assert.strictEqual(one.start._tag, "Restored")
        yield* useAll(one)
        yield* WarmMachine.save(one, "nine")
        yield* kill(one.machine)
        yield* useAll(yield* WarmMachine.launch({ id: "two", start: { from: "nine" } }))
      }),
    180_000
  )
})
