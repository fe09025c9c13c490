/** This library's client. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as FirecrackerApi from "../../../src/firecracker/FirecrackerApi.ts"
import * as MachineConfig from "../../../src/firecracker/MachineConfig.ts"
import * as NodeApiTransport from "../../../src/firecracker/NodeApiTransport.ts"
import { answerRounds, bodies, type Goal } from "./rounds.ts"

const target = { version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64" } as const

const run = Effect.fnUntraced(function*(directory: string, goal: Goal) {
  const scope = yield* Scope.make()
  const transport = yield* NodeApiTransport.make({ socketPath: `${directory}/api.sock` }).pipe(Scope.provide(scope))
  const api = FirecrackerApi.make(transport, target)
  const { bootSource, drive, machine, start, vsock } = bodies(directory)
  yield* MachineConfig.apply(api, { machine, bootSource, drives: [drive], vsock })
  if (goal === "start") yield* api.putAction(start)
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
})

await answerRounds((directory, goal) => Effect.runPromise(run(directory, goal)))
