/** Runs programs to their end: bounded in time and in what they write. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { Child, OutputSource, ProcessHost } from "../../process/ProcessHost.ts"
import * as HostError from "../HostError.ts"

/** How much of stdout is taken. The links of ten thousand machines, in JSON, are a tenth of it. */
export const LARGEST_OUTPUT = 64 * 2 ** 20

export const tooMuch = `wrote more than ${LARGEST_OUTPUT} bytes`

/** How much of stderr is kept: its beginning, since the first fault says more than what follows from it. */
export const longestComplaint = 16 * 2 ** 10

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

/** Keeps the first `limit` bytes of what comes. */
export const keeper = (limit: number) => {
  const chunks: Array<Uint8Array> = []
  let size = 0
  return {
    add: (bytes: Uint8Array): void => {
      if (size < limit) chunks.push(bytes.subarray(0, limit - size))
      size += bytes.length
    },
    isCut: (): boolean => size > limit,
    text: (): string => {
      const bytes = new Uint8Array(Math.min(size, limit))
      let at = 0
      for (const chunk of chunks) {
        bytes.set(chunk, at)
        at += chunk.length
      }
      return new TextDecoder().decode(bytes)
    }
  }
}

/** Takes all that comes, to its end. */
const collect = (source: OutputSource | undefined, limit: number) => {
  const kept = keeper(limit)
  const step: Effect.Effect<typeof kept> = Effect.suspend(() => {
    const taken = source === undefined ? "end" : source.take()
    if (taken === "end" || source === undefined) return Effect.succeed(kept)
    if (taken === undefined) {
      // A pipe that breaks has ended: the exit status says why.
      return Effect.andThen(Effect.ignore(source.ready), step)
    }
    kept.add(taken)
    return step
  })
  return step
}

/** The line of the input that `ip -batch` and `nft -f` name. */
export const lineOf = (input: string | undefined, stderr: string): { readonly line?: string } => {
  const number = /(?:^|\n|failed )(?:-|\/dev\/stdin):(\d+)/.exec(stderr)?.[1]
  const line = number === undefined ? undefined : input?.split("\n")[Number(number) - 1]
  return line === undefined ? {} : { line }
}

/** Kills it if need be, and waits until it is gone. */
export const end = (child: Child) =>
  Effect.gen(function*() {
    if (Option.isNone(yield* child.poll)) {
      yield* Effect.ignore(child.signal("SIGKILL"))
      yield* Effect.timeoutOption(child.exit, dyingTime)
    }
    yield* child.release
  })

/** One that does not read it all ends badly, and tells why itself. */
export const tell = (child: Child, text: string, isAll: boolean) =>
  Effect.suspend(() => {
    const sink = child.input(0, isAll)
    return sink === undefined
      ? Effect.void
      : Effect.ignore(Stream.run(Stream.make(new TextEncoder().encode(text)), sink))
  })

export interface Start {
  readonly program: string
  readonly args: ReadonlyArray<string>
  readonly what: string
  /** Has it a stdin? */
  readonly isTold: boolean
  readonly dieWithParent: boolean
  /** Is it to end when we say so, and not with a service manager's SIGTERM to all of a service? Default false. */
  readonly isKept?: boolean
  /** Beside what all have. */
  readonly env?: Readonly<Record<string, string>>
}

/** A signal that is ignored is ignored by what is executed, too (execve(2)). */
const deaf = ["sh", "-c", `trap "" TERM; exec "$0" "$@"`]

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
      input === undefined ? Effect.void : tell(child, input, true)
    ], { concurrency: "unbounded" })

  const start = Effect.fnUntraced(function*(options: Start) {
    const { args, dieWithParent, env = {}, isKept = false, isTold, program, what } = options
    const { command, path } = programOf(yield* host.env, program)
    const file = yield* locate(command, path, what)
    const [first = file, ...rest] = [...prefix, ...(isKept ? deaf : []), file, ...args]
    return yield* host.launch({
      executable: first === file ? file : yield* locate(first, path, what),
      args: rest,
      env: { LC_ALL: "C", PATH: path, ...env },
      cwd: undefined,
      stdio: [isTold ? "pipe" : "ignore", "pipe", "pipe"],
      detached: true,
      cgroup: undefined,
      dieWithParent
    }).pipe(
      Effect.mapError((error) =>
        HostError.make(
          new HostError.CommandFailed({ program, what, status: "could not be started", stderr: error.message })
        )
      )
    )
  })

  const run = Effect.fnUntraced(function*({ args, input, program, what, within }: Run) {
    const launch = start({
      program,
      args,
      what,
      isTold: input !== undefined,
      // What a dead supervisor has half done is undone by the next one, which must not meet it at work. What only looks (JSON is
      // for that) may go on: to bind it to us takes as long again.
      dieWithParent: !args.includes("-j")
    })
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
          stderr: stderr.text(),
          ...lineOf(input, stderr.text())
        })
      )
    }
    if (stdout.isCut()) {
      return yield* HostError.fail(
        new HostError.CommandFailed({ program, what, status: tooMuch, stderr: stderr.text() })
      )
    }
    return stdout.text()
  })

  return { run, start }
}

export type Runner = ReturnType<typeof make>
