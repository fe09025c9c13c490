import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as GuestCommand from "../../guest/GuestCommand.ts"
import type { Entry } from "../../journal/Journal.ts"
import type * as Machine from "../../microvm/Machine.ts"
import * as MicroVmError from "../../microvm/MicroVmError.ts"
import { MicroVmProvider } from "../../microvm/MicroVmProvider.ts"
import type * as Supervisor from "../../supervisor/Supervisor.ts"
import * as WarmMachine from "../../warm/WarmMachine.ts"
import * as WarmProgress from "../../warm/WarmProgress.ts"
import { Reporter } from "../Reporter.ts"
import type { Place } from "../RunHost.ts"
import type { RunOptions } from "../RunOptions.ts"
import * as Snapshots from "../Snapshots.ts"

/** The label of a record that says which command in the guest is the run's. */
const commandLabel = "guest-command"
const CommandLabel = Schema.fromJsonString(GuestCommand.Description)
/** The labels of those that visitors have started, with the slot of each. */
const visitorLabel = "visitor-command-"
/** What people are shown of a command. */
const shownCommand = 256

/** A machine whose guest answers, with the run's command if that runs already. */
export interface Up {
  readonly ready: Pick<WarmMachine.WarmMachine, "agent" | "labels" | "machine" | "slots">
  readonly entry: Entry
  /** Absent where it is one that was left by another process. */
  readonly start?: WarmMachine.Start
  readonly command?: GuestCommand.Description
}

interface Coming {
  readonly id: string
  readonly options: RunOptions
  readonly place: Place
  readonly phase: WarmMachine.Options["phase"]
  /** Told of each machine, and that the one before is no more. */
  readonly onMachine: (machine: Machine.Machine | undefined) => Effect.Effect<void>
}

/** Of all steps, these are worth a line that stays; the others are what the live line is for. */
const isWorthALine = ({ _tag }: WarmProgress.Progress): boolean =>
  _tag === "Making" || _tag === "Remaking" || _tag === "WaitingForMaker" || _tag === "BootingCold" ||
  _tag === "Rebuilding"

/** A network card more than there is to be, or one less, is no fault of the snapshot where nothing else is amiss. */
const withFlag = ({ network }: RunOptions) => (error: WarmMachine.WarmError): WarmMachine.WarmError => {
  if (error.reason._tag !== "SnapshotUnusable") return error
  const { snapshot, why } = error.reason
  const [flag, words] = network._tag === "None" ? ["nat", "it also has"] : ["none", "here there is also"]
  const cards = new RegExp(`^${words} (network card|interface \\w+)$`)
  return why.every((one) => cards.test(one))
    ? MicroVmError.make(new MicroVmError.SnapshotUnusable({ snapshot, why, remedy: `Write --network ${flag}` }))
    : error
}

/** Brings a machine up, with what the run's place has for it. */
export const launch = Effect.fnUntraced(function*({ id, onMachine, options, phase, place }: Coming) {
  const { note } = yield* Reporter
  const { backend } = yield* MicroVmProvider
  const from = typeof options.start === "object" ? yield* Snapshots.resolve(options.start.from) : undefined
  let maker: number | undefined
  const onProgress = (progress: WarmProgress.Progress) =>
    Effect.gen(function*() {
      if (progress._tag === "Remaking" || progress._tag === "BootingCold") yield* onMachine(undefined)
      // It is told ten times a second.
      if (progress._tag === "WaitingForMaker" && progress.pid === maker) return
      if (progress._tag === "WaitingForMaker") maker = progress.pid
      if (isWorthALine(progress)) yield* note(WarmProgress.format(progress))
    })
  const bring = ({ before, drives, networks }: Supervisor.Provision) =>
    WarmMachine.launch({
      id,
      image: options.image,
      vcpus: options.vcpus,
      memoryMib: options.memoryMib,
      start: typeof options.start === "string" ? options.start : { from: from ?? options.start.from },
      networks,
      drives,
      before,
      phase,
      onMachine,
      onProgress
    }).pipe(Effect.mapError(withFlag(options)))
  const { supervised: { entry }, ...ready } = yield* place.supervisor.launch({
    id,
    keep: options.detach,
    labels: { backend, image: options.image, command: options.command.join(" ").slice(0, shownCommand) },
    resources: place.resources,
    // Not before the last words of the command are heard.
    releaseWhen: "closed",
    bring
  })
  const up: Up = { ready, entry, start: ready.start }
  return up
})

/**
 * Gets hold of the machine that another process has left, and of what it was to do. `onRecovered` is told what becomes of one that
 * nobody can go on with; one whose guest does not answer is as it was.
 */
export const resume = Effect.fnUntraced(function*(
  { id, onMachine, place }: Coming,
  onRecovered: (recovered: Supervisor.Recovered) => void
) {
  const [recovered] = yield* place.supervisor.recover({ mode: "adopt" })
  const [supervised] = yield* place.supervisor.machines
  const refuse = (why: string) =>
    MicroVmError.fail(new MicroVmError.AttachFailed({ id, isHeld: recovered?.action === "Kept", why }))
  if (supervised === undefined) {
    if (recovered !== undefined) onRecovered(recovered)
    return yield* refuse(recovered?.end ?? recovered?.why ?? "nothing is written of it")
  }
  const { entry, machine, released } = supervised
  yield* onMachine(machine)
  const { labels } = yield* entry.record
  const command = Schema.decodeUnknownOption(CommandLabel)(labels[commandLabel])
  // It may have started, and is not to run twice.
  if (Option.isNone(command)) {
    const why = "its command was about to start, and nobody knows whether it did"
    yield* Effect.orDie(machine.shutdown({ request: { atLeast: "SIGKILL" } }))
    const all = yield* released
    onRecovered({ id, action: all.left === 0 ? "Reclaimed" : "Left", why, released: all })
    return yield* refuse(why)
  }
  // Who was killed while it saved the machine has left it standing still, and a guest that stands still does not answer.
  if ((yield* machine.state) === "paused") yield* machine.resume
  const ready = yield* WarmMachine.fromMachine(machine, { labels })
  // What visitors of the one who is gone have started there is nobody's any more; its slots are to be free again.
  const strays = Object.entries(labels).flatMap(([name, text]) =>
    name.startsWith(visitorLabel) ? Option.toArray(Schema.decodeUnknownOption(CommandLabel)(text)) : []
  )
  yield* Effect.forEach(
    strays,
    (stray) => Effect.ignore(Effect.scoped(GuestCommand.attach(ready.agent, ready.slots, stray))),
    { concurrency: "unbounded", discard: true }
  )
  const up: Up = { ready, entry, command: command.value }
  return up
})

/** Writes down which command a visitor has started, until the scope closes. */
export const rememberVisitor = (entry: Entry, description: GuestCommand.Description) => {
  const label = `${visitorLabel}${description.slot}`
  return Effect.ignore(Effect.acquireRelease(
    entry.label({ [label]: JSON.stringify(description) }),
    () => Effect.ignore(entry.label({ [label]: "" }))
  ))
}

/** Writes down which command is the run's, for whoever resumes it. */
export const remember = (entry: Entry, { description }: GuestCommand.GuestCommand) =>
  entry.label({ [commandLabel]: JSON.stringify(description) })
