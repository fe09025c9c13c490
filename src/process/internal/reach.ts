import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { ExitStatus } from "../../lifecycle/ExitStatus.ts"
import type { Signal } from "../../lifecycle/Signal.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import { type CGroup, isAlive, type ProcessHost, type ProcessInfo } from "../ProcessHost.ts"

/** The process that a kill scope belongs to. */
export interface Leader {
  readonly pid: number
  readonly startTime: number
  readonly poll: Effect.Effect<Option.Option<ExitStatus>>
  readonly exit: Effect.Effect<ExitStatus>
  readonly signal: (signal: Signal) => Effect.Effect<void, ProcessError>
  /** Up to this tick its pid belonged to it for certain; `undefined` while it has not been seen to be gone. */
  readonly pinnedUntil: () => number | undefined
}

/** A kill scope at work. */
export interface Reach {
  readonly request: (signal: Signal) => Effect.Effect<unknown, ProcessError>
  /** What is alive in it. */
  readonly members: Effect.Effect<ReadonlyArray<ProcessInfo>>
  /** Is nothing alive in it, once the leader has ended? */
  readonly isEmpty: Effect.Effect<boolean>
  readonly awaitEmpty: Effect.Effect<void>
}

/** What a stopped process needs beside a signal to act on it; signals that stop, kill or continue go alone. */
const goAlone: ReadonlySet<Signal> = new Set<Signal>(["SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT"])
const isFollowedByContinue = (signal: Signal): boolean => !goAlone.has(signal)

/** Sends `signal`, and then SIGCONT where it takes one to be heard. */
const withContinue = (
  send: (signal: Signal) => Effect.Effect<unknown, ProcessError>
) =>
(signal: Signal): Effect.Effect<unknown, ProcessError> =>
  isFollowedByContinue(signal) ? Effect.andThen(send(signal), send("SIGCONT")) : send(signal)

/**
 * Looks again and again: when the event comes, and anyway after pauses that grow (milliseconds), for an event can be lost
 * and many states have none.
 */
export const pollUntil = (
  check: Effect.Effect<boolean>,
  options: { readonly event?: Effect.Effect<void>; readonly longest?: number } = {}
): Effect.Effect<void> => {
  const { event = Effect.never, longest = 50 } = options
  const look = (pause: number): Effect.Effect<void> =>
    Effect.flatMap(check, (holds) =>
      holds
        ? Effect.void
        : Effect.andThen(Effect.raceFirst(event, Effect.sleep(pause)), look(Math.min(longest, pause * 1.5))))
  return look(5)
}

const alone = (host: ProcessHost["Service"], leader: Leader): Reach => ({
  request: withContinue(leader.signal),
  members: Effect.flatMap(leader.poll, (status) =>
    Option.isSome(status)
      ? Effect.succeed([])
      : Effect.map(host.inspect(leader.pid), (info) => Option.toArray(info).filter(isAlive))),
  isEmpty: Effect.succeed(true),
  awaitEmpty: Effect.void
})

const group = (host: ProcessHost["Service"], leader: Leader, pgid: number, mark: string | undefined): Reach => {
  /**
   * Live members, if the group is the one we made. Its number cannot be given away while a member is there, dead or
   * alive; so it is ours while the leader is not reaped, and later as long as one member started before that or carries
   * our mark. A tick is 10 ms, so a member can start in the very one in which the leader is reaped; and so can somebody
   * else's process that is given the number, for which the group has to be without any member.
   */
  const members = Effect.gen(function*() {
    if (!(yield* host.groupExists(pgid))) return []
    const hadEnded = leader.pinnedUntil() !== undefined
    const all = (yield* host.list(leader.startTime)).filter((info) => info.group === pgid)
    const pinnedUntil = leader.pinnedUntil()
    const isAnothers = all.some((info) =>
      info.pid === pgid && (info.startTime !== leader.startTime || (hadEnded && isAlive(info)))
    )
    const isOurs = !isAnothers && (pinnedUntil === undefined ||
      all.some((info) => info.startTime <= pinnedUntil || (mark !== undefined && info.mark === mark)))
    return isOurs ? all.filter(isAlive) : []
  })
  const isEmpty = Effect.map(members, (found) => found.length === 0)
  const send = withContinue((signal) =>
    pgid >= 2 ? host.kill(-pgid, signal) : Effect.fail(fromReason(ProcessErrorReason.InvalidArgument({
      field: "killScope.pgid",
      why: `is ${pgid}: no process group that we start has a number below 2`
    })))
  )
  return {
    request: (signal) =>
      Effect.flatMap(leader.poll, (status) => Option.isNone(status) ? Effect.succeed(false) : isEmpty).pipe(
        Effect.flatMap((gone) => gone ? Effect.void : send(signal))
      ),
    members,
    isEmpty,
    awaitEmpty: pollUntil(isEmpty)
  }
}

/**
 * What was killed together is still dying when the first end is told. A look and a watch would take a core from it, and take longer than
 * most of them have left.
 */
const dying = "1 millis"

const controlGroup = (host: ProcessHost["Service"], leader: Leader, cgroup: CGroup): Reach => {
  const isEmpty = Effect.map(cgroup.populated, (populated) => !populated)

  /**
   * To all that are in it at one moment, as kill(2) does for a group. What they fork afterwards is not signalled: it may be
   * what a handler needs to end in order. A fork between our look and the signal is left to the next stage.
   */
  const signalAll = (signal: Signal) =>
    Effect.flatMap(
      isFollowedByContinue(signal) ? cgroup.signal(signal, "SIGCONT") : cgroup.signal(signal),
      // At its very start the leader may not have entered yet.
      (reached) => reached.includes(leader.pid) ? Effect.void : withContinue(leader.signal)(signal)
    )

  let isKilled = false
  // By itself, too: at its very start the leader may not have entered yet.
  const killBoth = Effect.andThen(Effect.ignore(leader.signal("SIGKILL")), cgroup.kill)
  const kill = Effect.suspend(() => {
    isKilled = true
    return killBoth
  })

  const awaitEmpty = Effect.scoped(Effect.gen(function*() {
    if (isKilled) yield* Effect.sleep(dying)
    if (yield* isEmpty) return
    const event = yield* cgroup.watch
    yield* pollUntil(isEmpty, { event, longest: 500 })
  }))

  return {
    request: (signal) => signal === "SIGKILL" ? kill : signalAll(signal),
    members: Effect.flatMap(cgroup.members, (pids) =>
      Effect.map(
        Effect.forEach(pids, (pid) => host.inspect(pid)),
        (found) => found.flatMap(Option.toArray).filter(isAlive)
      )),
    isEmpty,
    awaitEmpty
  }
}

export { alone, controlGroup, group }
