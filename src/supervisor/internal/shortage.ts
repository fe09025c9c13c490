import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Limits from "../../host/Limits.ts"
import type { Claim } from "../../journal/MachineRecord.ts"
import type { ExitStatus } from "../../lifecycle/ExitStatus.ts"
import { Shortage } from "../../microvm/MachineEnd.ts"

const decode = Schema.decodeUnknownOption(Limits.kind.data)

/** What the cgroups of a machine have counted, if it has any. */
export const count = (
  claims: ReadonlyArray<Claim>
): Effect.Effect<Limits.Events | undefined, never, FileSystem.FileSystem> => {
  const [data] = claims.flatMap((claim) => claim.kind === Limits.kind.kind ? Option.toArray(decode(claim.data)) : [])
  return data === undefined ? Effect.undefined : Limits.events(data)
}

/**
 * What a monitor has ended of, by what was counted `since`. Out of memory, the kernel sends SIGKILL, and nothing else; for want
 * of a thread, a monitor gives up by itself. Who was killed by a signal of somebody else lacked neither.
 */
export const find = (
  status: ExitStatus,
  now: Limits.Events | undefined,
  since: Limits.Events | undefined
): Option.Option<Shortage> => {
  const isMore = (key: "oomKills" | "pidsRefused"): boolean => (now?.[key] ?? 0) > (since?.[key] ?? 0)
  const isKilled = status._tag === "Signaled" && status.signal === "SIGKILL"
  if ((isKilled || status._tag === "Lost") && isMore("oomKills")) {
    return Option.some(Shortage.cases.Memory.make(now?.memoryMib === undefined ? {} : { limitMib: now.memoryMib }))
  }
  return !isKilled && isMore("pidsRefused")
    ? Option.some(Shortage.cases.Tasks.make(now?.pids === undefined ? {} : { limit: now.pids }))
    : Option.none()
}
