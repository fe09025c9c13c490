/**
 * A real guest whose channels are ports of vsock, as they are on a Firecracker. What stands in for that is QEMU with
 * vhost-device-vsock, another program that offers the host's end of a vsock as Firecracker does.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import * as NodeVsock from "../../src/firecracker/NodeVsock.ts"
import * as Vsock from "../../src/firecracker/Vsock.ts"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as GuestCommand from "../../src/guest/GuestCommand.ts"
import * as GuestSlots from "../../src/guest/GuestSlots.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as MachineEnd from "../../src/microvm/MachineEnd.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeReadiness from "../../src/process/NodeReadiness.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as Readiness from "../../src/process/Readiness.ts"

const device = process.env["VHOST_DEVICE_VSOCK"]
const reason = "VHOST_DEVICE_VSOCK names no vhost-device-vsock (cargo install vhost-device-vsock)"
if (device === undefined) console.warn(`SKIPPED a real guest over vsock: ${reason}`)

const channels = [GuestAgent.channelName, ...GuestSlots.channelNames(2)]
const firstPort = 1024

const services = NodeImageStore.layer.pipe(
  Layer.provideMerge(NodeProcessSpawner.layer),
  Layer.provideMerge(NodeServices.layer),
  Layer.merge(NodeVsock.layer)
)

/** Up to its agent. */
const boot = Effect.fnUntraced(function*(vhost: string) {
  const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
  const image = yield* ImageStore.use((images) => images.ensure())
  const spawner = yield* ProcessSpawner
  const uds = `${directory}/vsock.sock`
  const host = yield* spawner.spawn(
    ChildProcess.make(vhost, ["--vm", `guest-cid=3,uds-path=${uds},socket=${directory}/vhost.sock`], {
      stdin: "ignore"
    })
  )
  yield* Readiness.awaitReady(host, NodeReadiness.pathExists(`${directory}/vhost.sock`), { within: "10 seconds" })
  const names = channels.join(",")
  const machine = yield* spawner.spawn(ChildProcess.make("qemu-system-x86_64", [
    "-M",
    "q35,memory-backend=ram,hpet=off,usb=off",
    "-accel",
    "tcg",
    "-cpu",
    "max",
    "-m",
    "256",
    "-no-reboot",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-serial",
    "stdio",
    "-object",
    "memory-backend-memfd,id=ram,size=256M,share=on",
    "-chardev",
    `socket,id=vsock,path=${directory}/vhost.sock`,
    "-device",
    "vhost-user-vsock-pci,chardev=vsock",
    "-kernel",
    image.kernel,
    "-initrd",
    image.initramfs,
    "-append",
    `console=ttyS0 reboot=k panic=1 quiet cryptomgr.notests microvm.vsock=${firstPort},${names} microvm.off=reboot`
  ], { stdin: "ignore" }))
  const channel = (name: string) => Vsock.connect(uds, firstPort + channels.indexOf(name), { within: "2 minutes" })
  const agent = yield* GuestAgent.make(yield* channel(GuestAgent.channelName), { within: "2 minutes" })
  return { agent, channel, machine }
})

describe.skipIf(device === undefined)(
  `a real guest over vsock${device === undefined ? ` (skipped: ${reason})` : ""}`,
  () => {
    it.live(
      "runs commands one after the other, carries megabytes, and says that all is written when it goes",
      () =>
        Effect.gen(function*() {
          const { agent, channel, machine } = yield* boot(device ?? "")
          const slots = yield* GuestSlots.fromChannels(2, channel)
          const run = Effect.fnUntraced(function*(command: string, args: ReadonlyArray<string>, stdin: Uint8Array) {
            const started = yield* GuestCommand.run(agent, slots, { command, args })
            const out: Array<Uint8Array> = []
            const err: Array<Uint8Array> = []
            const status = yield* GuestCommand.connect(started, {
              stdin: Stream.make(stdin),
              stdout: Sink.forEach((bytes: Uint8Array) => Effect.sync(() => out.push(bytes))),
              stderr: Sink.forEach((bytes: Uint8Array) => Effect.sync(() => err.push(bytes)))
            })
            return { status, stdout: Buffer.concat(out), stderr: Buffer.concat(err).toString() }
          }, Effect.scoped)
          const bytes = Buffer.alloc(3_000_000, "0123456789abcdef\n")

          const first = yield* run("sh", ["-c", "cat >/dev/null; hostname; echo words >&2; exit 7"], bytes)
          assert.strictEqual(ExitStatus.format(first.status), "exited with code 7")
          assert.deepStrictEqual([first.stdout.toString(), first.stderr], ["microvm\n", "words\n"])
          const unread = yield* run("true", [], bytes)
          assert.deepStrictEqual([ExitStatus.format(unread.status), unread.stdout.length], ["exited with code 0", 0])
          const copied = yield* run("cat", [], bytes)
          assert.isTrue(copied.stdout.equals(bytes))

          yield* agent.powerOff
          assert.strictEqual(ExitStatus.format(yield* Effect.timeout(machine.exit, "1 minute")), "exited with code 0")
          assert.isTrue(MachineEnd.saysAllIsWritten((yield* machine.tail).stdout.text))
        }).pipe(Effect.scoped, Effect.provide(services)),
      300_000
    )
  }
)
