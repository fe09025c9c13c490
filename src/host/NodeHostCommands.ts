/**
 * The programs and the settings of this host.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as NodeFs from "node:fs"
import * as NodeProcessHost from "../process/NodeProcessHost.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { HostCommands } from "./HostCommands.ts"
import * as HostError from "./HostError.ts"
import * as CommandRunner from "./internal/commandRunner.ts"
import * as KeptProgram from "./internal/keptProgram.ts"
import * as NodeScript from "./internal/NodeScript.ts"
import { writableSettings } from "./internal/settingNames.ts"
import { KernelSettings } from "./KernelSettings.ts"

const defaultTime = "10 seconds"

const directory = "/proc/sys"

const codeOf = (cause: unknown): string | undefined =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined

const refused = (operation: string, path: string) => (cause: unknown) =>
  HostError.make(new HostError.IoFailed({ operation, path, cause }))

const notWritten = (path: string) => (cause: unknown) =>
  codeOf(cause) === "EROFS"
    ? HostError.make(
      new HostError.Unavailable({
        what: `the setting ${path}`,
        why: `${directory} is read-only, as it is in most containers`,
        remedy: `start this with one to write to: ${writableSettings}`
      })
    )
    : refused("write", path)(cause)

/** Those of the network namespace that this process is in, without a process for each. */
const ownSettings = KernelSettings.of({
  read: (setting) =>
    Effect.suspend(() => {
      const path = `${directory}/${setting}`
      try {
        return Effect.succeedSome(NodeFs.readFileSync(path, "latin1").trim())
      } catch (cause) {
        return codeOf(cause) === "ENOENT" ? Effect.succeedNone : Effect.fail(refused("read", path)(cause))
      }
    }),
  write: (settings, value) =>
    Effect.suspend(() => {
      for (const setting of settings) {
        const path = `${directory}/${setting}`
        try {
          NodeFs.writeFileSync(path, value)
        } catch (cause) {
          if (codeOf(cause) !== "ENOENT") return Effect.fail(notWritten(path)(cause))
        }
      }
      return Effect.void
    })
})

/** Which settings there are depends on the namespace of whoever looks, so somebody inside has to. */
const settingsBy = (run: CommandRunner.Runner["run"]): KernelSettings["Service"] => {
  const settle = (program: string, operation: string, paths: ReadonlyArray<string>, input: string | undefined) =>
    run({ program, args: paths, input, what: `to ${operation} ${paths.join(", ")}`, within: defaultTime })
  // cat(1) and tee(1) go on with the next file, and the complaint about this one is no failure of the others.
  const isAbsent = (error: HostError.HostError) =>
    error.reason._tag === "CommandFailed" &&
    error.reason.stderr.trim().split("\n").every((line) => /: \/proc\/sys\/.*: No such file or directory$/.test(line))
  return {
    read: (setting) =>
      settle("cat", "read", [`${directory}/${setting}`], undefined).pipe(
        Effect.map((text) => Option.some(text.trim())),
        Effect.catchIf(isAbsent, () => Effect.succeedNone)
      ),
    write: (settings, value) =>
      settings.length === 0 ? Effect.void : settle("tee", "write", settings.map((one) => `${directory}/${one}`), value)
        .pipe(Effect.catchIf(isAbsent, () => Effect.void), Effect.asVoid)
  }
}

const pause = "1 millis"

/** Of so many that were not waited for the kernel still does the rest; all others wait for it. */
const MOST_BEHIND = 16

const isThere = (link: string): boolean => NodeFs.existsSync(`${directory}/net/ipv4/conf/${link}`)

/**
 * A link is gone, and its name free, long before the `ip` that removed it: that still waits in the kernel until no processor looks at
 * the link any more. It is waited for when the scope closes.
 */
const makeRemove = Effect.fnUntraced(function*(run: CommandRunner.Runner["run"]) {
  const behind = new Set<Fiber.Fiber<string, HostError.HostError>>()
  let isOpen = true
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      isOpen = false
      return Fiber.awaitAll(behind)
    })
  )
  return (command: CommandRunner.Run, links: ReadonlyArray<string>) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        if (!isOpen || behind.size >= MOST_BEHIND || links.length === 0 || !links.every(isThere)) {
          return yield* restore(run(command))
        }
        const fiber = yield* Effect.forkDetach(run(command), { startImmediately: true, uninterruptible: false })
        behind.add(fiber)
        fiber.addObserver(() => void behind.delete(fiber))
        const gone = Effect.sleep(pause).pipe(Effect.repeat({ while: () => links.some(isThere) }), Effect.as(""))
        return yield* restore(Effect.raceFirst(Fiber.join(fiber), gone)).pipe(
          Effect.onInterrupt(() => Fiber.interrupt(fiber))
        )
      })
    )
})

const make = (netns: string | undefined) =>
  Effect.gen(function*() {
    const host = yield* ProcessHost
    const runner = CommandRunner.make(host, netns === undefined ? [] : ["nsenter", `--net=${netns}`, "--"])
    const run = yield* KeptProgram.make(runner, NodeScript.open)
    const remove = yield* makeRemove(runner.run)
    const commands = HostCommands.of({
      run: Effect.fn("HostCommands.run")(({ args, input, program, removes, what, within = defaultTime }) => {
        const command = { program, args, input, what, within }
        // In another namespace there is nothing to be seen without a process.
        return removes === undefined || netns !== undefined ? run(command) : remove(command, removes)
      })
    })
    return Context.make(HostCommands, commands).pipe(
      Context.add(KernelSettings, netns === undefined ? ownSettings : settingsBy(runner.run))
    )
  })

/**
 * In the network namespace that this process is in. A program ends with us, whatever kills us, so that nobody who cleans up
 * after us meets it at work. It is looked for in `PATH`, and then where distributions have programs for root;
 * `MICROVM_RESIZE2FS_BIN` names another resize2fs.
 *
 * From their first use on, `nft` and the `ip` that looks for links are kept open until the scope closes: three processes at most,
 * which hold the event loop open. What the kernel still does after links are gone is waited for then, too.
 *
 * ```ts import.meta.vitest
 * import { HostCommands, NodeHostCommands } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * const program = HostCommands.HostCommands.use((commands) =>
 *   commands.run({ program: "cp", args: ["--no-such-option"], what: "a copy" })
 * )
 * const error = await Effect.runPromise(program.pipe(Effect.flip, Effect.provide(NodeHostCommands.layer)))
 * error.reason._tag // => "CommandFailed"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<HostCommands | KernelSettings> = Layer.effectContext(make(undefined)).pipe(
  Layer.provide(NodeProcessHost.layer)
)

/**
 * In another network namespace, by its file: `/run/netns/mine`. All else, the files of network namespaces included, is as for
 * this process. nsenter(1) of util-linux takes each program there.
 *
 * ```ts import.meta.vitest
 * import { KernelSettings, NodeHostCommands } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * const program = KernelSettings.KernelSettings.use((settings) => settings.read("net/ipv4/ip_forward"))
 * const error = await Effect.runPromise(
 *   program.pipe(Effect.flip, Effect.provide(NodeHostCommands.layerIn("/run/netns/no-such")))
 * )
 * error.reason._tag // => "CommandFailed"
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerIn = (netns: string): Layer.Layer<HostCommands | KernelSettings> =>
  Layer.effectContext(make(netns)).pipe(Layer.provide(NodeProcessHost.layer))
