/** A host on which each thing that is done is a step, and may be the last. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { HostCommands } from "../../src/host/HostCommands.ts"
import * as HostError from "../../src/host/HostError.ts"
import type { KernelSettings } from "../../src/host/KernelSettings.ts"
import * as NodeHostCommands from "../../src/host/NodeHostCommands.ts"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import type { Mishap } from "./orders.ts"

/** What has been done under one order. */
export class Steps {
  readonly names: Array<string> = []
  commands = 0
  #dieAt: number | undefined
  #mishap: Mishap | undefined

  begin({ dieAt, mishap }: { readonly dieAt?: number; readonly mishap?: Mishap }): void {
    this.names.length = 0
    this.commands = 0
    this.#dieAt = dieAt
    this.#mishap = mishap
  }

  readonly step = (name: string): Effect.Effect<void> =>
    Effect.sync(() => {
      if (this.names.length === this.#dieAt) process.kill(process.pid, "SIGKILL")
      this.names.push(name)
    })

  readonly mishap = (): Mishap["how"] | undefined => this.#mishap?.at === this.commands++ ? this.#mishap.how : undefined
}

/** What is different from run to run is nothing to tell steps by. */
const short = (argument: unknown): string =>
  typeof argument === "string" ? argument.replace(/^.*\//, "").replace(/[0-9a-f]{16}|\d{4,}/g, "…").slice(0, 60) : ""

const files = (steps: Steps): Layer.Layer<FileSystem.FileSystem> =>
  Layer.effect(
    FileSystem.FileSystem,
    Effect.map(FileSystem.FileSystem, (fs): FileSystem.FileSystem => {
      const wrap = <Args extends ReadonlyArray<unknown>, A, E, R>(
        name: string,
        run: (...args: Args) => Effect.Effect<A, E, R>
      ) =>
      (...args: Args) => Effect.andThen(steps.step(`${name} ${args.map(short).join(" ")}`), run(...args))
      const opens = wrap("open", fs.open)
      return {
        ...fs,
        chmod: wrap("chmod", fs.chmod),
        copyFile: wrap("copyFile", fs.copyFile),
        makeDirectory: wrap("makeDirectory", fs.makeDirectory),
        makeTempDirectory: wrap("makeTempDirectory", fs.makeTempDirectory),
        open: (path, options) => options?.flag === "r" ? fs.open(path, options) : opens(path, options),
        remove: wrap("remove", fs.remove),
        rename: wrap("rename", fs.rename),
        symlink: wrap("symlink", fs.symlink),
        truncate: wrap("truncate", fs.truncate),
        writeFile: wrap("writeFile", fs.writeFile),
        writeFileString: wrap("writeFileString", fs.writeFileString)
      }
    })
  ).pipe(Layer.provide(NodeFileSystem.layer))

const commands = (steps: Steps): Layer.Layer<HostCommands | KernelSettings> =>
  Layer.effect(
    HostCommands,
    Effect.map(HostCommands, ({ run }) => ({
      run: (command) =>
        Effect.suspend(() => {
          const { program, what } = command
          const mishap = steps.mishap()
          const does = Effect.andThen(
            steps.step(`${program}: ${what.replace(/mv\S+|[0-9a-f]{16}/g, "…")}`),
            run(command)
          )
          if (mishap === undefined) return does
          const fault = mishap.startsWith("hangs")
            ? Effect.andThen(
              Effect.sleep("30 millis"),
              HostError.fail(new HostError.CommandHung({ program, what, within: Duration.millis(30) }))
            )
            : HostError.fail(
              new HostError.CommandFailed({ program, what, status: "exited with code 1", stderr: mishap })
            )
          return mishap.endsWith("after") ? Effect.andThen(does, fault) : fault
        })
    }))
  ).pipe(Layer.provideMerge(NodeHostCommands.layer))

const processes = (steps: Steps): Layer.Layer<NodeProcessSpawner.Services> =>
  Layer.effectContext(
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      const host = yield* ProcessHost
      return (yield* Effect.context<NodeProcessSpawner.Services>()).pipe(
        Context.add(ProcessHolder, {
          ...holder,
          spawn: (command, options) =>
            steps.step("holder: spawn").pipe(
              Effect.andThen(holder.spawn(command, options)),
              Effect.tap(() => steps.step("holder: spawned"))
            ),
          destroy: (options) => Effect.andThen(steps.step("holder: destroy"), holder.destroy(options))
        }),
        Context.add(ProcessHost, {
          ...host,
          cgroup: (path) => {
            const cgroup = host.cgroup(path)
            return { ...cgroup, remove: Effect.andThen(steps.step("cgroup: remove"), cgroup.remove) }
          }
        })
      )
    })
  ).pipe(Layer.provide(NodeProcessSpawner.layer))

export const layer = (steps: Steps) => Layer.mergeAll(NodePath.layer, files(steps), commands(steps), processes(steps))

const YEARS = 30 * 365 * 86_400_000

/** Whoever looks at it twice sees years go by, or come back. */
export const jumping = (clock: Clock.Clock): Clock.Clock => {
  let looks = 0
  const off = (): number => (++looks % 2 === 0 ? YEARS : -YEARS)
  const millis = (): number => clock.currentTimeMillisUnsafe() + off()
  const nanos = (): bigint => clock.currentTimeNanosUnsafe() + BigInt(off()) * 1_000_000n
  return {
    currentTimeMillisUnsafe: millis,
    currentTimeNanosUnsafe: nanos,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanos: Effect.sync(nanos),
    monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: clock.monotonicTimeNanos,
    sleep: (duration) => clock.sleep(duration)
  }
}
