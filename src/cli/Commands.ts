/**
 * The command line of `microvm`.
 *
 * stdout belongs to the guest's command, or to what was asked for (`--json`, `--dry-run`, help); everything else goes to
 * stderr. A handler does not exit: it hands its exit code to `ExitWith`, and the edge exits.
 *
 * @since 0.1.0
 */
import * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as EgressRule from "../host/EgressRule.ts"
import * as ExitCode from "../lifecycle/ExitCode.ts"
import { type RunEnd, RunReport } from "../lifecycle/RunReport.ts"
import * as MachineSpec from "../microvm/MachineSpec.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { MicroVmProvider } from "../microvm/MicroVmProvider.ts"
import { SnapshotStore } from "../microvm/SnapshotStore.ts"
import * as GoldenMachines from "../warm/GoldenMachines.ts"
import * as Backend from "./Backend.ts"
import { orSignal } from "./HostSignals.ts"
import { image } from "./ImageCommands.ts"
import { commandArgument, envFlag, fillEnv, workdirFlag } from "./internal/commandFlags.ts"
import { exitWith, jsonFlag, print, printJson, untilSignal } from "./internal/handlers.ts"
import { tell } from "./internal/tellReport.ts"
import * as MachineCommands from "./MachineCommands.ts"
import { Detach } from "./NodeDetach.ts"
import * as RecoverCommand from "./RecoverCommand.ts"
import { Reporter } from "./Reporter.ts"
import * as Run from "./Run.ts"
import * as RunOptions from "./RunOptions.ts"
import { snapshot } from "./SnapshotCommands.ts"
import * as Snapshots from "./Snapshots.ts"

export { ExitWith } from "./internal/handlers.ts"
export { tell } from "./internal/tellReport.ts"

const failedBefore = (options: RunOptions.RunOptions, end: RunEnd): RunReport => ({
  id: Option.getOrElse(options.name, () => "none"),
  backend: options.backend,
  backendDetail: "none",
  command: options.command,
  end,
  exitCode: ExitCode.fromRun(end),
  phases: []
})

const conclude = Effect.fnUntraced(function*(report: RunReport, asJson: boolean) {
  const reporter = yield* Reporter
  yield* Effect.forEach(tell(report), reporter.line, { discard: true })
  if (asJson) yield* printJson(yield* Effect.orDie(Schema.encodeEffect(RunReport)(report)))
  const isWhole = report.end._tag === "Completed"
  yield* exitWith(report.exitCode, { patient: isWhole, isWhole })
})

/** What is going to be started, as a plan: the machine that is restored from a snapshot is the snapshot's. */
const planOf = Effect.fnUntraced(function*(options: RunOptions.RunOptions) {
  const { plan } = yield* MicroVmProvider
  const id = Option.getOrElse(options.name, () => "dry-run")
  if (typeof options.start === "object") {
    const { list } = yield* SnapshotStore
    const wanted = yield* Snapshots.resolve(options.start.from)
    // Opening it would count as a use.
    const found = (yield* list).find((one) => one.id === wanted || one.names.includes(wanted))
    if (found === undefined) return yield* MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot: wanted }))
    const { manifest } = found
    if (manifest === undefined) {
      const why = ["its manifest cannot be read"]
      return yield* MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot: wanted, why }))
    }
    const from = { id: found.id, directory: "/SNAPSHOT", manifest }
    const spec = yield* MachineSpec.decode({ ...manifest.spec, id })
    return { how: `from: restored from snapshot ${wanted}`, spec, plan: yield* Effect.fromResult(plan(spec, { from })) }
  }
  const warm = options.start === "warm"
  const spec = yield* Effect.fromResult(
    MachineSpec.make(Run.toSpec(id, options, {
      // The image is not built for a plan, so the plan names its files by their places.
      kernel: "/IMAGE/kernel",
      initramfs: "/IMAGE/initramfs"
    }))
  )
  return {
    how: warm
      ? "warm: restored from a golden machine, which is booted as below when there is none yet"
      : "cold: booted",
    spec,
    plan: yield* Effect.fromResult(plan(spec, { template: warm }))
  }
})

const dryRun = Effect.fnUntraced(function*(options: RunOptions.RunOptions, asJson: boolean) {
  const detail = yield* Backend.BackendDetail
  const { capabilities } = yield* MicroVmProvider
  const { how, plan: { argv, backend, description: steps }, spec } = yield* planOf(options)
  const description = [
    ...steps,
    ...(capabilities.user ? ["user: one of its own, in the place of that above"] : []),
    ...(options.network._tag === "None" ? [] : [
      `network: a TAP device and addresses of its own, NAT through the host; allowed: ${
        options.network.allow.map(EgressRule.format).join(", ") || "nothing"
      }`
    ])
  ]
  yield* asJson
    ? printJson({ backend, detail, start: options.start, spec, description, argv })
    : print(
      [`${backend}: ${detail}`, how, ...description.map((line) => `- ${line}`), argv.map(quote).join(" ")].join("\n")
    )
})

const quote = (word: string): string =>
  /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`

/** Starts a run in the background. What goes wrong there until its command runs is told on our stderr. */
const startInBackground = Effect.fnUntraced(function*(options: RunOptions.RunOptions) {
  const { start } = yield* Detach
  const id = Option.isSome(options.name) ? options.name.value : yield* Run.makeId
  yield* Effect.gen(function*() {
    const started = yield* start(id)
    if (started._tag === "Ready") yield* print(id)
    else yield* exitWith(started.exitCode)
  }).pipe(untilSignal)
})

const runCommand = Command.make(
  "run",
  {
    backend: Flag.Literals("backend", Backend.choices).pipe(
      Flag.optional,
      Flag.withDescription(
        "What runs the machine; auto takes the best that works here, and says why. Default: MICROVM_BACKEND, or else auto"
      )
    ),
    name: Flag.String("name").pipe(Flag.optional, Flag.withDescription("The machine's id; made up when absent")),
    vcpus: Flag.Int("vcpus").pipe(
      Flag.optional,
      Flag.withDescription("Virtual processors, 1 to 32; 1 by default")
    ),
    memory: Flag.Int("memory").pipe(
      Flag.withMetavar("MiB"),
      Flag.optional,
      Flag.withDescription("Memory of the guest in MiB; 256 by default")
    ),
    image: Flag.String("image").pipe(Flag.optional, Flag.withDescription("The guest image; default by default")),
    cold: Flag.Boolean("cold").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Boot the machine afresh, instead of restoring it from one that was booted before")
    ),
    from: Flag.String("from").pipe(
      Flag.withMetavar("SNAPSHOT"),
      Flag.optional,
      Flag.withDescription("Restore the machine from this snapshot, by its name or id")
    ),
    env: envFlag,
    workdir: workdirFlag,
    timeout: Flag.String("timeout").pipe(
      Flag.withMetavar("DURATION"),
      Flag.optional,
      Flag.withDescription(
        "End the command this long after it started in the guest, and exit with 124: 500ms, 30s, 5m, 2h"
      )
    ),
    grace: Flag.String("grace").pipe(
      Flag.withMetavar("DURATION"),
      Flag.withDefault("5s"),
      Flag.withDescription(
        "How long the guest may take to obey its agent, and then its power button, before it is forced; 5s by default"
      )
    ),
    watchdog: Flag.String("watchdog").pipe(
      Flag.withMetavar("DURATION"),
      Flag.optional,
      Flag.withDescription(
        "End a machine that hangs, and exit with 125, once it or its guest has not answered for this long: 30s, 5m; off by default"
      )
    ),
    network: Flag.Literals("network", ["none", "nat"]).pipe(
      Flag.withDefault("none"),
      Flag.withDescription(
        "The guest's network: none, or nat, by which it reaches what --allow says through the host, and nothing else"
      )
    ),
    allow: Flag.String("allow").pipe(
      Flag.withMetavar("RULE"),
      Flag.atLeast(0),
      Flag.withDescription(
        "What the guest may reach: 10.0.0.0/8:443/tcp, [fd00::/8]:53/udp, api.example.com:443/tcp; may be repeated"
      )
    ),
    detach: Flag.Boolean("detach").pipe(
      Flag.withAlias("d"),
      Flag.withDefault(false),
      Flag.withDescription("Go on in the background once the command has started, and print the machine's id")
    ),
    dryRun: Flag.Boolean("dry-run").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Print what would be done, and do nothing")
    ),
    json: jsonFlag,
    quiet: Flag.Boolean("quiet").pipe(
      Flag.withAlias("q"),
      Flag.withDefault(false),
      Flag.withDescription("Say only what is wrong, and not how the machine came up")
    ),
    command: commandArgument
  },
  Effect.fnUntraced(function*(flags) {
    const ours = yield* Reporter
    const reporter = flags.quiet ? Reporter.quiet(ours) : ours
    const backend = yield* Effect.result(
      Option.isSome(flags.backend) ? Effect.succeed(flags.backend.value) : Backend.config
    )
    const parsed = RunOptions.fromFlags({
      ...flags,
      backend: Result.getOrElse(backend, () => "auto" as const),
      env: yield* fillEnv(flags.env)
    })
    if (Result.isFailure(backend) || Result.isFailure(parsed)) {
      if (Result.isFailure(backend)) yield* reporter.line(Backend.explain(backend.failure))
      for (const fault of Result.isFailure(parsed) ? parsed.failure.faults : []) yield* reporter.line(fault)
      return yield* exitWith(ExitCode.run.usage)
    }
    const detach = yield* Detach
    const options = parsed.success
    if (options.detach && !flags.dryRun && !detach.isBackground) return yield* startInBackground(options)
    yield* Effect.gen(function*() {
      // A host whose programs hang must not keep us from ending.
      const found = yield* orSignal(
        Layer.build(Layer.provideMerge(GoldenMachines.layer, Backend.layer(options.backend)))
      )
      if (Result.isFailure(found)) {
        return yield* conclude(failedBefore(options, { _tag: "Interrupted", signal: found.failure }), flags.json)
      }
      yield* Effect.gen(function*() {
        const backendDetail = yield* Backend.BackendDetail
        const { backend: taken } = yield* MicroVmProvider
        if (flags.dryRun) return yield* dryRun(options, flags.json)
        if (options.backend === "auto") yield* reporter.note(`backend ${taken}: ${backendDetail}`)
        const onStarted = detach.tell({ _tag: "Ready" })
        // Machines in the background are kept for who asks for them.
        const onPlace = options.detach ? () => Effect.void : detach.bequeath
        const report = yield* Run.run(options, { backendDetail, json: flags.json, onPlace, onStarted }).pipe(
          Effect.provideService(Reporter, reporter)
        )
        yield* conclude(report, flags.json)
        if (detach.isBackground && report.end._tag === "Completed") {
          yield* reporter.line(`the command has ended (${report.exitCode}): microvm logs ${report.id} has what it said`)
        }
        yield* detach.tell({ _tag: "Failed", exitCode: report.exitCode })
      }).pipe(Effect.provideContext(found.success))
    }).pipe(
      Effect.scoped,
      Effect.catch((error) => conclude(failedBefore(options, Run.toEnd(error)), flags.json))
    )
  })
).pipe(
  Command.withDescription(
    [
      "Run a command in a fresh microVM, end the machine in order, and exit with the command's exit code, or with",
      "",
      "   64  bad command line",
      "   69  no usable backend",
      "  124  --timeout passed",
      "  125  the runtime failed, or the machine ended before the command, or was ended by --watchdog",
      "  126  the command could not be executed",
      "  127  the command was not found",
      "  128+n  the command was killed by signal n, or the run was ended by it"
    ].join("\n  ")
  ),
  Command.withShortDescription("Run a command in a fresh microVM"),
  Command.withExamples([
    { command: "microvm run -- uname -a", description: "See the guest's kernel" },
    { command: "microvm run --timeout 30s -- sh -c 'make test'", description: "Give a command 30 seconds" }
  ])
)

const doctor = Command.make(
  "doctor",
  {
    network: Flag.Literals("network", ["none", "nat"]).pipe(
      Flag.withDefault("none"),
      Flag.withDescription("What machines are to have; with nat, all that a network takes is required")
    ),
    machines: Flag.Int("machines").pipe(
      Flag.withDefault(50),
      Flag.withDescription("How many machines at a time this host is to bear; 50 by default")
    ),
    fix: Flag.Boolean("fix").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Put in order what can be without harm: make directories, load modules of the kernel")
    ),
    forwarding: Flag.Boolean("forwarding").pipe(
      Flag.withDefault(false),
      Flag.withDescription("With --fix, let this host forward packets too")
    ),
    json: jsonFlag
  },
  Effect.fnUntraced(function*({ fix, forwarding, json, machines, network }) {
    const reporter = yield* Reporter
    const faults = [
      ...(forwarding && !fix ? ["--forwarding goes with --fix"] : []),
      ...(machines < 1 || machines > 100_000 ? [`--machines ${machines}: give 1 to 100000`] : [])
    ]
    if (faults.length > 0) {
      yield* Effect.forEach(faults, reporter.line, { discard: true })
      return yield* exitWith(ExitCode.run.usage)
    }
    yield* Effect.gen(function*() {
      // It looks at all there is, which no other command needs.
      const Doctor = yield* Effect.promise(() => import("./Doctor.ts"))
      const diagnosis = yield* Doctor.diagnose({
        network,
        machines,
        fix: fix ? { forwarding } : undefined
      })
      yield* (json ? printJson(diagnosis) : print(Doctor.format(diagnosis)))
      yield* exitWith(diagnosis.usable ? 0 : ExitCode.run.noBackend)
    }).pipe(untilSignal)
  })
).pipe(
  Command.withDescription(
    [
      "Check what this host has for machines, with a remedy for what it lacks, as a command to type; exits with 69 when none can",
      "run, or none with the network that is asked for"
    ].join("\n  ")
  ),
  Command.withShortDescription("Check what this host has for machines, and what it lacks")
)

/**
 * The whole command line.
 *
 * @category main
 * @since 0.1.0
 */
export const microvm = Command.make("microvm").pipe(
  Command.withDescription("Run commands in microVMs, and leave nothing behind"),
  Command.withSubcommands([
    runCommand,
    ...MachineCommands.subcommands,
    ...RecoverCommand.subcommands,
    snapshot,
    doctor,
    image
  ])
)

/** Help that was asked for goes to stdout; with a mistake, the mistake is what the user has to see. */
const presenter = Effect.map(Reporter, ({ line }): CliOutput.Presenter => ({
  present: (event) =>
    event._tag !== "InvalidInvocation"
      ? CliOutput.defaultPresenter.present(event)
      : Effect.forEach(
        [
          ...event.errors.map(({ message }) => message),
          ...(["run", "exec"].includes(event.commandPath.at(-1) ?? "")
            ? ["the command and its own flags go after --"]
            : []),
          `see ${event.commandPath.join(" ")} --help`
        ],
        line,
        { discard: true }
      )
}))

/**
 * Runs a command line. Never fails for what a user typed: that is told on stderr and exits with 64.
 *
 * @category main
 * @since 0.1.0
 */
export const main = (version: string) => {
  const run = Command.runWith(microvm, { version })
  return (args: ReadonlyArray<string>) =>
    run(args).pipe(
      Effect.catchIf(CliError.isCliError, (error) =>
        error._tag === "ShowHelp" && error.errors.length === 0 ? Effect.void : exitWith(ExitCode.run.usage)),
      Effect.provideServiceEffect(CliOutput.Presenter, presenter)
    )
}
