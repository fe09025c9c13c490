import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Printable from "../../lifecycle/Printable.ts"
import type { ShutdownTarget } from "../../lifecycle/Shutdown.ts"
import type { Survivor } from "../../lifecycle/ShutdownOutcome.ts"
import type { Signal } from "../../lifecycle/Signal.ts"
import type { KillScope } from "../KillScope.ts"
import type { ProcessError } from "../ProcessError.ts"
import { isAlive, type ProcessHost, type ProcessInfo } from "../ProcessHost.ts"
import * as Reach from "./reach.ts"

const inReach = ({ command, pid, state }: ProcessInfo): Survivor => ({
  pid,
  command: Printable.onOneLine(command),
  why: state === "D" ? "uninterruptible sleep (D)" : `did not end (state ${state})`
})

const outOfReach = (killScope: KillScope) => ({ command, pid }: ProcessInfo): Survivor => ({
  pid,
  command: Printable.onOneLine(command),
  why: killScope._tag === "Group" ? "outside the process group" : "a descendant; the kill scope was the process alone"
})

/** Makes a kill scope something that the shutdown engine can end. */
export const make = (
  host: ProcessHost["Service"],
  leader: Reach.Leader,
  killScope: KillScope,
  mark: string | undefined
): ShutdownTarget<Signal, ProcessError> => {
  const reach = killScope._tag === "CGroup"
    ? Reach.controlGroup(host, leader, host.cgroup(killScope.path))
    : killScope._tag === "Group"
    ? Reach.group(host, leader, killScope.pgid, mark)
    : Reach.alone(host, leader)

  // Nothing leaves a cgroup; for the other scopes the mark finds what has left.
  const escaped = killScope._tag === "CGroup" || mark === undefined
    ? Effect.succeed([])
    : Effect.map(host.started(leader.startTime), (all) => all.filter((info) => info.mark === mark && isAlive(info)))

  return {
    poll: Effect.flatMap(leader.poll, (status) =>
      Option.isNone(status)
        ? Effect.succeed(status)
        : Effect.map(reach.isEmpty, (isEmpty) => isEmpty ? status : Option.none())),
    ended: Effect.tap(leader.exit, () => reach.awaitEmpty),
    request: reach.request,
    remains: Effect.gen(function*() {
      const left = yield* reach.members
      const status = yield* leader.poll
      const known = new Set([leader.pid, ...left.map((info) => info.pid)])
      const away = (yield* escaped).filter((info) => !known.has(info.pid))
      return { status, survivors: [...left.map(inReach), ...away.map(outOfReach(killScope))] }
    })
  }
}
