/** Runs programs to their end: bounded in time and in what they write. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { Child, OutputSource, ProcessHost } from "../../process/ProcessHost.ts"
import * as HostError from "../HostError.ts"

/** How much of stdout is taken. The links of ten thousand machines, in JSON, are a tenth of it. */
const LARGEST_OUTPUT = 64 * 2 ** 20

/** How much of stderr is kept: its beginning, since the first fault says more than what follows from it. */
const longestComplaint = 16 * 2 ** 10

/** How long a process may take to be gone after SIGKILL: one that hangs in the kernel cannot be waited for. */
const dyingTime = "2 seconds"

/** Where distributions have programs for root, which the PATH of others lacks. */
const sbin = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

export interface Run {
  readonly program: string
  readonly args: ReadonlyArray<string>
  readonly input: string | undefined
  readonly what: string
  readonly within: Duration.Input
}

const packages: Readonly<Record<string, string>> = {
  ip: "iproute2",
  nft: "nftables",
  nsenter: "util-linux",
  resize2fs: "e2fsprogs",
  e2fsck: "e2fsprogs"
}

/** Variables that name a program to use instead. */
const variables: Readonly<Record<string, string>> = { resize2fs: "MICROVM_RESIZE2FS_BIN" }

/** What is looked for, and where. */
export const programOf = (env: Readonly<Record<string, string | undefined>>, program: string) => {
  const variable = variables[program]
  return {
    command: (variable === undefined ? undefined : env[variable]) || program,
    path: env["PATH"] === undefined ? sbin : `${env["PATH"]}:${sbin}`
  }
}

/** Takes all that comes, and keeps the first `limit` bytes. */
const collect = (source: OutputSource | undefined, limit: number) => {
  const chunks: Array<Uint8Array> = []
  let size = 0
  const step: Effect.Effect<{ readonly text: string; readonly isCut: boolean }> = Effect.suspend(() => {
    const taken = source === undefined ? "end" : source.take()
    if (taken === "end" || source === undefined) {
      const bytes = new Uint8Array(Math.min(size, limit))
      let at = 0
      for (const chunk of chunks) {
        bytes.set(chunk, at)
        at += chunk.length
      }
      return Effect.succeed({ text: new TextDecoder().decode(bytes), isCut: size > limit })
    }
    if (taken === undefined) {
      // A pipe that breaks has ended: the exit status says why.
      return Effect.andThen(Effect.ignore(source.ready), step)
    }
    if (size < limit) chunks.push(taken.subarray(0, limit - size))
    size += taken.length
    return step
  })
  return step
}

/** The line of the input that `ip -batch` and `nft -f` name. */
const lineOf = (input: string | undefined, stderr: string): { readonly line?: string } => {
  const number = /(?:^|\n|failed )(?:-|\/dev\/stdin):(\d+)/.exec(stderr)?.[1]
  const line = number === undefined ? undefined : input?.split("\n")[Number(number) - 1]
  return line === undefined ? {} : { line }
}

/** The programs run below `prefix`, a command line that becomes another: `nsenter --net=… --`. */
export const make = (host: ProcessHost["Service"], prefix: ReadonlyArray<string>) => {
  const locate = Effect.fnUntraced(function*(command: string, path: string, what: string) {
    const { executable, faults } = yield* host.locate({ command, path, cwd: undefined })
    if (faults.length === 0) return executable
    return yield* HostError.fail(
      new HostError.Unavailable({
        what: command,
        why: `${what} needs it, and it is not in ${path}`,
        remedy: `install ${packages[command] ?? command}`
      })
    )
  })

  const converse = (child: Child, input: string | undefined) =>
    Effect.all([
      collect(child.output(1), LARGEST_OUTPUT),
      collect(child.output(2), longestComplaint),
      child.exit,
      input === undefined ? Effect.void : Effect.suspend(() => {
        const sink = child.input(0, true)
        // One that does not read it all ends badly, and tells why itself.
        return sink === undefined
          ? Effect.void
          : Effect.ignore(Stream.run(Stream.make(new TextEncoder().encode(input)), sink))
      })
    ], { concurrency: "unbounded" })

  const end = (child: Child) =>
    Effect.gen(function*() {
      if (Option.isNone(yield* child.poll)) {
        yield* Effect.ignore(child.signal("SIGKILL"))
        yield* Effect.timeoutOption(child.exit, dyingTime)
      }
      yield* child.release
    })

  return Effect.fnUntraced(function*({ args, input, program, what, within }: Run) {
    const { command, path } = programOf(yield* host.env, program)
    const [wrapper, ...rest] = prefix
    const file = yield* locate(command, path, what)
    const outer = wrapper === undefined ? file : yield* locate(wrapper, path, what)
    const launch = host.launch({
      executable: outer,
      args: wrapper === undefined ? args : [...rest, file, ...args],
      env: { LC_ALL: "C", PATH: path },
      cwd: undefined,
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
      detached: true,
      cgroup: undefined,
      // What a dead supervisor has half done is undone by the next one, which must not meet it at work. What only looks (JSON is
      // for that) may go on: to bind it to us takes as long again.
      dieWithParent: !args.includes("-j")
    }).pipe(
      Effect.mapError((error) =>
        HostError.make(
          new HostError.CommandFailed({ program, what, status: "could not be started", stderr: error.message })
        )
      )
    )
    const outcome = yield* Effect.acquireUseRelease(
      launch,
      (child) => Effect.timeoutOption(converse(child, input), within),
      end
    )
    if (Option.isNone(outcome)) {
      return yield* HostError.fail(
        new HostError.CommandHung({ program, what, within: Duration.fromInputUnsafe(within) })
      )
    }
    const [stdout, stderr, status] = outcome.value
    if (status._tag !== "Exited" || status.code !== 0) {
      return yield* HostError.fail(
        new HostError.CommandFailed({
          program,
          what,
          status: ExitStatus.format(status),
          stderr: stderr.text,
          ...lineOf(input, stderr.text)
        })
      )
    }
    if (stdout.isCut) {
      const why = `wrote more than ${LARGEST_OUTPUT} bytes`
      return yield* HostError.fail(new HostError.CommandFailed({ program, what, status: why, stderr: stderr.text }))
    }
    return stdout.text
  })
}
