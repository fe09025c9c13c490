/**
 * The guard as a small shell that hangs on a pipe from us: the kernel closes the pipe however we die.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as NodeChildProcess from "node:child_process"
import * as NodeCrypto from "node:crypto"
import * as NodeNet from "node:net"
import * as NodePath from "node:path"
import type { Writable } from "node:stream"
import { guardScript } from "./internal/guardScript.ts"
import { errnoName, needDescriptors, withoutArguments } from "./internal/NodeErrno.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "./ProcessError.ts"
import { SupervisorGuard, Watched } from "./SupervisorGuard.ts"

const guardFailed = (why: string, cause?: unknown): ProcessError =>
  fromReason(ProcessErrorReason.GuardFailed({ why }), cause)

const encode = (path: string): string =>
  Array.from(Buffer.from(path), (byte) => {
    const char = String.fromCharCode(byte)
    return /[\w/.,:=@+-]/.test(char) ? char : `\\0${byte.toString(8).padStart(3, "0")}`
  }).join("")

const toLine: (what: Watched) => string = Watched.$match({
  CGroup: ({ path }) => `cgroup ${encode(path)}`,
  Group: ({ pgid, startTime }) => `group ${pgid} ${startTime}`,
  File: ({ path }) => `file ${encode(path)}`,
  Directory: ({ path }) => `directory ${encode(path)}`,
  Program: ({ args, command, cwd, env }) =>
    ["program", cwd, ...Object.entries(env).map(([name, value]) => `${name}=${value}`), command, ...args]
      .map((word) => encode(word) || "\\c").join(" ")
})

/** It is going to be removed with all in it, without asking: it had better be meant. */
const check = (what: Watched): Effect.Effect<void, ProcessError> => {
  if (what._tag === "Group") {
    return Number.isSafeInteger(what.pgid) && what.pgid >= 2
      ? Effect.void
      : Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({
        field: "pgid",
        why: `${what.pgid} is no process group to kill: give a number from 2 on`
      })))
  }
  if (what._tag === "Program") {
    const { args, command, cwd, env } = what
    const names = Object.keys(env)
    const invalid = (field: string, why: string) =>
      Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({ field, why })))
    if (!NodePath.isAbsolute(cwd)) return invalid("cwd", `${JSON.stringify(cwd)} is relative: give an absolute path`)
    if (/^$|=/.test(command)) {
      return invalid("command", `env(1) cannot run ${JSON.stringify(command)}: give a name without "="`)
    }
    if (names.some((name) => /^$|=/.test(name))) return invalid("env", "a name is not empty and has no =: rename it")
    return [cwd, command, ...args, ...names, ...Object.values(env)].some((word) => word.includes("\0"))
      ? invalid("args", "one of its words holds a NUL character, which ends a C string: remove it")
      : Effect.void
  }
  const { path } = what
  const isMeant = NodePath.isAbsolute(path) && NodePath.normalize(path) === path && NodePath.dirname(path) !== path &&
    !path.includes("\0")
  return isMeant ? Effect.void : Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({
    field: "path",
    why: `${JSON.stringify(path)} is no path to remove: give an absolute one in its plainest form`
  })))
}

interface Guard {
  readonly pipe: Writable
  readonly gone: Deferred.Deferred<void>
  readonly child: NodeChildProcess.ChildProcess
}

/** A guard that somebody kills is replaced, but not for ever. */
const mostStarts = 4

const make = Effect.gen(function*() {
  const mark = NodeCrypto.randomBytes(8).toString("hex")
  const watched = new Map<number, string>()
  let guard: Guard | undefined
  let starts = 0
  let isClosing = false

  const spawn = () =>
    NodeChildProcess.spawn("/bin/sh", ["-c", guardScript, "microvm-guard", mark], {
      cwd: "/",
      // Without the mark that a guard above us would look for: it has to outlive us.
      env: { PATH: process.env["PATH"] ?? "/usr/bin:/bin" },
      stdio: ["pipe", "ignore", "ignore"],
      // A session of its own: what a terminal or a group kill sends to us does not reach it.
      detached: true
    })

  /** Never throws: it is called by event handlers too. What could not be started, the next thing to watch starts. */
  const start = (onFailure: (cause: unknown) => void): Guard | undefined => {
    let child: ReturnType<typeof spawn>
    try {
      needDescriptors(1)
      child = spawn()
    } catch (cause) {
      onFailure(cause)
      return undefined
    }
    if (child.pid === undefined) {
      // Out of descriptors, it has no pipe either.
      child.on("error", onFailure)
      return undefined
    }
    starts++
    const gone = Deferred.makeUnsafe<void>()
    const pipe = child.stdin
    const end = (): void => {
      Deferred.doneUnsafe(gone, Exit.void)
      if (guard?.child !== child) return
      guard = undefined
      if (!isClosing && watched.size > 0 && starts < mostStarts) guard = start(() => {})
    }
    child.once("exit", end).once("error", end)
    pipe.on("error", () => {})
    child.unref()
    if (pipe instanceof NodeNet.Socket) pipe.unref()
    watched.forEach((line, slot) => pipe.write(`${slot} ${line}\n`))
    return { pipe, gone, child }
  }

  const tell = (line: string): Effect.Effect<void, ProcessError> =>
    Effect.callback<void, ProcessError>((resume) => {
      if (guard === undefined && starts >= mostStarts) {
        resume(Effect.fail(guardFailed(`it has been killed ${mostStarts} times: find out by whom`)))
        return
      }
      guard ??= start((cause) =>
        resume(Effect.fail(guardFailed(`it cannot be started: ${errnoName(cause)}`, withoutArguments(cause))))
      )
      guard?.pipe.write(line, (cause) => {
        resume(cause ? Effect.fail(guardFailed(`it cannot be told: ${errnoName(cause)}`, cause)) : Effect.void)
      })
    }).pipe(Effect.timeoutOrElse({
      duration: "5 seconds",
      orElse: () => Effect.fail(guardFailed("it does not listen: has it been stopped?"))
    }))

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      isClosing = true
      if (guard === undefined) return Effect.void
      const { child, gone, pipe } = guard
      pipe.end("bye\n")
      return Deferred.await(gone).pipe(
        Effect.timeoutOrElse({ duration: "2 seconds", orElse: () => Effect.sync(() => child.kill("SIGKILL")) }),
        Effect.asVoid
      )
    })
  )

  const freeSlot = (): number => {
    let slot = 1
    while (watched.has(slot)) slot++
    return slot
  }

  return SupervisorGuard.of({
    mark,
    watch: Effect.fn("SupervisorGuard.watch")(
      function*(what: Watched): Effect.fn.Return<void, ProcessError, Scope.Scope> {
        yield* check(what)
        yield* Effect.acquireRelease(
          Effect.suspend(() => {
            const slot = freeSlot()
            const line = toLine(what)
            watched.set(slot, line)
            return Effect.as(tell(`${slot} ${line}\n`), slot).pipe(
              Effect.onError(() => Effect.sync(() => watched.delete(slot)))
            )
          }),
          (slot) => {
            watched.delete(slot)
            return guard === undefined ? Effect.void : Effect.ignore(tell(`${slot}\n`))
          }
        )
      }
    )
  })
})

/**
 * The guard for our process. It starts with the first thing to watch, keeps no event loop alive, and ends with the layer;
 * what is still watched then is left alone, because we are there to see to it.
 *
 * Needs `/bin/sh` and the POSIX tools cat, env, find, grep, head, printf, rm, rmdir and sleep.
 *
 * **Gotchas**
 *
 * - `process.exit` without closing the layer counts as our death: the guard clears everything away.
 * - Whoever kills a whole cgroup that we are in kills the guard with us; then the same hand has killed the children.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<SupervisorGuard> = Layer.effect(SupervisorGuard, make)
