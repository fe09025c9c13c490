/** Page faults of a restored machine: how many are served in a second, beside the smallest handler in C. */
import * as Effect from "effect/Effect"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { NodePageServer, PageServer } from "../src/firecracker/index.ts"
import * as UffdClient from "../test/firecracker/uffdClient.ts"
import { interleaved, median, type Section, table, times, verdict } from "./measure.ts"

const size = 128 * 2 ** 20
const pages = size / 4096
const title = "Page faults of a restored machine"

const saying = async (running: UffdClient.Running, text: string): Promise<void> => {
  while (!running.output().includes(text)) {
    if (running.child.exitCode !== null) throw new Error(running.output())
    await sleep(2)
  }
}

export const pageFaults = async (rounds: number): Promise<Section> => {
  const client = UffdClient.make()
  if (typeof client === "string") return { title, text: `Not measured: ${client}.`, tables: [], verdicts: [] }
  const { directory, program } = client
  const [socket, memory] = [join(directory, "pages.sock"), join(directory, "memory")]
  writeFileSync(memory, Buffer.alloc(size, "memory"))

  /** The milliseconds that it takes to touch all of the memory, when all have been started. */
  const touch = async (whileTouching: () => void = () => {}): Promise<number> => {
    const running = UffdClient.start(program, ["client", socket, memory, "hold", "touch=random"])
    await saying(running, "holds")
    await sleep(100)
    await Effect.runPromise(running.release)
    whileTouching()
    await running.exit
    const [, micros = "nothing"] = /bad 0 micros (\d+)/.exec(running.output()) ?? []
    return Number(micros) / 1000
  }
  const byC = async () => {
    const handler = UffdClient.start(program, ["handler", socket, memory])
    await saying(handler, "listens")
    const took = await touch()
    await handler.exit
    return took
  }
  const byThis = (whileTouching?: () => void) => () =>
    PageServer.PageServer.use((server) => server.start({ socket, memory })).pipe(
      Effect.andThen(Effect.promise(() => touch(whileTouching))),
      Effect.scoped,
      Effect.provide(NodePageServer.layer),
      Effect.runPromise
    )
  const block = () => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)

  try {
    const samples = await interleaved(rounds, [
      { name: "C", run: byC },
      { name: "this library", run: byThis() },
      { name: "this library, event loop blocked", run: byThis(block) }
    ])
    const goal = (name: string) => {
      const ratio = median(samples, "C") / median(samples, name)
      const rate = `${(pages / median(samples, name)).toFixed(0)}k pages a second`
      return verdict(`${name}: ≥ 0.8 × the pages of C`, `${times(ratio)}, ${rate}`, ratio >= 0.8)
    }
    return {
      title,
      text: `${pages} pages of 4 KiB that one thread touches in random order, from a file in the page cache.`,
      tables: [table(samples)],
      verdicts: [goal("this library"), goal("this library, event loop blocked")]
    }
  } finally {
    client.remove()
  }
}
