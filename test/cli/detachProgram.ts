/** A program that starts itself in the background, which writes down what it still has of us, and stays a moment. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { Detach, layer } from "../../src/cli/NodeDetach.ts"
import { layerNone } from "../../src/process/SupervisorGuard.ts"

const file = process.env["DETACHED_FILE"] ?? ""

const program = Effect.gen(function*() {
  const detach = yield* Detach
  if (!detach.isBackground) return void process.stdout.write(JSON.stringify(yield* detach.start("dev")))
  const resolved = NodePath.resolve("here")
  yield* Effect.sleep(Number(process.env["DETACHED_SLEEP"] ?? "0"))
  process.stderr.write("before\n")
  yield* detach.tell({ _tag: "Ready" })
  // A terminal is closed in a later turn.
  yield* Effect.sleep(50)
  process.stderr.write("after\n")
  const open = NodeFs.readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [[fd, NodeFs.readlinkSync(`/proc/self/fd/${fd}`)]]
    } catch {
      return []
    }
  })
  const line = NodeFs.readFileSync("/proc/self/cmdline", "utf8").replaceAll("\0", "")
  NodeFs.writeFileSync(`${file}.new`, JSON.stringify({ resolved, cwd: process.cwd(), line, open }))
  NodeFs.renameSync(`${file}.new`, file)
})

await Effect.runPromise(Effect.provide(program, Layer.provide(layer, layerNone)))
