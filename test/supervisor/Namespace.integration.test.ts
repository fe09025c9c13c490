/** A machine of QEMU with a network namespace of its own, from its launch over the death of its supervisor to its end. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"
import { ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeImageStore from "../../src/image/NodeImageStore.ts"
import { makeNetns, type Netns, noNetns } from "../integration/network.ts"

if (noNetns !== undefined) console.warn(`skipped: a machine in a network namespace: ${noNetns}`)

const program = fileURLToPath(new URL("fixtures/namespaceProgram.ts", import.meta.url))

/** The lines that it says, each a value, and how it ended. */
const run = (host: Netns, directory: string, role: "first" | "second") =>
  Effect.promise(async () => {
    const child = spawn("nsenter", [`--net=${host.path}`, process.execPath, program, directory, role], {
      stdio: ["ignore", "pipe", "pipe"],
      timeout: 90_000
    })
    let [stdout, stderr] = ["", ""]
    child.stdout.on("data", (bytes: Buffer) => void (stdout += bytes.toString()))
    child.stderr.on("data", (bytes: Buffer) => void (stderr += bytes.toString()))
    await once(child, "close")
    const said = stdout.trim().split("\n").filter((line) => line !== "").map((line): unknown => JSON.parse(line))
    return { said, stderr, code: child.exitCode, signal: child.signalCode }
  })

describe.skipIf(noNetns !== undefined)("a network namespace for each machine", () => {
  it.live("has its TAP, its monitor is in it, and it is found again and removed", () =>
    Effect.gen(function*() {
      const directory = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "namespace-"))),
        (made) => Effect.sync(() => rmSync(made, { recursive: true }))
      )
      // There is nowhere to get it from inside.
      yield* ImageStore.use((images) => images.ensure()).pipe(
        Effect.provide(NodeImageStore.layer.pipe(Layer.provide(NodeServices.layer)))
      )
      const internet = yield* makeNetns
      const host = yield* makeNetns
      yield* host.ip(
        `link add up0 type veth peer name far0 netns ${basename(internet.path)}`,
        "addr add 192.168.77.1/24 dev up0",
        "link set dev up0 up"
      )
      yield* internet.ip(
        "addr add 192.168.77.2/24 dev far0",
        "link set dev far0 up",
        "addr add 10.9.9.9/32 dev lo",
        "addr add 10.9.9.10/32 dev lo"
      )
      yield* host.ip("route add default via 192.168.77.2")
      yield* host.forward
      yield* internet.serve
      yield* host.serve
      // Others have namespaces of theirs at the same time.
      const namespace = () => {
        const state = join(directory, "state")
        const record = readdirSync(state, { recursive: true, encoding: "utf8" }).find((one) =>
          one.endsWith("web-1.json")
        )
        const [, token] = /"token": ?"([0-9a-f]{16})"/.exec(readFileSync(join(state, record ?? ""), "utf8")) ?? []
        return `/run/netns/effect-microvm-${token}`
      }
      const before = yield* host.ip("-oneline link show")
      const seen = {
        reached: { "10.9.9.9 7": "::ffff:192.168.77.1", "10.9.9.10 7": "", "192.168.77.1 7": "" },
        elsewhere: true
      }

      const first = yield* run(host, directory, "first")
      assert.deepStrictEqual(first.said, [seen], first.stderr)
      const own = namespace()
      assert.isTrue(existsSync(own), own)
      const second = yield* run(host, directory, "second")
      assert.deepStrictEqual(second.said, [["Adopted"], seen, { left: 0 }], second.stderr)
      // The kernel takes a namespace apart, and its links with it, when `ip` has long gone.
      assert.isFalse(existsSync(own), own)
      yield* host.ip("-oneline link show").pipe(
        Effect.filterOrFail((after) => after === before, (after) => `${after} is not ${before}`),
        Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 200 })
      )
    }).pipe(Effect.scoped), 180_000)
})
