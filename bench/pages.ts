/** Page faults of a restored machine: how many are served in a second, beside the smallest handler in C. */
import * as Effect from "effect/Effect"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { NodePageServer, PageServer } from "../src/firecracker/index.ts"
import * as UffdClient from "../test/firecracker/uffdClient.ts"
import { interleaved, median, type Section, table, times, verdict } from "./measure.ts"

const size = 128 * 2 ** 20
const pages = size / 4096
const title = "Page faults of a restored machine"

const failed = (why: string, { output }: UffdClient.Running) => Effect.die(new Error(`${why}: ${output()}`))

const saying = Effect.fnUntraced(function*(running: UffdClient.Running, text: string) {
  while (!running.output().includes(text)) {
    const end = running.child.exitCode ?? running.child.signalCode
    if (end !== null) return yield* failed(`ended with ${end}, not saying "${text}"`, running)
    yield* Effect.sleep("2 millis")
  }
})

export const pageFaults = async (rounds: number): Promise<Section> => {
  const client = UffdClient.make()
  if (typeof client === "string") return { title, text: `Not measured: ${client}.`, tables: [], verdicts: [] }
  const { directory } = client
  const [socket, memory] = [join(directory, "pages.sock"), join(directory, "memory")]

  /** The milliseconds that it takes to touch all of the memory, when all have been started. */
  const touch = (whileTouching?: () => void) =>
    Effect.gen(function*() {
      const running = yield* UffdClient.run(client, socket, memory, ["hold", "touch=random"])
      yield* saying(running, "holds")
      yield* Effect.sleep("100 millis")
      yield* running.release
      whileTouching?.()
      const exit = yield* Effect.promise(() => running.exit)
      const micros = /bad 0 micros (\d+)/.exec(running.output())?.[1]
      if (micros === undefined) return yield* failed(`ended with ${exit}, its memory not as it should be`, running)
      return Number(micros) / 1000
    }).pipe(Effect.scoped)
  const byC = Effect.gen(function*() {
    const handler = yield* UffdClient.scoped(client.program, ["handler", socket, memory])
    yield* saying(handler, "listens")
    const took = yield* touch()
    yield* Effect.promise(() => handler.exit)
    return took
  }).pipe(Effect.scoped)
  const byThis = (whileTouching?: () => void) =>
    PageServer.PageServer.use((server) => server.start({ socket, memory })).pipe(
      Effect.andThen(touch(whileTouching)),
      Effect.scoped,
      Effect.provide(NodePageServer.layer)
    )
  const block = () => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)

  try {
    writeFileSync(memory, Buffer.alloc(size, "memory"))
    const samples = await interleaved(rounds, [
      { name: "C", run: () => Effect.runPromise(byC) },
      { name: "this library", run: () => Effect.runPromise(byThis()) },
      { name: "this library, event loop blocked", run: () => Effect.runPromise(byThis(block)) }
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
