/**
 * Wires everything to this host.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as ConfigProvider from "effect/ConfigProvider"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Ref from "effect/Ref"
import * as NodeBuffer from "node:buffer"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import packageJson from "../../../package.json" with { type: "json" }
import * as NodeHostCommands from "../../host/NodeHostCommands.ts"
import * as NodeHostFacts from "../../host/NodeHostFacts.ts"
import * as ImageStore from "../../image/ImageStore.ts"
import * as NodeHasher from "../../image/NodeHasher.ts"
import * as NodeImageStore from "../../image/NodeImageStore.ts"
import * as ExitCode from "../../lifecycle/ExitCode.ts"
import * as Printable from "../../lifecycle/Printable.ts"
import * as NodeProcessHolder from "../../process/NodeProcessHolder.ts"
import * as NodeProcessHost from "../../process/NodeProcessHost.ts"
import * as NodeSupervisorGuard from "../../process/NodeSupervisorGuard.ts"
import * as ProcessSpawner from "../../process/ProcessSpawner.ts"
import * as NodeQemuHost from "../../qemu/NodeQemuHost.ts"
import * as NodeDiskSnapshotStore from "../../warm/NodeDiskSnapshotStore.ts"
import * as NodeFileSeals from "../../warm/NodeFileSeals.ts"
import * as Backend from "../Backend.ts"
import * as Commands from "../Commands.ts"
import { HostSignals } from "../HostSignals.ts"
import * as NodeControl from "../NodeControl.ts"
import * as NodeDetach from "../NodeDetach.ts"
import * as NodeFirecrackerHere from "../NodeFirecrackerHere.ts"
import * as NodeRunHost from "../NodeRunHost.ts"
import { Reporter } from "../Reporter.ts"
import * as NodeTerminalInput from "./NodeTerminalInput.ts"

/** Services and cron jobs often have no HOME; where it is, the user database says too. */
const home = Layer.unwrap(
  Effect.map(
    Effect.orElseSucceed(Effect.try(() => NodeOs.homedir()), () => "/nonexistent"),
    (HOME) => ConfigProvider.layerAdd(ConfigProvider.fromEnv({ env: { HOME } }))
  )
)

/** Where is kept what programs of this host have said, or done. */
const versions = Effect.map(ImageStore.cacheDirectory, (directory) => NodePath.join(directory, "versions"))

const qemuHost = Layer.unwrap(Effect.map(versions, (directory) => NodeQemuHost.layerWith({ versions: directory })))

const processHost = Layer.unwrap(Effect.map(versions, (directory) => NodeProcessHost.layerWith({ tried: directory })))

const processes = ProcessSpawner.layer.pipe(
  Layer.provideMerge([Layer.provideMerge(NodeProcessHolder.layer, processHost), NodeSupervisorGuard.layer])
)

/** Web Crypto takes 2 ms to load, and this is all that would be used of it. */
const random = Layer.succeed(SecureRandom.SecureRandom, SecureRandom.make((size) => NodeCrypto.randomBytes(size)))

const services = Layer.mergeAll(
  NodeImageStore.layer,
  NodeDiskSnapshotStore.layer,
  NodeFileSeals.layer,
  qemuHost,
  NodeFirecrackerHere.layer,
  NodeControl.layer,
  NodeDetach.layer,
  NodeRunHost.layer,
  NodeHasher.layer,
  NodeHostFacts.layer.pipe(Layer.provide(NodeHostCommands.layer)),
  random,
  Reporter.layer,
  HostSignals.layer,
  Commands.ExitWith.layer
).pipe(
  Layer.provideMerge(processes),
  Layer.provideMerge(NodeTerminalInput.layer),
  Layer.provideMerge(NodeServices.layer)
)

/** What was written but not yet taken by the reader. A reader that has gone away takes nothing more. */
const flushed = (stream: NodeJS.WriteStream): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    // That an earlier write has failed is told after this one is done.
    stream.write("", () => setImmediate(() => resume(Effect.void)))
  })

/** The first argument that Node has put U+FFFD into, in the place of what is not UTF-8: it is not what was meant. */
const mangled = (): string | undefined => {
  const at = process.argv.slice(2).findIndex((word) => word.includes("\uFFFD"))
  try {
    if (at === -1 || NodeBuffer.isUtf8(NodeFs.readFileSync("/proc/self/cmdline"))) return undefined
  } catch {
    return undefined
  }
  return `argument ${at + 1} is not UTF-8: write it in UTF-8, or pass it on stdin`
}

const program = Effect.gen(function*() {
  const fault = mangled()
  if (fault !== undefined) {
    yield* Reporter.use(({ line }) => line(fault))
    return { exitCode: ExitCode.run.usage, isWhole: false }
  }
  yield* Commands.main(packageJson.version)(process.argv.slice(2))
  const { code, isWhole, patient } = yield* Ref.get(yield* Commands.ExitWith)
  const { next } = yield* HostSignals
  const exitCode = yield* Effect.andThen(flushed(process.stdout), flushed(process.stderr)).pipe(
    Effect.as(code),
    // Output that nobody has read by then is lost, and the code is not to hide that.
    Effect.raceFirst(patient ? Effect.map(next, ExitCode.fromSignal) : Effect.as(Effect.sleep("1 second"), code))
  )
  return { exitCode, isWhole }
}).pipe(
  Effect.provide(services),
  // A variable that is not valid, told before anything was done.
  Effect.catch((error) =>
    Effect.sync(() => {
      process.stderr.write(`microvm: ${Printable.lines(Backend.explain(error))}\n`)
      return { exitCode: ExitCode.run.usage, isWhole: false }
    })
  ),
  Effect.provideService(Logger.LogToStderr, true),
  // Around all of it: the commands themselves ask for directories, too.
  Effect.provide(home)
)

/**
 * Runs the command line of this process, and tells what to exit with, and whether a whole run went before.
 *
 * @internal
 */
export const main = (exit: (code: number, isWhole: boolean) => void): void => {
  let lost: string | undefined
  // Without a listener, a write to a pipe whose reader has gone away ends the process with a stack trace.
  process.stderr.on("error", () => undefined)
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // Whoever has closed the pipe wants no more.
    if (error.code !== "EPIPE") lost ??= error.code ?? error.message
  })

  Effect.runCallback(program, {
    onExit: (end) => {
      if (Exit.isFailure(end)) process.stderr.write(`microvm: ${Printable.lines(Cause.pretty(end.cause))}\n`)
      const { exitCode, isWhole } = Exit.getSuccess(end).pipe(
        Option.getOrElse(() => ({ exitCode: ExitCode.run.runtimeFailed, isWhole: false }))
      )
      // What was asked for is not there, and no other code says so.
      if (lost === undefined || exitCode !== 0) return exit(exitCode, isWhole)
      process.stderr.write(`microvm: stdout could not be written: ${lost}\n`)
      exit(ExitCode.run.runtimeFailed, isWhole)
    }
  })
}
