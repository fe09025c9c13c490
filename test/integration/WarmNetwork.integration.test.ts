/** Machines with network cards that come from one golden machine, with packets between them and their host. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { chmodSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"
import * as NodeWarmMachine from "../../src/warm/NodeWarmMachine.ts"
import * as WarmMachine from "../../src/warm/WarmMachine.ts"
import { makeNetns, network, noNetns, tap } from "./network.ts"

const temporary = mkdtempSync(join(tmpdir(), "warm-network-"))
chmodSync(temporary, 0o711)
afterAll(() => rmSync(temporary, { recursive: true }))

if (noNetns !== undefined) console.log(`restored machines with cards are not tested: ${noNetns}`)

const services = NodeWarmMachine.layerAt({ directory: join(temporary, "store") }).pipe(
  Layer.provideMerge(QemuProvider.layerConfig.pipe(Layer.provide(NodeQemuHost.layer))),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer)
)

const sh = Effect.fnUntraced(function*({ agent }: WarmMachine.WarmMachine, script: string) {
  const { stderr, stdout } = yield* agent.exec({ path: "sh", args: ["-c", script] })
  assert.strictEqual(new TextDecoder().decode(stderr), "")
  return new TextDecoder().decode(stdout).trim()
})

layer(services, { excludeTestServices: true, timeout: "2 minutes" })(
  "machines with cards from one golden machine",
  (it) => {
    it.effect.skipIf(noNetns !== undefined)(
      "have addresses of their own, and are reached at them",
      () =>
        Effect.gen(function*() {
          const netns = yield* makeNetns
          const machines = Array.from({ length: 10 }, (_, index) => index)
          yield* netns.ip(...machines.flatMap((nth) => tap(`clone-${nth}`, nth, 1400)))
          yield* netns.serve
          const seen = yield* Effect.forEach(machines, (nth) =>
            Effect.gen(function*() {
              const clone = yield* WarmMachine.launch({
                id: `clone-${nth}`,
                networks: [{ ...network(`clone-${nth}`, nth, 1400), nameserver: "10.77.0.0" }],
                before: () => Effect.succeed({ netns: netns.path })
              })
              const { start } = clone
              assert.strictEqual(start._tag, "Restored", JSON.stringify(start))
              assert.deepStrictEqual(start._tag === "Restored" ? start.proof.interfaces : [], ["eth0"])
              const { address, address6, gateway, gateway6, mac } = network("", nth)
              const told = yield* sh(
                clone,
                `cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /etc/resolv.conf; ` +
                  `nc -w 5 ${gateway} 7; echo; nc -w 5 ${gateway6} 7; echo; ping -c 1 -W 5 -s 1372 ${gateway} | grep -c "1 packets received"`
              )
              assert.deepStrictEqual(told.split("\n"), [
                mac,
                "1400",
                "nameserver 10.77.0.0",
                `::ffff:${address.split("/")[0]}`,
                address6.split("/")[0] ?? "",
                "1"
              ])
              return told
            }), { concurrency: 2 })
          assert.strictEqual(new Set(seen).size, 10)
          // The host has seen each at its place, under its own MAC.
          for (const nth of machines) {
            assert.include(yield* netns.ip(`neigh show dev clone-${nth}`), network("", nth).mac)
          }
          const stored = yield* SnapshotStore.use(({ list }) => list)
          assert.deepStrictEqual(stored.map(({ manifest }) => manifest?.labels["cards"]), ["1"])
        }),
      180_000
    )

    it.effect.skipIf(noNetns !== undefined)(
      "are others with two cards, and are booted with a disk",
      () =>
        Effect.gen(function*() {
          const netns = yield* makeNetns
          yield* netns.ip(...tap("two-0", 1), ...tap("two-1", 2))
          const before = () => Effect.succeed({ netns: netns.path })
          const networks = [network("two-0", 1), network("two-1", 2)]
          const two = yield* Effect.scoped(Effect.gen(function*() {
            const machine = yield* WarmMachine.launch({ id: "two", networks, before })
            return [
              machine.start._tag,
              yield* sh(machine, "cat /sys/class/net/eth*/address; ping -c 1 -W 5 fd77::4 >/dev/null && echo yes")
            ]
          }))
          assert.deepStrictEqual(two, ["Restored", "02:77:00:00:00:01\n02:77:00:00:00:02\nyes"])
          const disk = join(temporary, "disk")
          writeFileSync(disk, "")
          truncateSync(disk, 1 << 20)
          const { start } = yield* WarmMachine.launch({
            id: "disk",
            networks,
            before,
            drives: [{ name: "data", path: disk }]
          })
          assert.deepInclude(start, { _tag: "Booted", why: "no golden machine has disks" })
        }),
      120_000
    )
  }
)
