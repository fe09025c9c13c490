/**
 * A supervisor with all that there is for machines, which does what it is told on stdin (see `orders.ts`), one order after the
 * other, and may kill itself at any step of it: `node supervisorProgram.ts DIRECTORY`, where DIRECTORY has the templates, and
 * gets the disks and the addresses.
 */
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Scope from "effect/Scope"
import { readdirSync, writeSync } from "node:fs"
import { flushCompileCache } from "node:module"
import { createInterface } from "node:readline"
import { getHeapSpaceStatistics } from "node:v8"
import * as GuestAgent from "../../src/guest/GuestAgent.ts"
import * as DiskClones from "../../src/host/DiskClones.ts"
import type { DiskFiles } from "../../src/host/DiskFiles.ts"
import * as EgressRule from "../../src/host/EgressRule.ts"
import type { HostCommands } from "../../src/host/HostCommands.ts"
import type { HostError } from "../../src/host/HostError.ts"
import type { KernelSettings } from "../../src/host/KernelSettings.ts"
import { Topology } from "../../src/host/LinkSpec.ts"
import * as MachineNetworks from "../../src/host/MachineNetworks.ts"
import * as NodeDiskFiles from "../../src/host/NodeDiskFiles.ts"
import * as NodeMachineNetworks from "../../src/host/NodeMachineNetworks.ts"
import * as Templates from "../../src/host/Templates.ts"
import * as Users from "../../src/host/Users.ts"
import * as Journal from "../../src/journal/Journal.ts"
import type { JournalError } from "../../src/journal/JournalError.ts"
import * as NodeLease from "../../src/journal/NodeLease.ts"
import { format, type Released } from "../../src/journal/Reconcile.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineEnd from "../../src/microvm/MachineEnd.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import type * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeSupervisor from "../../src/supervisor/NodeSupervisor.ts"
import * as Resources from "../../src/supervisor/Resources.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"
import * as Watchdog from "../../src/supervisor/Watchdog.ts"
import { load } from "./backends.ts"
import {
  type Answer,
  type Fate,
  type Harm,
  type Launch,
  type Order,
  readOrder,
  type Recover,
  type Rounds,
  type Sample,
  type Used
} from "./orders.ts"
import * as ScriptBackend from "./scriptBackend.ts"
import { jumping, layer as steppedHost, Steps } from "./steps.ts"

const [directory = ""] = process.argv.slice(2)

const say = (answer: Answer): void => void writeSync(1, `${JSON.stringify(answer)}\n`)

const steps = new Steps()

type Host =
  | DiskFiles
  | FileSystem.FileSystem
  | HostCommands
  | KernelSettings
  | Path.Path
  | NodeProcessSpawner.Services

const allow = ["10.0.0.0/8:443/tcp", "example.com:443/tcp"]

/** All machines share a pool of addresses and one of users, whatever their state directory. */
const networks = NodeMachineNetworks.layerNoDeps({
  directory: `${directory}/addresses`,
  ipv4: "172.29.0.0/16",
  ipv6: "fdcc::/64"
})

const users = Users.layer({ directory: `${directory}/users`, first: 1_900_000_000, count: 4_096 })

const clones = DiskClones.layerAt(`${directory}/disks`).pipe(Layer.provide(Templates.layerAt(`${directory}/templates`)))

const left = (released: Released | undefined): ReadonlyArray<string> =>
  released === undefined || released.left === 0 && released.trouble === undefined ? [] : [format([released])]

interface Told {
  readonly fates: Array<Fate>
  readonly used: Array<Used>
  readonly samples: Array<Sample>
  readonly left: Array<string>
  readonly records: Array<string>
  millis: number
}

/** What a supervisor has, until the scope closes. */
const supervise = Effect.fnUntraced(function*({ backend, state }: Order, told: Told) {
  const context = yield* Effect.context<Host>()
  const scope = yield* Effect.scope
  const networking = yield* Effect.cached(
    Layer.build(networks).pipe(
      Scope.provide(scope),
      Effect.map(Context.get(MachineNetworks.MachineNetworks)),
      Effect.provideContext(context)
    )
  )
  const { base, layer } = yield* load(backend, directory)
  const provider = yield* Layer.build(layer)
  const services = yield* Layer.build(
    NodeSupervisor.layerNoDeps({
      onReleased: (released) => Effect.sync(() => void told.left.push(...left(released)))
    }).pipe(
      Layer.provideMerge(Journal.layer({ directory: state }).pipe(Layer.provide(NodeLease.layer))),
      Layer.provideMerge(Layer.succeedContext(provider))
    )
  )
  /** Writes down what is in the journal now. */
  const count = Effect.map(
    Context.get(services, Journal.Journal).entries,
    (entries) => void told.records.push(...entries.map(({ id }) => id))
  )
  return { services, networking, base, count }
})

type Supervision = Effect.Success<ReturnType<typeof supervise>>

type Needed = Supervisor.Resource<
  HostError | JournalError,
  DiskClones.DiskClones | Host | MachineNetworks.MachineNetworks | Users.Users
>

const launchOne = Effect.fnUntraced(function*(
  { base, networking, services }: Supervision,
  { apart, id, keep, resources }: {
    readonly id: string
    readonly keep: boolean
    readonly apart: boolean
    readonly resources: boolean
  }
) {
  const { launch } = Context.get(services, Supervisor.Supervisor)
  const rules = yield* Effect.fromResult(EgressRule.parseAll(allow))
  const all: ReadonlyArray<Needed> = [
    Resources.user(),
    Resources.network({ allow: rules, topology: apart ? Topology.Namespace() : Topology.Routed() }),
    Resources.disk({ name: "root", stack: "small" }),
    Resources.limits({ memoryMib: 1024, pids: 256 })
  ]
  return yield* launch({
    id,
    keep,
    resources: resources ? all : [],
    bring: Effect.fnUntraced(function*(provision) {
      const spec = yield* MachineSpec.decode({ ...base, id, networks: provision.networks, drives: provision.drives })
      const machine = yield* Machine.launch(spec, yield* provision.before(spec))
      yield* machine.start
      return { machine }
    }, Effect.provideContext(services))
  }).pipe(
    Effect.provideServiceEffect(MachineNetworks.MachineNetworks, networking),
    Effect.provide([clones, users], { local: true })
  )
})

/** Waits for the word `go`. */
let go = (): void => {}
const untilGo = Effect.callback<void>((resume) => {
  go = () => resume(Effect.void)
})

const connect = (machine: Machine.Machine) =>
  Effect.flatMap(machine.channel(GuestAgent.channelName), (socket) => GuestAgent.make(socket, { within: "2 minutes" }))

/** Done when it is. */
const harm = Effect.fnUntraced(function*(how: Harm, machine: Machine.Machine, { exec, spawn }: GuestAgent.GuestAgent) {
  if (how === "monitor stopped") {
    process.kill(Option.getOrThrow(machine.pid), "SIGSTOP")
    return
  }
  if (how === "agent gone") yield* exec({ path: "sh", args: ["-c", "rm /sbin/microvm-agent"] })
  yield* spawn({ path: "sh", args: ["-c", "kill -9 $(pidof qemu-ga)"] })
})

/** Until it answers again, when it is ended, or has been ended as it does not. */
const watch = Effect.fnUntraced(
  function*(
    { machine, supervised }: { readonly machine: Machine.Machine; readonly supervised: Supervisor.Supervised },
    agent: Effect.Effect<GuestAgent.GuestAgent, unknown>,
    failures: number
  ) {
    let hung: string | undefined
    const check = Effect.flatMap(agent, ({ ping }) => ping)
    yield* Watchdog.watch(machine, {
      checks: [{ name: "agent", check }],
      every: "300 millis",
      within: "1 second",
      failures,
      policy: "end",
      onHang: ({ what }) => Effect.sync(() => void (hung ??= what))
    }).pipe(Effect.forkScoped)
    const { id } = machine
    // Until then the one that is killed may answer.
    const ask = Effect.flatMap(
      Effect.delay(agent, "1 second"),
      ({ exec }) => Effect.timeout(exec({ path: "sh", args: ["-c", "echo answer $((3 + 4))"] }), "3 seconds")
    ).pipe(Effect.retry({ while: () => hung === undefined }))
    const said = yield* Effect.raceFirst(Effect.option(ask), Effect.as(machine.ended, Option.none()))
    yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
    const told: Used = {
      id,
      answer: Option.match(said, { onNone: () => "", onSome: ({ stdout }) => new TextDecoder().decode(stdout).trim() }),
      ...(hung === undefined ? {} : { hung }),
      console: "",
      end: MachineEnd.format(yield* Effect.timeout(machine.ended, "1 minute")),
      left: (yield* supervised.released).left
    }
    return told
  },
  Effect.scoped
)

const launch = Effect.fnUntraced(function*(order: Launch, told: Told) {
  const supervision = yield* supervise(order, told)
  const scope = yield* Scope.make()
  yield* Effect.gen(function*() {
    const all = yield* Effect.forEach(
      order.ids,
      (id) => launchOne(supervision, { apart: order.apart ?? false, id, keep: order.keep, resources: true }),
      { concurrency: 8 }
    )
    const { harm: how } = order
    const agents = how === undefined ? [] : yield* Effect.forEach(all, ({ machine }) => connect(machine))
    for (const [one, agent] of Arr.zip(all, agents)) if (how !== undefined) yield* harm(how, one.machine, agent)
    say({ _tag: "Up" })
    if (order.last === "wait") yield* untilGo
    if (order.last === "watch") {
      const watched = Arr.zip(all, agents)
      told.used.push(
        ...(yield* Effect.forEach(watched, ([one, agent]) => watch(one, Effect.succeed(agent), order.failures ?? 3)))
      )
    }
    if (order.last === "kill") {
      yield* Effect.forEach(all, ({ machine }) => machine.shutdown({ request: { atLeast: "SIGKILL" } }), {
        concurrency: "unbounded"
      })
      yield* Effect.forEach(all, ({ supervised }) => supervised.released)
    }
  }).pipe(Scope.provide(scope), Effect.onExit((exit) => Scope.close(scope, exit)))
  yield* supervision.count
})

/** All but compiled code: V8 compiles what is called again after it has dropped it, for hundreds of rounds. */
const heapUsed = (): number =>
  getHeapSpaceStatistics().filter(({ space_name }) => !/^(code|trusted)/.test(space_name))
    .reduce((sum, { space_used_size }) => sum + space_used_size, 0)

/** Looked at until there is no more than in the first one, or for some seconds: what has ended is seen to have ended by then. */
const sample = Effect.fnUntraced(function*(round: number, first: Sample | undefined) {
  for (let looks = 0;; looks++) {
    yield* Effect.sleep("50 millis")
    globalThis.gc?.()
    const { external, rss } = process.memoryUsage()
    const now: Sample = {
      round,
      files: readdirSync("/proc/self/fd").length,
      heap: heapUsed(),
      external,
      rss,
      handles: process.getActiveResourcesInfo().length
    }
    const isFlat = first !== undefined && now.files <= first.files && now.handles <= first.handles
    if (looks >= (first === undefined ? 10 : isFlat ? 3 : 100)) return now
  }
})

const repeat = Effect.fnUntraced(function*(order: Rounds, told: Told) {
  const { resources, rounds } = order
  const supervision = yield* supervise(order, told)
  for (let round = 0; round <= rounds; round++) {
    // Names that are used once are not to be kept, either.
    const id = `m-${round}`
    // What is made once and for all is made by then.
    if (round === rounds || (round > 0 && round % Math.ceil(rounds / 8) === 0)) {
      told.samples.push(yield* sample(round, told.samples[0]))
    }
    if (round === rounds) break
    yield* Effect.scoped(Effect.gen(function*() {
      const { machine, supervised } = yield* launchOne(supervision, { id, keep: false, apart: false, resources })
      yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
      yield* supervised.released
    }))
    steps.begin(order)
  }
  yield* supervision.count
})

/** Uses a machine of an earlier supervisor, to its end. */
const use = Effect.fnUntraced(
  function*(backend: Order["backend"], { entry: { id }, machine, released }: Supervisor.Supervised) {
    let answer = ""
    if (backend === "script") {
      const socket = yield* machine.channel(ScriptBackend.channel)
      answer = yield* ScriptBackend.converse(socket, ["ask 7", "exit 7"])
    } else {
      const agent = yield* Effect.flatMap(
        machine.channel(GuestAgent.channelName),
        (socket) => GuestAgent.make(socket, { within: "2 minutes" })
      )
      const { stdout } = yield* agent.exec({
        path: "sh",
        args: ["-c", "echo answer $((3 + 4)); echo hello from $((3 + 4)) >/dev/console"]
      })
      answer = new TextDecoder().decode(stdout).trim()
      yield* machine.shutdown({ request: { atLeast: "SIGKILL" } })
    }
    const end = yield* Effect.timeout(machine.ended, "1 minute")
    const told: Used = {
      id,
      answer,
      console: yield* machine.consoleTail,
      end: MachineEnd.format(end),
      left: (yield* released).left
    }
    return told
  },
  Effect.scoped
)

const recover = Effect.fnUntraced(function*(order: Recover, told: Told) {
  const began = performance.now()
  const supervision = yield* supervise(order, told)
  const supervisor = Context.get(supervision.services, Supervisor.Supervisor)
  const recovered = yield* supervisor.recover({ mode: order.mode })
  told.millis = performance.now() - began
  for (const { action, end, id, released, why } of recovered) {
    told.fates.push({ id, action, why, ...(end === undefined ? {} : { end }) })
    told.left.push(...left(released))
  }
  const machines = yield* supervisor.machines
  if (order.watch !== undefined) {
    for (const supervised of machines) {
      // To an agent that is gone, the connection never comes about.
      const connecting = yield* Effect.forkScoped(connect(supervised.machine))
      told.used.push(yield* watch({ machine: supervised.machine, supervised }, Fiber.join(connecting), order.watch))
    }
  } else if (order.use) {
    told.used.push(...(yield* Effect.forEach(machines, (one) => use(order.backend, one), { concurrency: 8 })))
  }
  yield* supervision.count
})

const tagOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "_tag" in error
    ? "reason" in error && typeof error.reason === "object" && error.reason !== null && "_tag" in error.reason
      ? `${String(error._tag)}.${String(error.reason._tag)}`
      : String(error._tag)
    : "defect"

const obey = (order: Order) =>
  Effect.gen(function*() {
    steps.begin(order)
    const told: Told = { fates: [], used: [], samples: [], left: [], records: [], millis: 0 }
    const scope = yield* Scope.make()
    const run: Effect.Effect<void, unknown, Host | Scope.Scope> = order.do === "launch"
      ? launch(order, told)
      : order.do === "recover"
      ? recover(order, told)
      : repeat(order, told)
    const exit = yield* Effect.exit(Scope.provide(run, scope))
    yield* Scope.close(scope, Exit.void)
    if (Exit.isSuccess(exit)) {
      return say({ _tag: "Done", steps: steps.names, commands: steps.commands, ...told })
    }
    const [reason] = exit.cause.reasons
    const error = reason?._tag === "Fail" ? reason.error : reason?._tag === "Die" ? reason.defect : "interrupted"
    say({ _tag: "Failed", why: String(error), tag: tagOf(error), left: told.left, steps: steps.names })
  }).pipe(
    order.jumps === true
      ? Effect.updateService(Clock.Clock, jumping)
      : (effect) => effect
  )

const waiting: Array<Order> = []
let wake = (): void => {}
createInterface({ input: process.stdin }).on("line", (line) => {
  if (line === "go") return go()
  waiting.push(readOrder(line))
  wake()
}).on("close", () => process.kill(process.pid, "SIGTERM"))

const next = Effect.callback<Order>((resume) => {
  const take = (): void => {
    const order = waiting.shift()
    if (order !== undefined) resume(Effect.succeed(order))
  }
  wake = take
  take()
})

const host = NodeDiskFiles.layer.pipe(Layer.provideMerge(steppedHost(steps)))

Effect.runFork(
  Effect.gen(function*() {
    // It will be killed, and what was compiled for it is there for the next one.
    flushCompileCache()
    say({ _tag: "Ready" })
    while (true) yield* obey(yield* next)
  }).pipe(Effect.provide(host))
)
