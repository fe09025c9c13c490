/** Machines of QEMU that a user launches: without any rights on a TAP that root has made once, and with some of root's on one that is his. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execFile, spawnSync } from "node:child_process"
import { chmodSync, chownSync, copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import * as Links from "../../src/host/Links.ts"
import * as NodeHostCommands from "../../src/host/NodeHostCommands.ts"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import * as NodeSupervisor from "../../src/supervisor/NodeSupervisor.ts"
import * as Resources from "../../src/supervisor/Resources.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"
import { makeNetns, noNetns } from "../integration/network.ts"

if (noNetns !== undefined) console.warn(`skipped: machines on a caller's TAP: ${noNetns}`)

/** Who has no name. */
const uid = 54_321

const program = fileURLToPath(new URL("fixtures/tapProgram.ts", import.meta.url))
const user = ["setpriv", `--reuid=${uid}`, `--regid=${uid}`, "--clear-groups"] as const
/** A clone may lie where nobody else can go. */
const unreadable = spawnSync(user[0], [...user.slice(1), "test", "-r", program]).status !== 0
if (unreadable) {
  console.warn("skipped: a machine on a caller's TAP, of a user without rights: he cannot read this clone")
}

const directory = mkdtempSync(join(tmpdir(), "callers-tap-"))
chmodSync(directory, 0o711)
afterAll(() => rmSync(directory, { recursive: true }))

const own = (name: string): string => {
  const path = join(directory, name)
  mkdirSync(path, { mode: 0o700 })
  chownSync(path, uid, uid)
  return path
}

/** A copy that everybody may read. */
const open = (from: string, name: string): string => {
  const path = join(directory, name)
  copyFileSync(from, path)
  chmodSync(path, 0o644)
  return path
}

/** Some hosts let nobody else open the device: then it is another one, seen by the program alone. */
const asUser = (rights: string) =>
  `mknod "$1" c 10 200 && chmod 666 "$1" && mount --bind "$1" /dev/net/tun && shift && ` +
  `exec setpriv --reuid=${uid} --regid=${uid} --clear-groups ${rights} "$@"`

/** What the program says, run with such rights in that network namespace. */
const runAs = Effect.fnUntraced(function*(name: string, rights: string, path: string, tap: ReadonlyArray<string>) {
  const { initramfs, kernel } = yield* ImageStore.use((images) => images.ensure()).pipe(
    Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
  )
  const args = [own(`${name}-state`), open(kernel, "kernel"), open(initramfs ?? "", "initramfs"), ...tap]
  const tun = join(directory, `${name}-tun`)
  const enter = ["unshare", "--mount", "sh", "-c", asUser(rights), "sh", tun, process.execPath, program, ...args]
  const { stdout } = yield* Effect.promise(() =>
    promisify(execFile)("nsenter", [`--net=${path}`, ...enter], {
      env: { PATH: process.env["PATH"], HOME: own(`${name}-home`), TMPDIR: own(`${name}-tmp`) },
      timeout: 90_000,
      cwd: "/"
    })
  )
  const answer: unknown = JSON.parse(stdout)
  return answer
})

const none = "0000000000000000"
const powerless = { CapInh: none, CapPrm: none, CapEff: none, CapAmb: none, NoNewPrivs: "1" }

/** What does not change by being used. */
const settings = (text: string): string => text.replace(/<[^>]*>|state \w+|vnet_hdr \w+/g, "")

describe.skipIf(noNetns !== undefined)("a TAP of the caller", () => {
  it.live.skipIf(unreadable)("takes no rights to run a machine on", () =>
    Effect.gen(function*() {
      const netns = yield* makeNetns
      yield* netns.ip(
        `tuntap add dev mine mode tap user ${uid}`,
        "addr add 10.77.0.2/31 dev mine",
        "link set dev mine mtu 1400 up"
      )
      const look = netns.ip("-d link show dev mine", "addr show dev mine scope global")
      const before = yield* look
      const answer = yield* runAs("none", "--no-new-privs --bounding-set=-all", netns.path, ["mine"])
      assert.deepStrictEqual(answer, { uid, kinds: [], seen: "1400", monitor: powerless })
      // It is there still, with all that its maker gave it. QEMU has turned `vnet_hdr` on.
      assert.strictEqual(settings(yield* look), settings(before))
    }).pipe(Effect.scoped), 120_000)

  it.live.skipIf(unreadable)(
    "is made by a user who may set up networks, and whose monitor may not",
    () =>
      Effect.gen(function*() {
        const netns = yield* makeNetns
        yield* netns.ip(
          "link add up0 mtu 1400 type veth peer name far0",
          "addr add 192.168.77.1/24 dev up0",
          "link set dev up0 up",
          "route add default via 192.168.77.2"
        )
        yield* netns.forward
        const rights = "--inh-caps=+net_admin,+net_bind_service --ambient-caps=+net_admin,+net_bind_service"
        const answer = yield* runAs("some", rights, netns.path, [])
        assert.deepStrictEqual(answer, {
          uid,
          kinds: ["addresses", "rules", "link"],
          seen: "1400",
          monitor: powerless
        })
        assert.notInclude(yield* netns.ip("-oneline link show"), " mv")
      }).pipe(Effect.scoped),
    120_000
  )

  it.live("is refused when nothing could come by it", () =>
    Effect.gen(function*() {
      const netns = yield* makeNetns
      yield* netns.ip("tuntap add dev down mode tap multi_queue")
      const { message } = yield* Supervisor.Supervisor.use(({ launch }) =>
        launch({
          id: "web-1",
          resources: [Resources.tap({ tap: "down", mac: "02:77:00:00:00:01", netns: netns.path })],
          bring: () => Effect.die("launched")
        })
      ).pipe(
        Effect.flip,
        Effect.provide(NodeSupervisor.layer({ directory: join(directory, "refused") })),
        Effect.provide(Layer.fresh(Links.layer).pipe(Layer.provide(NodeHostCommands.layerIn(netns.path)))),
        Effect.provide(MemoryProvider.layer),
        Effect.provide(NodeServices.layer)
      )
      assert.include(message, "bring it up: ip link set dev down up")
      assert.include(message, "without multi_queue")
    }).pipe(Effect.scoped))
})
