/**
 * `microvm snapshot`: what there is to restore machines from.
 *
 * @since 0.1.0
 */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { SnapshotStore } from "../microvm/SnapshotStore.ts"
import * as GoldenMachines from "../warm/GoldenMachines.ts"
import { Control, type ControlError } from "./Control.ts"
import { exitWith, jsonFlag, print, printJson, untilSignal } from "./internal/handlers.ts"
import { formatTook, Reporter } from "./Reporter.ts"
import * as Snapshots from "./Snapshots.ts"

const exitCodes = [
  "    0  it is done, and all is well",
  "    1  a snapshot or machine is not there, not usable, or not ready",
  "   64  bad command line",
  "  125  the runtime failed"
]

const describe = (...lines: ReadonlyArray<string>) =>
  Command.withDescription([...lines, "Exits with", "", ...exitCodes].join("\n  "))

/** A fault of what was named is no fault of ours. */
const codeOf = (error: MicroVmError.MicroVmError | ControlError): number => {
  switch (error.reason._tag) {
    case "InvalidSpec":
      return ExitCode.run.usage
    case "SnapshotNotFound":
    case "SnapshotUnusable":
    case "SnapshotInUse":
    case "NoSuchMachine":
      return 1
    case "Refused":
      return error.reason.reason === "Failed" ? ExitCode.run.runtimeFailed : 1
    default:
      return ExitCode.run.runtimeFailed
  }
}

/** What was typed is no machine that is to be made. */
const textsOf = ({ message, reason }: MicroVmError.MicroVmError | ControlError): ReadonlyArray<string> =>
  reason._tag === "InvalidSpec"
    ? reason.faults.map(({ field, remedy, value }) =>
      `${field === "id" ? "machine" : field} ${JSON.stringify(value)} is not possible: ${remedy}`
    )
    : [message]

const tell = (error: MicroVmError.MicroVmError | ControlError) =>
  Effect.flatMap(Reporter, ({ line }) => Effect.forEach(textsOf(error), line, { discard: true }))

const fail = (error: MicroVmError.MicroVmError | ControlError) => Effect.andThen(tell(error), exitWith(codeOf(error)))

const named = Argument.String("snapshot").pipe(
  Argument.withDescription("A name, an id, or the first 8 or more digits of an id")
)

const ls = Command.make(
  "ls",
  { json: jsonFlag },
  Effect.fnUntraced(function*({ json }) {
    yield* Effect.gen(function*() {
      const { list } = yield* SnapshotStore
      const listed = (yield* list).map(Snapshots.toListed)
      const encode = Schema.encodeEffect(Schema.Array(Snapshots.Listed))
      yield* json
        ? printJson(yield* Effect.orDie(encode(listed)))
        : print(Snapshots.format(listed, yield* Clock.currentTimeMillis))
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(Command.withDescription("List the snapshots, the one used last first"))

/** Does it for each, also after one of them has failed; the gravest code counts. */
const forEach = Effect.fnUntraced(function*<R>(
  all: ReadonlyArray<string>,
  act: (name: string) => Effect.Effect<void, MicroVmError.MicroVmError, R>
) {
  let code = 0
  for (const one of all) {
    const failed = (error: MicroVmError.MicroVmError) => {
      code = Math.max(code, codeOf(error))
      return tell(error)
    }
    yield* Effect.catch(act(one), failed)
  }
  yield* exitWith(code)
})

const rm = Command.make(
  "rm",
  { snapshots: named.pipe(Argument.atLeast(1)) },
  Effect.fnUntraced(function*({ snapshots }) {
    const store = yield* SnapshotStore
    const remove = Effect.fnUntraced(function*(given: string) {
      const removed = yield* store.remove(yield* Snapshots.resolve(given))
      if (!removed) return yield* MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot: given }))
    })
    yield* forEach(snapshots, remove).pipe(untilSignal)
  })
).pipe(
  describe(
    "Remove snapshots. A name is forgotten, and its snapshot goes when no other name means it; an id is removed at once.",
    "Machines that were restored from it go on. A golden machine is made again when it is needed.",
    ""
  ),
  Command.withShortDescription("Remove snapshots")
)

const verify = Command.make(
  "verify",
  { snapshots: named.pipe(Argument.variadic()) },
  Effect.fnUntraced(function*({ snapshots }) {
    const store = yield* SnapshotStore
    const check = Effect.fnUntraced(function*(given: string) {
      yield* store.verify(yield* Snapshots.resolve(given))
      yield* print(`ok    ${given}`)
    })
    yield* Effect.gen(function*() {
      const all = snapshots.length > 0
        ? snapshots
        : (yield* store.list).map(({ id, names }) => names[0] ?? id)
      yield* forEach(
        all,
        (given) => Effect.tapError(check(given), (error) => codeOf(error) === 1 ? print(`FAIL  ${given}`) : Effect.void)
      )
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(
  describe("Read every byte of snapshots, of all when none is named, and tell which are not what they were.", ""),
  Command.withShortDescription("Check that snapshots are what they were")
)

const save = Command.make(
  "save",
  {
    id: Argument.String("id").pipe(Argument.withDescription("The machine: what microvm run was given by --name")),
    name: Argument.String("name").pipe(Argument.withDescription("What the snapshot is to be called"))
  },
  Effect.fnUntraced(function*({ id, name }) {
    const reporter = yield* Reporter
    const control = yield* Control
    yield* Effect.gen(function*() {
      yield* MachineSpec.checkId(id)
      yield* GoldenMachines.checkName(name)
      const { stoodStill, took } = yield* reporter.during("saving the machine")(
        control.ask(id, { _tag: "Save", name })
      )
      const [all, still] = [took, stoodStill].map((millis) => formatTook(Duration.millis(millis)))
      yield* reporter.line(`saved as ${name} in ${all}; the machine stood still for ${still}`)
    }).pipe(Effect.catch(fail), untilSignal)
  })
).pipe(
  describe(
    "Save the machine of a microvm run that goes on elsewhere, for microvm run --from NAME. It stands still meanwhile, and then",
    "goes on. Its command goes on in each machine that is restored, too, and what it writes there goes nowhere.",
    ""
  ),
  Command.withShortDescription("Save the machine of a run")
)

/**
 * All of them.
 *
 * @category commands
 * @since 0.1.0
 */
export const snapshot = Command.make("snapshot").pipe(
  Command.withDescription("Snapshots, from which machines are restored"),
  Command.withSubcommands([ls, rm, verify, save])
)
