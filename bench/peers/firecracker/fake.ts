/**
 * The Firecrackers of a round, all in this process: for a line `DIRECTORY…` on its stdin, those of the line before are ended and
 * one listens on `api.sock` in each directory.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { createInterface } from "node:readline"
import * as FakeFirecracker from "../../../src/testing/FakeFirecracker.ts"

let scope = Scope.makeUnsafe()
for await (const line of createInterface({ input: process.stdin })) {
  await Effect.runPromise(Scope.close(scope, Exit.void))
  scope = Scope.makeUnsafe()
  const serve = (directory: string) => FakeFirecracker.serve({ socketPath: `${directory}/api.sock`, guest: "none" })
  await Effect.runPromise(Scope.provide(Effect.forEach(line.split(" "), serve, { discard: true }), scope))
  console.log("ready")
}
await Effect.runPromise(Scope.close(scope, Exit.void))
