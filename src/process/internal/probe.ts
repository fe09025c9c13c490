import type { LaunchPlan } from "../ProcessHost.ts"

/** A program that says by its exit code whether a way to start programs works here. */
export const make = (executable: string, args: ReadonlyArray<string>): LaunchPlan => ({
  executable,
  args,
  env: {},
  cwd: "/",
  stdio: ["ignore", "ignore", "ignore"],
  detached: true,
  cgroup: undefined,
  dieWithParent: false
})

/** Is this the setpriv(1) of util-linux, and does it know `--pdeathsig`? */
export const setpriv = (executable: string): LaunchPlan =>
  make(executable, ["--pdeathsig", "KILL", "--", "/bin/sh", "-c", "exit 0"])
