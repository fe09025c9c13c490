#!/usr/bin/env node
/**
 * The executable: wires everything to this host, and exits. The only place that calls `process.exit`.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Ref from "effect/Ref"
import packageJson from "../../package.json" with { type: "json" }
import * as NodeImageStore from "../image/NodeImageStore.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as NodeProcessSpawner from "../process/NodeProcessSpawner.ts"
import * as NodeQemuHost from "../qemu/NodeQemuHost.ts"
import * as Commands from "./Commands.ts"
import { HostSignals } from "./HostSignals.ts"
import { Reporter } from "./Reporter.ts"

const services = Layer.mergeAll(
  NodeImageStore.layer,
  NodeQemuHost.layer,
  Reporter.layer,
  HostSignals.layer,
  Commands.ExitWith.layer
).pipe(Layer.provideMerge(NodeProcessSpawner.layer), Layer.provideMerge(NodeServices.layer))

/** What was written but not yet taken by the reader. A reader that has gone away takes nothing more. */
const flushed = (stream: NodeJS.WriteStream): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    stream.write("", () => resume(Effect.void))
  })

const program = Effect.gen(function*() {
  yield* Commands.main(packageJson.version)(process.argv.slice(2))
  const { code, patient } = yield* Ref.get(yield* Commands.ExitWith)
  const { next } = yield* HostSignals
  yield* Effect.andThen(flushed(process.stdout), flushed(process.stderr)).pipe(
    Effect.raceFirst(patient ? next : Effect.sleep("1 second"))
  )
  return code
}).pipe(Effect.provide(services), Effect.provideService(Logger.LogToStderr, true))

// Without a listener, a write to a pipe whose reader has gone away ends the process with a stack trace.
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined)

Effect.runCallback(program, {
  onExit: (exit) => {
    if (Exit.isFailure(exit)) process.stderr.write(`microvm: ${Cause.pretty(exit.cause)}\n`)
    process.exit(Exit.isSuccess(exit) ? exit.value : ExitCode.run.runtimeFailed)
  }
})
