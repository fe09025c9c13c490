/** The clone contract in a real guest; there it does not matter whether it was restored. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestRenewal from "../../src/guest/GuestRenewal.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../../src/qemu/NodeQemuHost.ts"
import * as QemuProvider from "../../src/qemu/QemuProvider.ts"

const qemu = QemuProvider.layerConfig.pipe(
  Layer.provideMerge(NodeQemuHost.layer),
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer),
  Layer.merge(SecureRandom.layerWebCrypto)
)

const image = await Effect.runPromise(
  ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
)

const boot = Effect.fnUntraced(function*(id: string) {
  const machine = yield* Machine.launch(
    yield* MachineSpec.decode({
      id,
      hostname: id,
      kernel: image.kernel,
      initramfs: image.initramfs,
      channels: [GuestAgent.channelName]
    })
  )
  yield* machine.start
  return yield* GuestAgent.make(yield* machine.channel(GuestAgent.channelName), { within: "2 minutes" })
})

const sh = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent, script: string) {
  const { status, stderr, stdout } = yield* agent.exec({ path: "/bin/sh", args: ["-c", script] })
  assert.deepStrictEqual([status._tag === "Exited" && status.code, new TextDecoder().decode(stderr)], [0, ""])
  return new TextDecoder().decode(stdout).trim()
})

const own = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent) {
  const script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; sysctl -n kernel.random.boot_id; " +
    "head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'"
  const [hostname = "", machineId = "", bootId = "", again = "", random = ""] = (yield* sh(agent, script)).split("\n")
  assert.strictEqual(again, bootId)
  return { hostname, machineId, bootId, random }
})

/** Seconds that the guest's clock is ahead of ours, as its own programs see it. */
const secondsAhead = Effect.fnUntraced(function*(agent: GuestAgent.GuestAgent) {
  const guest = Number(yield* sh(agent, "date +%s"))
  return guest - (yield* Clock.currentTimeMillis) / 1000
})

layer(qemu, { excludeTestServices: true, timeout: "1 minute" })("a guest that is renewed", (it) => {
  it.effect("has all of its own, again and again", () =>
    Effect.gen(function*() {
      const agent = yield* boot("renews")
      const seen = [yield* own(agent)]
      assert.match(seen[0]?.machineId ?? "", /^[0-9a-f]{32}$/)
      for (const name of ["first", "second"]) {
        const identity = yield* GuestRenewal.makeIdentity(name)
        const proof = yield* GuestRenewal.renew(agent, identity)
        const { bootId, hostname, machineId } = identity
        assert.deepInclude(proof, { bootId, hostname, machineId, interfaces: [], restarted: [] })
        const now = yield* own(agent)
        assert.deepInclude(now, { bootId, hostname, machineId })
        seen.push(now)
      }
      for (const part of ["hostname", "machineId", "bootId", "random"] as const) {
        assert.strictEqual(new Set(seen.map((one) => one[part])).size, 3, part)
      }
      // One mount over the boot id, however often.
      assert.strictEqual(yield* sh(agent, "grep -c boot_id /proc/mounts"), "1")
    }))

  it.effect("has the time of the host, from whichever side it comes", () =>
    Effect.gen(function*() {
      const agent = yield* boot("clock")
      for (const off of [3600, -3600]) {
        yield* sh(agent, `date -s @$(($(date +%s) + ${off}))`)
        assert.approximately(yield* secondsAhead(agent), off, 60)
        const proof = yield* GuestRenewal.renew(agent, yield* GuestRenewal.makeIdentity("clock"))
        assert.isBelow(Math.abs(proof.clockOff) + proof.uncertainty, 50)
        assert.approximately(yield* secondsAhead(agent), 0, 60)
      }
    }))

  it.effect("runs the hooks of its image, in order, and what they leave behind goes on", () =>
    Effect.gen(function*() {
      const agent = yield* boot("hooks")
      const hook = "printf '#!/bin/sh\\necho said; echo $0 >>/tmp/ran; sleep 1000 &\\n'"
      const directory = "/etc/microvm/renew.d"
      yield* sh(
        agent,
        `mkdir -p ${directory}; cd ${directory}; ${hook} >20-b; ${hook} >10-a; ${hook} >30-off; chmod +x 10-a 20-b`
      )
      const { restarted } = yield* GuestRenewal.renew(agent, yield* GuestRenewal.makeIdentity("hooks"))
      assert.deepStrictEqual(restarted, ["10-a", "20-b"])
      assert.strictEqual(yield* sh(agent, "cat /tmp/ran"), `${directory}/10-a\n${directory}/20-b`)
      assert.strictEqual((yield* sh(agent, "pidof sleep")).split(" ").length, 2)
    }))

  it.effect("and cannot be says all that is not its own", () =>
    Effect.gen(function*() {
      const agent = yield* boot("refuses")
      yield* sh(
        agent,
        "umount /proc/sys/kernel/random/boot_id; rm /etc/machine-id; mkdir -p /etc/machine-id /etc/microvm/renew.d; " +
          "printf '#!/bin/sh\\necho ran >/tmp/ran; exit 3\\n' >/etc/microvm/renew.d/bad; chmod +x /etc/microvm/renew.d/bad"
      )
      const unproven = Effect.gen(function*() {
        const { reason } = yield* Effect.flip(GuestRenewal.renew(agent, yield* GuestRenewal.makeIdentity("refuses")))
        if (reason._tag !== "NotRenewed") throw reason
        return reason.unproven
      })
      const told = yield* unproven
      assert.deepStrictEqual(told.slice(0, 2), [
        "machine-id: open /etc/machine-id failed with errno 21",
        "machine-id: read /etc/machine-id failed with errno 21"
      ])
      assert.match(told[2] ?? "", /^machine-id: "" instead of/)
      assert.match(told[3] ?? "", /^boot-id: "[0-9a-f-]{36}" instead of/)
      assert.strictEqual(told.length, 4)
      // No hook is run as somebody else.
      assert.strictEqual(yield* sh(agent, "[ -e /tmp/ran ] || echo no"), "no")

      yield* sh(agent, "rmdir /etc/machine-id; mount --bind /run/boot-id /proc/sys/kernel/random/boot_id")
      const [said = "", ...others] = yield* unproven
      assert.match(said, /^\/sbin\/microvm-renew-hooks: exited with code 1: .*bad ended with 3/)
      assert.deepStrictEqual(others, [])
    }))
})
