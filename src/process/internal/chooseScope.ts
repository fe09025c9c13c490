import * as Effect from "effect/Effect"
import type { Choice } from "../KillScope.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { CGroupSupport } from "../ProcessHost.ts"

/** What was chosen, before there is a process. */
export type ChosenScope =
  | { readonly _tag: "Process" | "Group"; readonly reason: string }
  | { readonly _tag: "CGroup"; readonly root: string; readonly reason: string }

/** Takes what was asked for or fails; only `"auto"` may take less than the best. */
export const chooseScope = Effect.fnUntraced(function*(
  choice: Choice,
  cgroupSupport: Effect.Effect<CGroupSupport, ProcessError>,
  detached: boolean
): Effect.fn.Return<ChosenScope, ProcessError> {
  if (choice === "process") return { _tag: "Process", reason: "asked for" }
  if (choice === "group") {
    if (detached) return { _tag: "Group", reason: "asked for" }
    const why = `"group" would be our own as "detached" is false: leave "detached" out, or use "process"`
    return yield* fromReason(ProcessErrorReason.InvalidArgument({ field: "killScope", why }))
  }
  const support = yield* cgroupSupport
  if (support._tag === "Usable") {
    return { _tag: "CGroup", root: support.root, reason: choice === "auto" ? "auto" : "asked for" }
  }
  if (choice === "cgroup") {
    return yield* fromReason(ProcessErrorReason.ScopeUnavailable({ killScope: choice, why: support.why }))
  }
  return detached
    ? { _tag: "Group", reason: `auto: ${support.why}` }
    : { _tag: "Process", reason: `auto: not detached, and ${support.why}` }
})
