/** Takes places of a pool, one after the other, and tells each: `DIRECTORY COUNT TOKEN-PREFIX`. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import { Addresses, HostCommands } from "../../src/host/index.ts"

const [, , directory = "", count = "0", prefix = ""] = process.argv

const program = Effect.gen(function*() {
  const { allocate } = yield* Addresses.Addresses
  for (let index = 0; index < Number(count); index++) {
    const token = `${prefix}${index.toString(16).padStart(16 - prefix.length, "0")}`
    const { index: place } = yield* allocate({ id: `m-${prefix}-${index}`, token })
    process.stdout.write(`${token} ${place}\n`)
  }
})

await Effect.runPromise(
  program.pipe(
    Effect.provide(Addresses.layer({ directory })),
    Effect.provide([HostCommands.layerScripted(() => Effect.succeed("[]")), NodeServices.layer])
  )
)
