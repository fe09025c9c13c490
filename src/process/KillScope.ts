/**
 * What dies with a process.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

const reason = {
  /** Why this one: `"asked for"`, or what automatic choice found. */
  reason: Schema.String
}

/**
 * How far a request to end reaches:
 *
 * - `Process`: the one process.
 * - `Group`: its process group. A descendant that calls setsid(2) or setpgid(2) leaves it and survives.
 * - `CGroup`: a control group (v2) of its own. Nothing leaves it by setsid, double fork or a change of user, and "empty" is
 *   what the kernel says (`populated 0`), not what a search has not found.
 *
 * What outlives `Process` and `Group` is not killed, but it is named in the shutdown's outcome.
 *
 * **Gotchas**
 *
 * - What has left its group and cleared its environment carries no mark any more: with `Process` and `Group` it is neither named,
 *   nor found by the guard when we are killed. For programs that nobody trusts, ask for `"cgroup"`.
 * - With `Process`, the child dies with us when we are killed. What it has started does so only where the guard runs, which is started
 *   for children of another scope.
 * - Whoever may write to another `cgroup.procs` (root, the user that cgroups are delegated to, and systemd for a session or a
 *   unit that it starts) can move a process out of its cgroup. It is neither killed nor named then; the guard finds it by its
 *   mark when we are killed.
 *
 * @category models
 * @since 0.1.0
 */
export const KillScope = Schema.TaggedUnion({
  Process: reason,
  // kill(2) takes 0 for our own group and -1 for every process there is.
  Group: { ...reason, pgid: Schema.Int.check(Schema.isGreaterThanOrEqualTo(2)) },
  CGroup: { ...reason, path: Schema.String }
})

/**
 * @category models
 * @since 0.1.0
 */
export type KillScope = typeof KillScope.Type

/**
 * What to ask for: `"auto"` takes a cgroup where the host lets us make one, else the group.
 *
 * @category options
 * @since 0.1.0
 */
export type Choice = "auto" | "process" | "group" | "cgroup"

/**
 * One phrase for people.
 *
 * ```ts import.meta.vitest
 * import { KillScope } from "effect-microvm-runtime/process"
 * KillScope.format({ _tag: "Group", pgid: 12, reason: "asked for" }) // => "process group 12 (asked for)"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (self: KillScope): string => {
  switch (self._tag) {
    case "Process":
      return `the process alone (${self.reason})`
    case "Group":
      return `process group ${self.pgid} (${self.reason})`
    case "CGroup":
      return `cgroup ${self.path} (${self.reason})`
  }
}
