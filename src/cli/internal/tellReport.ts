import * as Duration from "effect/Duration"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { RunEnd, RunReport } from "../../lifecycle/RunReport.ts"
import * as ShutdownOutcome from "../../lifecycle/ShutdownOutcome.ts"
import * as Run from "../Run.ts"

const tellEnd = (end: RunEnd): string | undefined => {
  switch (end._tag) {
    case "Completed":
      return end.status._tag === "Exited" ? undefined : `the command was ${ExitStatus.format(end.status)}`
    case "Interrupted":
      return end.signal === "SIGPIPE" ? undefined : `ended by ${end.signal}`
    case "TimedOut":
      return `the command did not end within ${Duration.format(end.after)}`
    case "MachineEnded":
      return Run.withConsole(`the machine ended before the command: ${end.why}`, end.consoleTail)
    case "Failed":
    case "NoBackend":
    case "Usage":
      return end.message
  }
}

/**
 * What a person has to be told of a run that the command has not told itself.
 *
 * @category conversions
 * @since 0.1.0
 */
export const tell = ({ end, shutdown }: RunReport): ReadonlyArray<string> => {
  const text = tellEnd(end)
  return [
    ...(text === undefined ? [] : [text]),
    ...(shutdown === undefined || ShutdownOutcome.isComplete(shutdown)
      ? []
      : [`the machine could not be ended: ${ShutdownOutcome.format(shutdown)}`])
  ]
}
