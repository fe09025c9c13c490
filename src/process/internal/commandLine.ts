import type { LaunchPlan } from "../ProcessHost.ts"
import type { CGroups } from "../SpawnOptions.ts"

/**
 * Runs in the new process: $1 is the pid of the parent to die with, or nothing; then come the cgroups to enter, and nothing
 * again. Entering from inside leaves no moment in which a first fork could stay outside. The kernel's word on the parent's
 * death only counts from when it was asked for, hence the look at $PPID. A variable could be one of the program's.
 */
const prelude = [
  `[ -z "$1" ] || [ "$PPID" = "$1" ] || exit 125`,
  "shift",
  `while [ -n "$1" ]; do`,
  `  { echo 0 > "$1/cgroup.procs"; } 2>/dev/null || { echo "cannot enter cgroup $1" >&2; exit 125; }`,
  "  shift",
  "done",
  "shift"
].join("\n")

/** Variables that a shell sets on its own account. */
const shellVariables = ["PATH", "PWD", "OLDPWD", "SHLVL"]

const isIdentifier = (name: string): boolean => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name)

/** All that there are, that of version 2 first. */
export const directoriesOf = ({ path, v1 = [] }: CGroups): ReadonlyArray<string> =>
  path === undefined ? v1 : [path, ...v1]

/** What of a plan makes its command line. */
export type Program = Pick<LaunchPlan, "args" | "cgroup" | "dieWithParent" | "env" | "executable">

/**
 * The command line that starts a plan: by way of setpriv(1) and a shell, which both become the program in the end.
 *
 * `isUnguarded`: nobody but the kernel sees to it that the child dies with us, so that it may not miss our death.
 */
export const commandLine = (
  plan: Program,
  how: { readonly setpriv: string | undefined; readonly parent: number; readonly isUnguarded?: boolean }
): readonly [string, ReadonlyArray<string>] => {
  const dies = how.setpriv !== undefined && plan.dieWithParent
  const before = dies ? [how.setpriv, "--pdeathsig", "KILL", "--"] : []
  const program = [plan.executable, ...plan.args]
  const cgroups = plan.cgroup === undefined ? [] : directoriesOf(plan.cgroup)
  const needsShell = cgroups.length > 0 || (dies && how.isUnguarded === true)
  const inside = !needsShell ? program : [
    "/bin/sh",
    "-c",
    [prelude, ...shellVariables.flatMap((name) => name in plan.env ? [] : [`unset ${name}`]), `exec "$@"`].join("\n"),
    "sh",
    dies ? String(how.parent) : "",
    ...cgroups,
    "",
    // Some shells drop variables that they cannot name.
    ...oddVariables(plan),
    ...program
  ]
  const [file = plan.executable, ...args] = [...before, ...inside]
  return [file, args]
}

const oddVariables = (plan: Program): ReadonlyArray<string> => {
  const odd = Object.entries(plan.env).flatMap(([name, value]) => isIdentifier(name) ? [] : [`${name}=${value}`])
  return odd.length === 0 ? [] : ["/usr/bin/env", ...odd]
}
