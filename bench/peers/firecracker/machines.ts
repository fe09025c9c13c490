/**
 * `node --expose-gc machines.ts ours|byHand BINARY COUNT DIRECTORY`: says how many KiB this process has grown by for each machine
 * that it has started and looks after.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type ChildProcess, spawn } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import { Agent } from "node:http"
import type { Readable } from "node:stream"
import { setTimeout as sleep } from "node:timers/promises"
import * as FirecrackerProvider from "../../../src/firecracker/FirecrackerProvider.ts"
import * as NodeFirecracker from "../../../src/firecracker/NodeFirecracker.ts"
import * as Machine from "../../../src/microvm/Machine.ts"
import * as MachineSpec from "../../../src/microvm/MachineSpec.ts"
import * as NodeProcessSpawner from "../../../src/process/NodeProcessSpawner.ts"
import { bringUp } from "./http.ts"
import { listens } from "./listens.ts"

const [who, binary = "", count = "", directory = ""] = process.argv.slice(2)

/** Once the collector finds nothing more. */
const used = async (): Promise<number> => {
  for (let again = 0; again < 5; again++) {
    globalThis.gc?.()
    await sleep(100)
  }
  return process.memoryUsage.rss() / 1024
}

const growth = async (start: (id: string) => Promise<void>): Promise<void> => {
  const startAll = async (name: string, total: number) => {
    for (let begun = 0; begun < total; begun += 10) {
      await Promise.all(Array.from({ length: 10 }, (_, index) => start(`${name}-${begun + index}`)))
    }
  }
  // For what is loaded and compiled once.
  await startAll("first", 20)
  const before = await used()
  await startAll("next", Number(count))
  console.log((await used() - before) / Number(count))
}

const ours = async (): Promise<void> => {
  const kernel = `${directory}/kernel`
  writeFileSync(kernel, "")
  const provider = FirecrackerProvider.layerWith({ binary, kvm: "assume", stateDirectory: directory }).pipe(
    Layer.provide(NodeFirecracker.layer),
    Layer.provide(NodeProcessSpawner.layer),
    Layer.provide(NodeServices.layer)
  )
  const start = Effect.fnUntraced(function*(id: string) {
    const machine = yield* Machine.launch(yield* MachineSpec.decode({ id, kernel, channels: ["agent"] }))
    yield* machine.start
  })
  const all = Effect.flatMap(
    Effect.context<Effect.Services<ReturnType<typeof start>>>(),
    (context) => Effect.promise(() => growth((id) => Effect.runPromiseWith(context)(start(id))))
  )
  await Effect.runPromise(Effect.scoped(Effect.provide(all, provider)))
}

/** The least that one has to have: the ends of both streams, which are as long as those of this library, and a connection. */
const byHand = async (): Promise<void> => {
  const children: Array<ChildProcess> = []
  const keep = (stream: Readable) => {
    let tail = Buffer.alloc(0)
    stream.on("data", (chunk: Buffer) => {
      tail = Buffer.concat([tail, chunk]).subarray(-65_536)
    })
  }
  await growth(async (id) => {
    const own = `${directory}/${id}`
    mkdirSync(own)
    const child = spawn(binary, ["--api-sock", `${own}/api.sock`], { stdio: ["ignore", "pipe", "pipe"] })
    keep(child.stdout)
    keep(child.stderr)
    children.push(child)
    await listens(`${own}/api.sock`)
    await bringUp(new Agent({ keepAlive: true, maxSockets: 1 }), own, "start")
  })
  for (const child of children) child.kill("SIGKILL")
}

await (who === "ours" ? ours() : byHand())
