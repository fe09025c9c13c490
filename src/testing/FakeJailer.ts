/**
 * A jailer without a jail: a program that reads its arguments as Firecracker's jailer does, refuses what that refuses in its words,
 * leaves the same directories, device nodes, control groups and pid file, and then starts the program it was given. Made for the
 * one of `FakeFirecracker`, which is told where its root is and takes every path for one below it, and drops to the user and group that it
 * was given; it works under no root of its own, so `/proc/PID/root` leads to that of the machine.
 *
 * Not everything needs root: with one's own user and group no owner has to be changed, and in place of device nodes there are empty files.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { chmodSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { command, temporaryDirectory } from "./FakeFirecracker.ts"
import type * as Settings from "./internal/fakeJailerSettings.ts"

/**
 * What a jailer does, in order, after it has read its arguments: make the directory, copy the program, join the network
 * namespace, set limits, make and enter control groups, make its mount namespace, own the folders, make device nodes, leave its parent
 * (`--daemonize`), write the pid file, and start the program.
 *
 * @category models
 * @since 0.1.0
 */
export type Step = Settings.Step

/**
 * A step that fails, with an error of the system (default `EPERM`), or by a signal that comes at that moment.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fault {
  readonly step: Step
  readonly errno?: string | undefined
  readonly signal?: string | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** As `--version` tells it. Before 1.13 the program's name has to have `firecracker` in it. Default `1.16.1`. */
  readonly version?: string | undefined
  /**
   * A file like `/proc/mounts` (the default) with the control groups' mounts: other directories can be used in place of the real
   * ones.
   */
  readonly mounts?: string | undefined
  readonly faults?: ReadonlyArray<Fault> | undefined
}

/**
 * A fake that can be started as often as one likes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Installed {
  /** The command. */
  readonly binary: string
  /** Options for those that are started from now on, over those there are. */
  readonly update: (options: Options) => Effect.Effect<void>
}

/**
 * Makes a command `jailer` in a directory of its own, which is removed when the scope closes. What it has made and started
 * is not.
 *
 * ```ts import.meta.vitest
 * import { FakeJailer } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import { spawnSync } from "node:child_process"
 *
 * const program = Effect.gen(function*() {
 *   const { binary } = yield* FakeJailer.install()
 *   return spawnSync(binary, ["--id", "a"], { encoding: "utf8" }).stderr.split("\n")[0]
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "Failed to parse arguments: Argument 'exec-file' required, but not found."
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const install = Effect.fn("FakeJailer.install")(function*(
  options: Options = {}
): Effect.fn.Return<Installed, never, Scope.Scope> {
  const directory = yield* temporaryDirectory
  const binary = join(directory, "jailer")
  const optionsFile = join(directory, "options.json")
  let current: Options = options
  const write = () => writeFileSync(optionsFile, JSON.stringify(current))
  write()
  writeFileSync(binary, command("fakeJailerProgram", optionsFile))
  chmodSync(binary, 0o755)
  return {
    binary,
    update: (more) =>
      Effect.sync(() => {
        current = { ...current, ...more }
        write()
      })
  }
})
