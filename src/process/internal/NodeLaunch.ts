import { fromWritable } from "@effect/platform-node/NodeSink"
import { fromDuplex } from "@effect/platform-node/NodeSocket"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as NodeChildProcess from "node:child_process"
import { Duplex, type Readable } from "node:stream"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as Signal from "../../lifecycle/Signal.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { Child, LaunchPlan, OutputSource } from "../ProcessHost.ts"
import { commandLine } from "./commandLine.ts"
import * as CoreFlag from "./NodeCoreFlag.ts"
import { errnoName, needDescriptors, withoutArguments } from "./NodeErrno.ts"
import * as ProcTable from "./NodeProcTable.ts"
import { inTurn } from "./NodeTurns.ts"

export const toStatus = (code: number | null, signal: string | null, neverDumps: boolean): ExitStatus.ExitStatus => {
  if (signal === null) return ExitStatus.exited(code ?? 0)
  const name = Signal.fromString(signal)
  if (name === undefined) return ExitStatus.lost(`killed by ${signal}, which has no number here`, "wait")
  return neverDumps || !Signal.dumpsCore.has(name)
    ? ExitStatus.signaled(name, { coreDumped: false })
    : ExitStatus.signaled(name)
}

/** Made beforehand: code that runs once per child is never warm, and somebody waits for what this says. */
const bySignal = (neverDumps: boolean): ReadonlyMap<string | null, ExitStatus.ExitStatus> =>
  new Map(Signal.names.map((name) => [name, toStatus(null, name, neverDumps)]))
const signaled = bySignal(false)
const signaledUndumped = bySignal(true)

const streamFailed = (stream: string) => (cause: unknown): ProcessError =>
  fromReason(ProcessErrorReason.StreamFailed({ stream, code: errnoName(cause) }), cause)

export const toSource = (name: string, readable: Readable): OutputSource => {
  let failure: ProcessError | undefined
  const waiting = new Set<() => void>()
  const wake = (): void => waiting.forEach((resume) => resume())
  // A listener of "readable" also keeps Node from discarding what is unread when the child exits.
  readable.on("readable", wake).on("end", wake).on("close", wake).on("error", (cause) => {
    failure ??= streamFailed(name)(cause)
    wake()
  })
  const isDone = (): boolean => readable.readableEnded || readable.destroyed
  return {
    take: () => {
      const chunk: unknown = readable.read()
      if (chunk instanceof Uint8Array) return chunk
      return failure === undefined && isDone() ? "end" : undefined
    },
    ready: Effect.callback<void, ProcessError>((resume) => {
      const look = (): void => {
        if (readable.readableLength > 0 || isDone()) {
          waiting.delete(look)
          resume(failure === undefined ? Effect.void : Effect.fail(failure))
        }
      }
      waiting.add(look)
      look()
      return Effect.sync(() => waiting.delete(look))
    })
  }
}

export interface Options {
  readonly setpriv: string | undefined
  /** Can a child write a core file: not whatever it does, only if it raises its own limit, or as it is? */
  readonly cores: "never" | "if raised" | "likely"
}

/** Starts a plan. All that a caller must not miss is listened for before this returns. */
export const launch = (plan: LaunchPlan, options: Options): Effect.Effect<Child, ProcessError> =>
  Effect.suspend(() => {
    const spawnFailed = (cause: unknown): ProcessError =>
      fromReason(
        ProcessErrorReason.SpawnFailed({ command: plan.executable, code: errnoName(cause) }),
        withoutArguments(cause)
      )
    const [file, args] = commandLine(plan, { setpriv: options.setpriv, parent: process.pid })
    let child: NodeChildProcess.ChildProcess
    try {
      needDescriptors(plan.stdio.filter((kind) => kind === "pipe").length)
      child = NodeChildProcess.spawn(file, args, {
        env: plan.env,
        stdio: [...plan.stdio],
        detached: plan.detached,
        ...(plan.cwd === undefined ? {} : { cwd: plan.cwd })
      })
    } catch (cause) {
      return Effect.fail(spawnFailed(cause))
    }
    const { pid } = child
    if (pid === undefined) {
      return Effect.callback<never, ProcessError>((resume) => {
        child.once("error", (cause) => resume(Effect.fail(spawnFailed(cause))))
      })
    }
    // Node has reaped nobody since the fork, so the line is there, be the child dead already.
    const startTime = ProcTable.inspect(pid)?.startTime
    if (startTime === undefined) {
      child.kill("SIGKILL")
      return Effect.fail(spawnFailed(new Error(`/proc/${pid}/stat cannot be read: mount /proc`)))
    }

    // To load koffi takes 9 ms the first time, so not for what is unlikely; the child runs meanwhile.
    const core = options.cores === "likely" ? CoreFlag.witness(pid) : undefined

    const exit = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
    const afterExit = Deferred.makeUnsafe<ExitStatus.ExitStatus>()
    let status: ExitStatus.ExitStatus | undefined
    let reapedAt: number | undefined
    // The clock is a file: it takes 40 µs to be read.
    const leadsGroup = plan.detached && plan.cgroup?.path === undefined
    const stampReaped = (): number | undefined => {
      if (status !== undefined) reapedAt ??= leadsGroup ? ProcTable.ticks() : startTime
      return reapedAt
    }
    child.on("exit", (code, signal) => {
      const neverDumps = options.cores === "never"
      const told = (neverDumps ? signaledUndumped : signaled).get(signal) ?? toStatus(code, signal, neverDumps)
      status = told._tag === "Signaled" && told.coreDumped === undefined && core?.hasDumped() === true
        ? ExitStatus.signaled(told.signal, { coreDumped: true })
        : told
      const seen = Exit.succeed(status)
      inTurn(() => {
        Deferred.doneUnsafe(exit, seen)
        // Later than who waits for the other one by a promise, too.
        setImmediate(() => Deferred.doneUnsafe(afterExit, seen))
      })
      // The clock takes longer than all the rest, so those who wait come first. Whoever of them needs the time asks for it.
      stampReaped()
      core?.close()
    })
    child.on("error", () => {})

    const streams = child.stdio.map((stream) => {
      // Each user of a stream listens for itself; without any listener an error would end our process.
      stream?.on("error", () => {})
      return stream ?? undefined
    })
    const duplexes = streams.map((stream, fd) => fd >= 3 && stream instanceof Duplex ? stream : undefined)
    duplexes.forEach((stream) => {
      if (stream === undefined) return
      stream.allowHalfOpen = true
      stream.on("readable", () => {})
    })
    const sources = [undefined, child.stdout, child.stderr].map((readable, fd) =>
      readable ? toSource(fd === 1 ? "stdout" : "stderr", readable) : undefined
    )

    return Effect.succeed<Child>({
      pid,
      startTime,
      reapedAt: stampReaped,
      poll: Effect.sync(() => Option.fromUndefinedOr(status)),
      exit: Deferred.await(exit),
      afterExit: Deferred.await(afterExit),
      signal: (signal) =>
        Effect.try({
          try: () => {
            // Not `child.kill`: that one reports a refusal as an event.
            if (status === undefined) process.kill(pid, Signal.toNumber(signal))
          },
          catch: (cause) =>
            fromReason(
              ProcessErrorReason.SignalFailed({ signal, target: `process ${pid}`, code: errnoName(cause) }),
              cause
            )
        }),
      input: (fd, end) => {
        const writable = fd === 0 ? child.stdin : duplexes[fd]
        return writable
          ? fromWritable({
            evaluate: () => writable,
            onError: streamFailed(fd === 0 ? "stdin" : `fd${fd}`),
            endOnDone: end
          })
          : undefined
      },
      output: (fd) => sources[fd],
      channel: (fd) => {
        const duplex = duplexes[fd]
        return duplex && fromDuplex(Effect.acquireRelease(Effect.succeed(duplex), close))
      },
      release: Effect.sync(() => {
        core?.close()
        streams.forEach((stream) => stream?.destroy())
      })
    })
  })

/** Lets what was written go out first. */
const close = (duplex: Duplex) =>
  Effect.sync(() => {
    if (duplex.destroyed) return
    duplex.end(() => duplex.destroy())
  })
