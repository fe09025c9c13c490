/** Runs the few programs that make an image, and keeps a bounded part of what they say. They die with us. */
import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Stream from "effect/Stream"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import * as ImageError from "../ImageError.ts"

export interface Ended {
  readonly code: number
  /** At most 4 MiB, the end of it. */
  readonly stdout: string
  /** At most 4 KiB, the end of it. */
  readonly stderr: string
}

const lastOf = <E>(stream: Stream.Stream<Uint8Array, E>, limit: number): Effect.Effect<string, E> =>
  Stream.runFold(Stream.decodeText(stream), () => "", (text, part) => `${text}${part}`.slice(-limit)).pipe(
    Effect.map((text) => text.trim())
  )

/**
 * Runs a program to its end, in the C locale. A program that is not there is the fault of a host without apt; one that
 * cannot be run, or dies of a signal, counts as a failed download, which is what all of this serves.
 */
export const run = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd?: string } = {}
): Effect.Effect<Ended, ImageError.ImageError, ProcessSpawner> => {
  const failed = (output: string, cause?: unknown) =>
    ImageError.fromReason(
      ImageError.ImageErrorReason.DownloadFailed({ command: `${command} ${args[0] ?? ""}`, output }),
      cause
    )
  return Effect.gen(function*() {
    const { spawn } = yield* ProcessSpawner
    const program = ChildProcess.make(command, args, {
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { LC_ALL: "C" },
      extendEnv: true,
      stdin: "ignore",
      forceKillAfter: "2 seconds"
    })
    const process = yield* spawn(program)
    const [stdout, stderr, status] = yield* Effect.all(
      [lastOf(process.stdout, 4 * 1024 * 1024), lastOf(process.stderr, 4 * 1024), process.exit],
      { concurrency: "unbounded" }
    )
    if (status._tag !== "Exited") return yield* failed(ExitStatus.format(status))
    return { code: status.code, stdout, stderr }
  }).pipe(
    Effect.scoped,
    Effect.mapError((cause) =>
      cause._tag === "ImageError"
        ? cause
        : cause.reason._tag === "NotFound"
        ? ImageError.fromReason(ImageError.ImageErrorReason.AptUnavailable({ command }), cause)
        : failed(cause.message, cause)
    )
  )
}
