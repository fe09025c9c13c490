/**
 * Holders on this host, as processes of Node.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as ChildProcess from "effect/process/ChildProcess"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as NodeChildProcess from "node:child_process"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { fileURLToPath } from "node:url"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import { cachedSuccess } from "./internal/cachedSuccess.ts"
import * as CommandPlan from "./internal/commandPlan.ts"
import * as Protocol from "./internal/holderProtocol.ts"
import * as HolderSchema from "./internal/holderSchema.ts"
import * as CGroup from "./internal/NodeCGroup.ts"
import { attempt, errnoName, needDescriptors, withoutArguments } from "./internal/NodeErrno.ts"
import * as Held from "./internal/NodeHeld.ts"
import * as Client from "./internal/NodeHolderClient.ts"
import * as Probe from "./internal/probe.ts"
import { pollUntil } from "./internal/reach.ts"
import * as Mark from "./Mark.ts"
import { fromReason, ProcessError, ProcessErrorReason } from "./ProcessError.ts"
import {
  type AttachOptions,
  type Destruction,
  type HeldProcess,
  type HoldOptions,
  ProcessHolder
} from "./ProcessHolder.ts"
import { isAlive, ProcessHost } from "./ProcessHost.ts"

/**
 * From any place of `dist` that this module is bundled into, as from where it is written, it is one way to the program. Whoever bundles
 * all of us into one file has no such program beside it, and in CommonJS no `import.meta` either.
 */
const findProgram = (): { readonly file: string; readonly environment: Record<string, string> } | undefined => {
  try {
    const isSource = import.meta.url.endsWith(".ts")
    const file = fileURLToPath(
      new URL(`../process/internal/NodeHolderProgram.${isSource ? "ts" : "js"}`, import.meta.url)
    )
    if (!NodeFs.existsSync(file)) return undefined
    // Types are stripped once, not at each start: that takes longer, and more memory, than all else.
    const cache = fileURLToPath(new URL("../../.cache/node", import.meta.url))
    return { file, environment: isSource ? { NODE_COMPILE_CACHE: cache } : {} }
  } catch {
    return undefined
  }
}

/** It does little: fewer threads, a small heap, and no debugger that a signal opens. */
const nodeOptions = [
  "--v8-pool-size=0",
  "--max-semi-space-size=1",
  "--disable-sigusr1",
  "--disable-warning=ExperimentalWarning"
]

/** Until a holder that was started has its child, and until one that is starting or ending has done so. */
const patience = "10 seconds"

/** Until what was killed is gone. On a busy host that takes a hundred processes seconds: nobody is to be told that they cannot be ended. */
const dyingTime = "10 seconds"

/** Until a holder has written down how its child ended, which one cannot that has no room for it. */
const writingTime = "2 seconds"

const defaultTailBytes = 65_536

/** Characters of a note, which is read with all that belongs to it. */
const longestNote = 16_384

const holderFailed = (directory: string, why: string, cause?: unknown): ProcessError =>
  fromReason(ProcessErrorReason.HolderFailed({ directory, why }), cause)

const decodeStarted = Schema.decodeUnknownOption(Schema.fromJsonString(HolderSchema.Started))

/** Starts a holder, and waits for what it says of its child. */
const startHolder = (order: Protocol.Order): Effect.Effect<void, ProcessError> =>
  Effect.callback<void, ProcessError>((resume) => {
    const { directory, launch } = order
    const program = findProgram()
    if (program === undefined) {
      const why = "its program is not here, as in a bundle: leave effect-microvm-runtime out of it (external)"
      return resume(Effect.fail(holderFailed(directory, why)))
    }
    const spawnFailed = (command: string, code: string, cause?: unknown) =>
      resume(Effect.fail(fromReason(ProcessErrorReason.SpawnFailed({ command, code }), cause)))
    let log: number | undefined
    let holder: NodeChildProcess.ChildProcess
    try {
      log = NodeFs.openSync(NodePath.join(directory, Protocol.files.log), "w", 0o600)
      needDescriptors(2)
      holder = NodeChildProcess.spawn(process.execPath, [...nodeOptions, program.file], {
        cwd: "/",
        // Without the mark of those above us, whose guards would kill it.
        env: { ...program.environment, [Mark.variable]: Protocol.ownMark(order.mark) },
        stdio: ["pipe", "pipe", log],
        detached: true
      })
    } catch (cause) {
      return spawnFailed(process.execPath, errnoName(cause), withoutArguments(cause))
    } finally {
      if (log !== undefined) NodeFs.closeSync(log)
    }
    let text = ""
    const tell = (): void => {
      const started = text.includes("\n") ? Option.getOrUndefined(decodeStarted(text)) : undefined
      if (started?._tag === "Started") return resume(Effect.void)
      if (started?._tag === "Refused" && started.step === "start") return spawnFailed(launch.executable, started.code)
      if (started?._tag === "Refused" && started.code === "EEXIST") {
        const why = "there is, or was, a process in it: give an empty directory"
        return resume(Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({ field: "directory", why }))))
      }
      const said = attempt(() =>
        NodeFs.readFileSync(NodePath.join(directory, Protocol.files.log), "utf8").slice(0, 4096)
      )
      const why = started?._tag === "Refused"
        ? `it cannot write there: ${started.code}`
        : `it ended at once\n${said ?? ""}`
      resume(Effect.fail(holderFailed(directory, why.trimEnd())))
    }
    holder.once("error", (cause) => spawnFailed(process.execPath, errnoName(cause), withoutArguments(cause)))
    holder.stdout?.setEncoding("utf8").on("error", () => {}).once("close", tell).on("data", (piece: string) => {
      text += piece
      if (text.includes("\n") || text.length > Protocol.longestLine) holder.stdout?.destroy()
    })
    holder.stdin?.on("error", () => {}).end(JSON.stringify(order))
    holder.unref()
    return Effect.timeoutOption(
      Effect.callback<void>((ended) => {
        if (holder.pid === undefined || holder.exitCode !== null || holder.signalCode !== null) ended(Effect.void)
        else {
          holder.ref()
          holder.once("exit", () => ended(Effect.void)).kill("SIGKILL")
        }
        return Effect.sync(() => holder.unref())
      }),
      dyingTime
    )
  }).pipe(Effect.timeoutOrElse({
    duration: patience,
    orElse: () => Effect.fail(holderFailed(order.directory, `it did not start within ${patience}`))
  }))

const make = Effect.gen(function*() {
  const host = yield* ProcessHost

  /** setpriv(1), if it is there and can do what it takes. */
  const setpriv = yield* cachedSuccess(
    Effect.gen(function*() {
      const { PATH } = yield* host.env
      const { executable, faults } = yield* host.locate({ command: "setpriv", path: PATH, cwd: "/" })
      if (faults.length > 0) return undefined
      const probe = yield* host.launch(Probe.setpriv(executable))
      const status = yield* Effect.timeoutOption(probe.exit, dyingTime)
      if (Option.isNone(status)) yield* Effect.ignore(probe.signal("SIGKILL"))
      return Option.exists(status, ExitStatus.isSuccess) ? executable : undefined
    })
  )

  const check = Effect.fnUntraced(function*(command: ChildProcess.StandardCommand, options: HoldOptions) {
    const faults: Array<ProcessErrorReason> = []
    const fault = (field: string, why: string): void => {
      faults.push(ProcessErrorReason.InvalidArgument({ field, why }))
    }
    const { cgroup, directory, note = "", replay = [], tailBytes = defaultTailBytes } = options
    if (note.length > longestNote) fault("note", `has ${note.length} characters: give ${longestNote} at most`)
    if (!Number.isSafeInteger(tailBytes) || tailBytes < 0 || tailBytes > 2 ** 26) {
      fault("tailBytes", `is ${tailBytes}: give a whole number of bytes, 0 for none, ${2 ** 26} at most`)
    }
    const wrong = NodePath.isAbsolute(directory) ? Client.faultOf(directory) : { why: "it is not absolute" }
    if (wrong !== undefined) fault("directory", `${JSON.stringify(directory)}: ${wrong.why}`)
    if (cgroup !== undefined) CGroup.faultsOf(cgroup).forEach((why) => fault("cgroup", why))
    const planned = yield* Effect.result(CommandPlan.make(host, command))
    if (planned._tag === "Failure") faults.push(planned.failure.reason, ...planned.failure.others ?? [])
    else {
      const { inputs, launch, outputs } = planned.success
      if (command.options.stdin !== undefined && launch.stdio[0] !== "ignore") {
        fault("stdin", `is not there for a process that is held: "ignore" it, and use additionalFds`)
      }
      if (outputs.size > 0 || launch.stdio.slice(1, 3).includes("inherit")) {
        fault("stdout, stderr", `are kept by the holder: "pipe" or "ignore" them`)
      }
      const streams = [...inputs.keys()].filter((fd) => fd > 0)
      if (streams.length > 0) fault("additionalFds", `fd${streams.join(", fd")}: is not fed here: use channel`)
      const strangers = replay.filter((fd) => fd < 3 || launch.stdio[fd] !== "pipe")
      if (strangers.length > 0) fault("replay", `${strangers.join(", ")}: no additional descriptor of the command`)
    }
    const [reason, ...others] = faults
    if (planned._tag === "Failure" || reason !== undefined) {
      return yield* reason === undefined ? holderFailed(directory, "no reason") : new ProcessError({ reason, others })
    }
    return { plan: planned.success, tailBytes, replay }
  })

  /** Takes the hand; none when the process has ended, or its holder is gone. */
  const hold = Effect.fnUntraced(function*(directory: string, held: HolderSchema.Held) {
    const request: Protocol.Request = { version: Protocol.version, op: "hold" }
    const take = Effect.gen(function*() {
      if (Client.readEnded(directory) !== undefined) return undefined
      const { answer, socket } = yield* Client.ask(directory, request)
      if (answer._tag === "Hand") {
        return { name: answer.hand, socket, stdout: answer.stdout, stderr: answer.stderr } satisfies Held.Hand
      }
      return yield* fromReason(
        answer._tag === "Refused" && answer.why === "held"
          ? ProcessErrorReason.HandTaken({ directory })
          : ProcessErrorReason.HolderFailed({ directory, why: "it refuses us: is it of another version?" })
      )
    })
    const scope = yield* Effect.scope
    const attempts = (left: number): Effect.Effect<Held.Hand | undefined, ProcessError> =>
      Effect.catchTag(Scope.provide(take, scope), "Unreachable", (error) =>
        Effect.gen(function*() {
          if (!error.isGone) return yield* holderFailed(directory, error.why)
          if (!(yield* Held.lives(host, held.holder))) return undefined
          // It is about to end, or has as many connections as it takes.
          if (left === 0) return yield* holderFailed(directory, `it lives, and cannot be reached: ${error.why}`)
          return yield* Effect.delay(attempts(left - 1), "20 millis")
        }))
    return yield* attempts(100)
  })

  const readHeld = (directory: string): Effect.Effect<HolderSchema.Held, ProcessError> =>
    Effect.suspend(() => {
      const notHeld = (why: string) => Effect.fail(fromReason(ProcessErrorReason.NotHeld({ directory, why })))
      const wrong = Client.faultOf(directory)
      if (wrong !== undefined) return notHeld(wrong.why)
      const claim = Client.readClaim(directory)
      if (claim === undefined) return notHeld("it holds no process")
      if (Option.isNone(claim)) {
        return Effect.fail(holderFailed(directory, `${Protocol.files.held} makes no sense: is it of another version?`))
      }
      return "child" in claim.value ? Effect.succeed(claim.value) : notHeld("it has not been started, or could not be")
    })

  const attach = Effect.fnUntraced(
    function*(options: AttachOptions & { readonly fromStart: boolean }): Effect.fn.Return<
      HeldProcess,
      ProcessError,
      Scope.Scope
    > {
      const held = yield* readHeld(options.directory)
      return yield* Held.make(host, held, yield* hold(options.directory, held), options)
    }
  )

  const spawn = Effect.fn("ProcessHolder.spawn")(function*(
    command: ChildProcess.StandardCommand,
    options: HoldOptions
  ): Effect.fn.Return<HeldProcess, ProcessError, Scope.Scope> {
    const { plan, replay, tailBytes } = yield* check(command, options)
    const { cgroup, directory, note = "" } = options
    const { launch } = plan
    const mark = `held-${NodeCrypto.randomBytes(8).toString("hex")}.1`
    const order: Protocol.Order = {
      version: Protocol.version,
      directory,
      bootId: host.bootId,
      mark,
      launch: {
        executable: launch.executable,
        args: launch.args,
        env: { ...launch.env, [Mark.variable]: mark },
        cwd: NodePath.resolve(launch.cwd ?? "."),
        stdio: launch.stdio.map((kind, fd) => fd === 0 ? "ignore" : kind),
        cgroup,
        dieWithParent: true
      },
      setpriv: yield* setpriv,
      tailBytes,
      note,
      replayed: replay
    }
    const begin = Effect.andThen(
      startHolder(order),
      attach({ directory, policy: options.policy ?? plan.policy, onShutdown: options.onShutdown, fromStart: true })
    )
    const scope = yield* Scope.fork(yield* Effect.scope)
    return yield* begin.pipe(
      Scope.provide(scope),
      // Whatever was started by then is not wanted. A directory that another has is left to it.
      Effect.onError((cause) =>
        Effect.andThen(
          Scope.close(scope, Exit.failCause(cause)),
          Client.isOf(directory, mark) ? destroy({ directory }) : Effect.void
        )
      )
    )
  })

  /** SIGKILL to all that the process is known by. */
  const kill = Effect.fnUntraced(function*(claim: HolderSchema.Claim) {
    if ("child" in claim) {
      if (claim.cgroup !== null) yield* Effect.ignore(host.cgroup(claim.cgroup).kill)
      else if (yield* Held.lives(host, claim.child)) {
        yield* Effect.ignore(host.kill(-claim.child.pid, "SIGKILL"))
      }
    }
    // A look takes milliseconds, in which one that has ended may have left its pid to somebody else.
    for (const { pid, startTime } of yield* marked(claim)) {
      if (yield* Held.lives(host, { bootId: host.bootId, pid, startTime })) {
        yield* Effect.ignore(host.kill(pid, "SIGKILL"))
      }
    }
  })
  /** With the mark of the holder itself, a child that was just being made. */
  const marked = ({ holder, mark }: HolderSchema.Claim) =>
    Effect.map(
      host.started(holder?.startTime ?? 0),
      (all) =>
        all.filter((info) =>
          isAlive(info) && (info.mark === mark || (info.mark === Protocol.ownMark(mark) && info.pid !== holder?.pid))
        )
    )
  const isLeft = Effect.fnUntraced(function*(claim: HolderSchema.Claim) {
    if ("child" in claim) {
      if (yield* Held.lives(host, claim.child)) return true
      if (claim.cgroup !== null && (yield* host.cgroup(claim.cgroup).populated)) return true
    }
    return (yield* marked(claim)).length > 0
  })

  const destroy: ProcessHolder["Service"]["destroy"] = Effect.fn("ProcessHolder.destroy")(
    function*({ directory, dryRun = false }): Effect.fn.Return<Destruction> {
      const wrong = Client.faultOf(directory)
      if (wrong !== undefined) return wrong.isThere ? { _tag: "Foreign", why: wrong.why } : { _tag: "Absent" }
      if (Client.readClaim(directory) === undefined && (dryRun || Client.preclude(directory))) return { _tag: "Absent" }
      const claim = Option.getOrUndefined(Client.readClaim(directory) ?? Option.none())
      if (claim === undefined) return { _tag: "Stuck", why: `${directory}/${Protocol.files.held} makes no sense` }
      const { holder } = claim
      // After another boot there is nothing but files.
      if (holder === null || holder.bootId !== host.bootId) return { _tag: "Absent" }
      const holderGone = Effect.map(Held.lives(host, holder), (isThere) => !isThere)
      const wasGone = (yield* holderGone) && !(yield* isLeft(claim))
      if (wasGone || dryRun) return { _tag: wasGone ? "Absent" : "Destroyed" }

      // One that has no child yet is not to have one.
      if (!("child" in claim) && !(yield* holderGone)) {
        yield* Effect.ignore(host.kill(holder.pid, "SIGKILL"))
        yield* Effect.timeoutOption(pollUntil(holderGone), dyingTime)
      }
      const killed = Effect.gen(function*() {
        // It may have got its child at the last moment.
        const now = Option.getOrElse(Client.readClaim(directory) ?? Option.none(), () => claim)
        yield* kill(now)
        return !(yield* isLeft(now))
      })
      const isKilled = yield* Effect.timeoutOption(pollUntil(killed), dyingTime)
      // A holder writes down how it ended, unless it cannot.
      yield* Effect.timeoutOption(pollUntil(holderGone), writingTime)
      if (!(yield* holderGone)) {
        yield* Effect.ignore(host.kill(holder.pid, "SIGKILL"))
        yield* Effect.timeoutOption(pollUntil(holderGone), dyingTime)
      }
      if (Option.isSome(isKilled) && (yield* holderGone)) return { _tag: "Destroyed" }
      return {
        _tag: "Stuck",
        why: `it was killed, and did not end within ${dyingTime}: does it wait for a device (D)?`
      }
    }
  )

  return ProcessHolder.of({
    spawn,
    attach: Effect.fn("ProcessHolder.attach")((options) => attach({ ...options, fromStart: false })),
    follow: Held.follow,
    destroy
  })
})

/**
 * Holders that are processes of the Node that runs us; its program is started detached, in a session of its own.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessHolder, NodeProcessHost, ProcessHolder } from "effect-microvm-runtime/process"
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as ChildProcess from "effect/process/ChildProcess"
 * import { mkdtempSync, rmSync } from "node:fs"
 * import { tmpdir } from "node:os"
 * import { join } from "node:path"
 *
 * const directory = mkdtempSync(join(tmpdir(), "held-"))
 * const program = Effect.gen(function*() {
 *   const holder = yield* ProcessHolder.ProcessHolder
 *   const command = ChildProcess.make("sh", ["-c", "sleep 0.1; echo done; exit 7"])
 *   yield* Effect.scoped(holder.spawn(command, { directory }))
 *   const process = yield* holder.attach({ directory })
 *   return [ExitStatus.format(yield* process.exit), (yield* process.tail).stdout.text]
 * })
 * const layer = Layer.provideMerge(NodeProcessHolder.layer, NodeProcessHost.layer)
 * await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(layer))) // => ["exited with code 7", "done\n"]
 * rmSync(directory, { recursive: true })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<ProcessHolder, never, ProcessHost> = Layer.effect(ProcessHolder, make)
