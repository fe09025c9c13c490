import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { setImmediate } from "node:timers/promises"
import type { ApiRequest, ApiResponse } from "../../src/firecracker/ApiTransport.ts"
import * as FirecrackerError from "../../src/firecracker/FirecrackerError.ts"
import * as FirecrackerHost from "../../src/firecracker/FirecrackerHost.ts"
import * as FirecrackerProvider from "../../src/firecracker/FirecrackerProvider.ts"
import * as Jail from "../../src/firecracker/Jail.ts"
import * as MetricsCollector from "../../src/firecracker/MetricsCollector.ts"
import * as PageServer from "../../src/firecracker/PageServer.ts"
import * as Vsock from "../../src/firecracker/Vsock.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import { type LaunchOptions, MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import type { Snapshot } from "../../src/microvm/Snapshot.ts"
import { fromReason, ProcessErrorReason } from "../../src/process/ProcessError.ts"
import { type HeldProcess, ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import * as ScriptedProcess from "../../src/testing/ScriptedProcess.ts"

const observations: FirecrackerHost.Observations = {
  binary: "/bin/firecracker",
  version: { major: 1, minor: 16, patch: 1 },
  snapshotFormat: "10.0.0",
  architecture: "x86_64",
  kvm: { _tag: "Usable" },
  cpu: "Model 1",
  kernel: "6.1.0",
  uid: 0
}

const spec = Result.getOrThrow(
  MachineSpec.make({ id: "a", kernel: "/k", initramfs: "/i", channels: ["agent"] })
)

type Answer = Effect.Effect<Partial<ApiResponse>, FirecrackerError.FirecrackerError>

interface Script {
  readonly options?: FirecrackerProvider.Options
  readonly process?: ScriptedProcess.Script
  readonly observed?: Partial<FirecrackerHost.Observations>
  readonly inspect?: (path: string, writable: boolean) => Partial<FirecrackerHost.FileFacts>
  readonly log?: string
  /** Has the log grown since it was last looked at? */
  readonly grown?: () => boolean
  /** Why nobody can get hold of one that is kept. */
  readonly holdFault?: ProcessErrorReason
  /** Why memory files cannot be looked at or put together; "never" takes for ever. */
  readonly memoryFault?: string
  /** How the server of its pages ends. */
  readonly pagesEnd?: PageServer.Serving["ended"]
  /** What a machine asks for. */
  readonly pages?: ReadonlyArray<number>
  /** Files that are there, or come to be. */
  readonly texts?: Map<string, string>
  /** Why no file can be written. */
  readonly writeFault?: string
  /** How it answers; 204 otherwise, and its version to `GET /version`. */
  readonly answer?: (request: ApiRequest) => Answer | undefined
}

/** What is seen of a machine's doings. */
interface Seen {
  /** Calls of the API but those that wait for it, as `PUT /path {…}`. */
  readonly calls: Array<string>
  /** What is done with files, in order. */
  readonly files: Array<string>
}

const faulty = (message: string): Answer =>
  Effect.succeed({ status: 400, body: JSON.stringify({ fault_message: message }) })

const disconnected = ({ method, path }: ApiRequest): Answer =>
  FirecrackerError.fail(
    new FirecrackerError.ConnectionFailed({ method, path, socket: "/d/api.sock", phase: "connect", cause: "ENOENT" })
  )

const slow = ({ method, path, within }: ApiRequest): Answer =>
  Effect.andThen(Effect.sleep(within), FirecrackerError.fail(new FirecrackerError.NoReply({ method, path, within })))

/** SIGUSR1 makes the scripted Firecracker exit in order; nobody else sends it. */
const reactions = { SIGUSR1: { exitAfter: "1 millis" } } as const

const unused = () => Effect.die("not expected")

const host = (
  {
    answer,
    grown,
    holdFault,
    inspect,
    log = "",
    memoryFault,
    observed,
    options = {},
    pages: touched = [],
    pagesEnd = Effect.never,
    process,
    texts = new Map(),
    writeFault
  }: Script,
  { calls, files }: Seen
) => {
  const note = (what: string) => Effect.sync(() => void files.push(what))
  let moments = 0
  const memoryFails = memoryFault === undefined
    ? undefined
    : memoryFault === "never"
    ? Effect.never
    : FirecrackerError.fail(
      new FirecrackerError.HostFailed({ operation: "look at", path: "/m", why: memoryFault })
    )
  const facts = Layer.succeed(FirecrackerHost.FirecrackerHost, {
    observe: () => Effect.succeed({ ...observations, ...observed }),
    inspect: (path, { writable = false } = {}) => Effect.succeed({ path, ...inspect?.(path, writable) }),
    makeDirectory: ({ files: empty, links }) =>
      Effect.acquireRelease(
        note([...Array.from(links, ([name, to]) => `${name} to ${to}`), ...empty].join(", ")),
        () => note("directory removed")
      ).pipe(Effect.as("/d")),
    connect: () =>
      Effect.succeed({
        request: (request) =>
          Effect.suspend(() => {
            const { body, method, path } = request
            if (path !== "/version") calls.push([method, path, ...(body === undefined ? [] : [body])].join(" "))
            const usual = path === "/version"
              ? { status: 200, body: `{"firecracker_version":"1.16.1"}` }
              : { status: 204, body: "" }
            return Effect.map(answer?.(request) ?? Effect.succeed({}), (given) => ({
              ...usual,
              deprecated: false,
              ...given
            }))
          })
      }),
    keepDirectory: (directory, { files: empty, links }) =>
      note([`${directory} kept`, ...Array.from(links, ([name, to]) => `${name} to ${to}`), ...empty].join(", ")),
    empty: (directory) => note(`${directory} emptied`),
    write: (path, text) =>
      writeFault === undefined
        ? Effect.andThen(note(`${path} written`), Effect.sync(() => void texts.set(path, text)))
        : FirecrackerError.fail(new FirecrackerError.HostFailed({ operation: "write", path, why: writeFault })),
    read: (path) => Effect.sync(() => texts.get(path)),
    copy: (from, to) => note(`${from} to ${to}`),
    makeReadable: (path) => note(`${path} for all`),
    listPages: (memory, to) => memoryFails ?? note(`pages of ${memory} in ${to}`),
    mergeMemory: (base, layers, to) =>
      memoryFails ?? note([to, "of", base, ...layers.flatMap(({ memory, pages }) => [memory, pages])].join(" ")),
    moment: Effect.sync(() => `moment ${++moments}`),
    remove: (paths) => note(`removed ${paths.join(", ")}`),
    // A read of a real file takes some turns.
    tail: () => Effect.promise(async () => (await setImmediate(), log)),
    trim: (path) => grown === undefined ? Effect.succeed(false) : Effect.map(note(`${path} looked at`), grown)
  })
  const vsock = Layer.succeed(Vsock.Vsock, {
    socketAt: () =>
      Effect.succeed(Socket.make({
        reader: Effect.fail(
          new Socket.SocketError({
            reason: new Socket.SocketOpenError({
              kind: "Unknown",
              cause: Object.assign(new Error("gone"), { code: "ECONNREFUSED" })
            })
          })
        ),
        writer: Effect.succeed({ write: unused, writeAll: unused })
      })),
    listenAt: unused
  })
  const jail = Layer.effect(
    Jail.Jail,
    Effect.map(ScriptedProcess.Driver, ({ intrude }) => ({
      observe: () =>
        Effect.succeed({
          executable: "/bin/firecracker",
          base: "/jails",
          cgroups: { unified: { mount: "/cg", controllers: ["memory", "pids"] }, separate: new Map() }
        }),
      prepare: (plan) =>
        Effect.as(
          Effect.acquireRelease(note(`jail of uid ${plan.user.uid}`), () => note("jail removed")),
          {
            plan,
            hadRemains: false,
            killScope: { _tag: "Process", reason: "scripted" },
            find: () =>
              Effect.map(intrude(4000, { command: "firecracker" }), ({ pid, startTime }) => ({
                bootId: "scripted",
                pid,
                startTime
              })),
            add: unused,
            collect: (file, to, { maxBytes } = {}) =>
              note(`${file} to ${to}${maxBytes === undefined ? "" : `, ${maxBytes / 2 ** 20} MiB at most`}`),
            release: Effect.succeed([])
          }
        )
    }))
  )
  const metrics = Layer.succeed(MetricsCollector.MetricsFiles, {
    create: (path) =>
      Effect.as(
        Effect.acquireRelease(note(`${path} made`), () => note(`${path} removed`)),
        { read: Effect.succeed(new Uint8Array()) }
      ),
    open: (path) =>
      Effect.as(
        Effect.acquireRelease(note(`${path} opened`), () => note(`${path} closed`)),
        { read: Effect.succeed(new Uint8Array()) }
      )
  })
  const pages = Layer.succeed(PageServer.PageServer, {
    usable: Effect.void,
    start: ({ memory, prefetch, record = false, socket }) =>
      Effect.acquireRelease(
        note(
          `pages of ${memory} at ${socket}${record ? ", recorded" : ""}${
            prefetch === undefined ? "" : `, first ${prefetch.pages.join()}`
          }`
        ),
        () => note("pages end")
      ).pipe(
        Effect.as({
          ready: Effect.succeed({ pid: 1, uid: 0, gid: 0 }),
          ended: pagesEnd,
          stats: Effect.succeed({ faults: 0, copied: 0, zeroed: 0, prefetched: 0, removed: 0 }),
          workingSet: Effect.succeed({ pageSize: 4096, pages: touched })
        })
      )
  })
  /** One that holds processes by not letting go of them. */
  const holder = Layer.effect(
    ProcessHolder,
    Effect.gen(function*() {
      const spawner = yield* ProcessSpawner
      const scope = yield* Effect.scope
      const held = new Map<string, HeldProcess>()
      const notHeld = (directory: string) =>
        fromReason(ProcessErrorReason.NotHeld({ directory, why: "it holds no process" }))
      return ProcessHolder.of({
        spawn: (command, { cgroup, directory, policy }) =>
          note(`held in ${directory}, of ${cgroup?.path}`).pipe(
            Effect.andThen(Scope.provide(spawner.spawn(command, { policy, killScope: "group" }), scope)),
            Effect.map((child) => ({ ...child, note: "" })),
            Effect.tap((child) => Effect.sync(() => void held.set(directory, child)))
          ),
        attach: ({ directory }) =>
          Effect.suspend(() => {
            const child = held.get(directory)
            if (holdFault !== undefined) return Effect.fail(fromReason(holdFault))
            return child === undefined ? Effect.fail(notHeld(directory)) : Effect.succeed(child)
          }),
        follow: () => Stream.die("not expected"),
        destroy: ({ directory }) =>
          Effect.suspend(() => {
            const child = held.get(directory)
            return child === undefined ? Effect.void : Effect.ignore(child.shutdown({ atLeast: "SIGKILL" }))
          }).pipe(
            Effect.andThen(note(`destroyed in ${directory}`)),
            Effect.as({ _tag: "Destroyed" })
          )
      })
    })
  )
  const processes = ScriptedProcess.layer({ script: () => ({ on: reactions, ...process }) })
  return FirecrackerProvider.layerWith(options).pipe(
    Layer.provide([facts, vsock, jail, metrics, pages, holder]),
    Layer.provideMerge(processes)
  )
}

/** Runs the body, and then lets time pass until its scope is closed. */
const onHost = <A, E>(
  script: Script,
  body: (seen: Seen) => Effect.Effect<A, E, MicroVmProvider | ProcessHost | ScriptedProcess.Driver | Scope.Scope>
) =>
  Effect.gen(function*() {
    const seen: Seen = { calls: [], files: [] }
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(host(script, seen), scope)
    const result = yield* body(seen).pipe(Effect.provide(context), Scope.provide(scope), Effect.exit)
    yield* through(Scope.close(scope, result))
    return yield* result
  })

/** Lets time pass in small steps until the effect is through. */
const through = Effect.fnUntraced(function*<A, E, R>(effect: Effect.Effect<A, E, R>) {
  const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
  while (fiber.pollUnsafe() === undefined) {
    yield* TestClock.adjust("20 millis")
    yield* TestClock.withLive(Effect.sleep("1 millis"))
  }
  return yield* Fiber.join(fiber)
})

const launch = MicroVmProvider.use((provider) => provider.launch(spec))
const alive = Effect.map(ScriptedProcess.Driver.use((driver) => driver.table), (table) => table.length)
const signals = Effect.map(
  ScriptedProcess.Driver.use((driver) => driver.delivered),
  (delivered) => delivered.map(({ signal }) => signal)
)
const messageOf = <A, E extends Error, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), (error) => error.message)

const exit = Effect.gen(function*() {
  for (const { pid } of yield* ScriptedProcess.Driver.use((driver) => driver.table)) {
    yield* ProcessHost.use((processes) => processes.kill(pid, "SIGUSR1"))
  }
  yield* TestClock.adjust("1 millis")
})

const snapshot = (form: "full" | "unstarted"): Snapshot => {
  const { id: _, ...rest } = spec
  return {
    id: "f".repeat(64),
    directory: "/s",
    manifest: {
      format: 1,
      kind: "saved",
      form,
      platform: {},
      madeBy: "Firecracker 1.16.1",
      spec: rest,
      labels: {},
      createdAt: "2026-01-01T00:00:00Z",
      files: []
    }
  }
}
const restore = (form: "full" | "unstarted" = "full") =>
  MicroVmProvider.use((provider) => provider.launch(spec, { from: snapshot(form) }))

const pathsOf = (calls: ReadonlyArray<string>) => calls.map((call) => call.split(" ").slice(0, 2).join(" "))

describe("launch", () => {
  it.effect("tells Firecracker what the machine is, in the one order that works", () =>
    onHost({
      options: {
        devices: {
          drives: [
            { drive_id: "d0", path_on_host: "/d0", is_root_device: false },
            { drive_id: "rootfs", path_on_host: "/r", is_root_device: true },
            { drive_id: "d1", path_on_host: "/d1", is_root_device: false }
          ],
          networkInterfaces: [
            { iface_id: "n0", host_dev_name: "tap0" },
            { iface_id: "n1", host_dev_name: "tap1" }
          ]
        }
      }
    }, ({ calls, files }) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.deepStrictEqual(pathsOf(calls), [
          "PUT /machine-config",
          "PUT /boot-source",
          "PUT /drives/rootfs",
          "PUT /network-interfaces/n0",
          "PUT /network-interfaces/n1",
          "PUT /drives/d0",
          "PUT /drives/d1",
          "PUT /vsock"
        ])
        assert.strictEqual(
          calls[0],
          `PUT /machine-config {"smt":false,"track_dirty_pages":false,"vcpu_count":1,"mem_size_mib":256}`
        )
        assert.deepStrictEqual(files, [
          "kernel to /k, initramfs to /i, drive-d0 to /d0, drive-rootfs to /r, drive-d1 to /d1, firecracker.log"
        ])
        assert.isTrue(Option.isNone(yield* vmm.poll))
        assert.isTrue(Option.isSome(vmm.pid))
      })))

  it.effect("asks again and again until it is answered, less often with time", () => {
    const asked: Array<number> = []
    return onHost({
      answer: (request) =>
        request.path !== "/version" ? undefined : Effect.flatMap(Clock.currentTimeMillis, (now) => {
          asked.push(now)
          return asked.length < 10 ? disconnected(request) : Effect.succeed({})
        })
    }, () =>
      Effect.gen(function*() {
        const launching = yield* Effect.forkChild(launch, { startImmediately: true })
        for (let i = 0; i < 500; i++) yield* TestClock.adjust("1 millis")
        yield* Fiber.join(launching)
        const gaps = asked.slice(1).map((at, index) => at - (asked[index] ?? 0))
        assert.deepStrictEqual(gaps, [2, 4, 8, 16, 32, 64, 100, 100, 100])
      }))
  })

  it.effect("gives up on one that never answers, and leaves nothing of it", () =>
    onHost({ answer: disconnected, log: "a log line\n" }, ({ files }) =>
      Effect.gen(function*() {
        const error = yield* through(Effect.flip(launch))
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", stage: "bringing Firecracker up" })
        assert.include(
          error.message,
          "did not answer within 5s: GET /version: the connection to /d/api.sock failed: ENOENT"
        )
        assert.include(error.message, "a log line")
        assert.strictEqual(yield* alive, 0)
        assert.strictEqual(files.at(-1), "directory removed")
      })))

  it.effect("does not wait for one that dies, and tells what it said", () =>
    onHost({
      answer: disconnected,
      process: { exitAfter: "10 millis", code: 153, stderr: "unexpected argument\n" },
      log: "Firecracker exiting with error\n"
    }, () =>
      Effect.gen(function*() {
        const failing = yield* Effect.forkChild(Effect.flip(launch), { startImmediately: true })
        for (let i = 0; i < 12; i++) yield* TestClock.adjust("10 millis")
        const { message, reason } = yield* Fiber.join(failing)
        assert.strictEqual(reason._tag === "LaunchFailed" ? reason.status?._tag : "", "Exited")
        assert.include(message, "its command line was refused")
        assert.include(message, "exited with code 153")
        assert.include(message, "unexpected argument\nFirecracker exiting with error")
      })))

  it.effect("leaves nothing when a call is refused, and tells Firecracker's own words", () =>
    onHost({
      answer: ({ path }) => path === "/boot-source" ? faulty("The kernel file cannot be opened") : undefined
    }, ({ files }) =>
      Effect.gen(function*() {
        const error = yield* through(Effect.flip(launch))
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", stage: "configuring" })
        assert.include(error.message, "The kernel file cannot be opened")
        assert.strictEqual(yield* alive, 0)
        assert.strictEqual(files.at(-1), "directory removed")
      })))

  it.effect("refuses one that is another version than it said", () =>
    onHost({ observed: { version: { major: 1, minor: 15, patch: 0 } } }, () =>
      Effect.gen(function*() {
        assert.include(
          yield* through(messageOf(launch)),
          "it is 1.16.1, but `--version` said 1.15.0: start this program again if Firecracker was upgraded"
        )
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("leaves nothing when it is interrupted", () =>
    onHost({ answer: disconnected }, ({ files }) =>
      Effect.gen(function*() {
        const launching = yield* Effect.forkChild(launch, { startImmediately: true })
        assert.strictEqual(yield* alive, 1)
        yield* through(Fiber.interrupt(launching))
        assert.strictEqual(yield* alive, 0)
        assert.strictEqual(files.at(-1), "directory removed")
      })))

  it.effect("names every file that is not right, before it starts anything", () =>
    onHost({
      options: { devices: { drives: [{ drive_id: "d", path_on_host: "/ro", is_root_device: false }] } },
      inspect: (path, writable) =>
        path === "/k" ? { kernel: "bzImage" } : writable ? { fault: "it cannot be opened for writing: EROFS" } : {}
    }, ({ files }) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(launch)
        assert.deepStrictEqual(
          error.reason._tag === "InvalidSpec" ? error.reason.faults.map(({ field }) => field) : [],
          ["kernel", "devices.drives[0].path_on_host"]
        )
        assert.include(error.message, "extract its vmlinux")
        assert.include(error.message, "EROFS")
        assert.deepStrictEqual(files, [])
      })))

  it.effect("makes room for metrics, and takes it away", () =>
    onHost({ options: { metrics: true } }, ({ calls, files }) =>
      Effect.gen(function*() {
        yield* through(Effect.scoped(launch))
        assert.strictEqual(calls[0], `PUT /metrics {"metrics_path":"firecracker.metrics"}`)
        assert.deepStrictEqual(files.slice(1), [
          "/d/firecracker.metrics made",
          "/d/firecracker.metrics removed",
          "directory removed"
        ])
      })))

  it.effect("has what is to be beside the machine before there is a process, and until there is none", () => {
    const told: Array<string> = []
    let processes = Effect.succeed(NaN)
    const note = (what: string) => Effect.map(processes, (count) => void told.push(`${what}, ${count} processes`))
    const beside: FirecrackerProvider.Beside = ({ spec: { id }, vsock }) =>
      Effect.acquireRelease(note(`${id} at ${vsock}`), () => note("removed"))
    return onHost({ options: { beside } }, () =>
      Effect.gen(function*() {
        processes = Effect.provideContext(alive, yield* Effect.context<ScriptedProcess.Driver>())
        yield* through(Effect.scoped(Effect.andThen(launch, note("launched"))))
        assert.deepStrictEqual(told, [
          "a at /d/vsock.sock, 0 processes",
          "launched, 1 processes",
          "removed, 0 processes"
        ])
      }))
  })
})

describe("what a machine's API is for that the port has no words for", () => {
  it.effect("is done by whoever is told of the machine, before it starts", () => {
    const released: Array<string> = []
    const onMachine: FirecrackerProvider.OnMachine = ({ api, metrics, spec: { id } }) =>
      Effect.acquireRelease(
        api.patchBalloon({ amount_mib: metrics === undefined ? 1 : 2 }),
        () => Effect.sync(() => released.push(id))
      )
    return onHost({ options: { onMachine, metrics: true } }, ({ calls }) =>
      Effect.gen(function*() {
        yield* through(Effect.scoped(Effect.flatMap(launch, (vmm) => vmm.start)))
        assert.deepStrictEqual(calls.slice(-2), [
          `PATCH /balloon {"amount_mib":2}`,
          `PUT /actions {"action_type":"InstanceStart"}`
        ])
        assert.deepStrictEqual(released, ["a"])
      }))
  })

  it.effect("fails the launch when it fails", () =>
    onHost({
      options: { onMachine: ({ api }) => api.patchBalloon({ amount_mib: 1 }) },
      answer: ({ path }) => path === "/balloon" ? faulty("No balloon device found.") : undefined
    }, () =>
      Effect.gen(function*() {
        assert.match(yield* through(messageOf(launch)), /what `onMachine` does.*No balloon device found/s)
        assert.strictEqual(yield* alive, 0)
      })))
})

describe("what is known to go wrong with a release", () => {
  it.effect("is logged with the first machine that it concerns, once", () => {
    const logged: Array<string> = []
    const logger = Logger.make<unknown, void>(({ message }) => void logged.push(String(message)))
    const silent: typeof spec = { ...spec, channels: [] }
    const launchOf = (one: typeof spec) =>
      Effect.provide(MicroVmProvider.use((provider) => provider.launch(one)), Logger.layer([logger]))
    return onHost({}, () =>
      Effect.gen(function*() {
        yield* launchOf(silent)
        assert.deepStrictEqual(logged, [])
        yield* launchOf(spec)
        yield* launchOf({ ...spec, id: "b" })
        assert.lengthOf(logged, 1)
        assert.match(logged[0] ?? "", /^Firecracker 1\.16\.1: in 1\.16 .*\(6100\)$/)
      }))
  })
})

describe("a console that is longer than what is kept", () => {
  it.effect("begins where it was cut with a mark", () =>
    onHost(
      { process: { stdout: `${"x".repeat(100_000)}\nthe end\n`, stderr: "y".repeat(100_000) } },
      () =>
        Effect.gen(function*() {
          const vmm = yield* launch
          assert.match(yield* vmm.consoleTail, /^\[truncated\]…x+\nthe end\n$/)
          yield* exit
          const { consoleTail, stderrTail } = yield* vmm.ended
          assert.match(consoleTail, /^\[truncated\]…x+\nthe end\n$/)
          assert.match(stderrTail, /^\[truncated\]…y+$/)
        })
    ))
})

describe("a log", () => {
  it.effect("that a guest fills is looked at each second, and seldom when it has stopped", () => {
    let fills = false
    return onHost({ grown: () => fills }, ({ files }) =>
      Effect.gen(function*() {
        yield* launch
        const looksWithin = (time: Duration.Input) =>
          Effect.gen(function*() {
            const before = files.length
            yield* TestClock.adjust(time)
            return files.slice(before).filter((what) => what === "/d/firecracker.log looked at").length
          })
        assert.strictEqual(yield* looksWithin("60 seconds"), 7)
        fills = true
        assert.strictEqual(yield* looksWithin("20 seconds"), 11)
        fills = false
        assert.strictEqual(yield* looksWithin("61 seconds"), 7)
      }))
  })
})

describe("operations", () => {
  it.effect("are calls of the API", () =>
    onHost({}, ({ calls }) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        calls.length = 0
        yield* vmm.start
        yield* vmm.pause
        yield* vmm.resume
        yield* vmm.request("PowerButton")
        assert.deepStrictEqual(calls, [
          `PUT /actions {"action_type":"InstanceStart"}`,
          `PATCH /vm {"state":"Paused"}`,
          `PATCH /vm {"state":"Resumed"}`,
          `PUT /actions {"action_type":"SendCtrlAltDel"}`
        ])
      })))

  it.effect("fail with Firecracker's words, and the machine stays what it was", () =>
    onHost(
      { answer: ({ path }) => path === "/vm" ? faulty("no vCPU answered") : undefined },
      () =>
        Effect.gen(function*() {
          const machine = yield* Machine.launch(spec)
          yield* machine.start
          assert.include(yield* messageOf(machine.pause), "no vCPU answered")
          assert.strictEqual(yield* machine.state, "running")
        })
    ))

  it.effect("that end the process tell how it ended, and what it said", () => {
    let isGone = false
    return onHost(
      { answer: (request) => isGone ? disconnected(request) : undefined, log: "seccomp: syscall 9\n" },
      () =>
        Effect.gen(function*() {
          const vmm = yield* launch
          isGone = true
          const starting = yield* Effect.forkChild(messageOf(vmm.start), { startImmediately: true })
          yield* exit
          const message = yield* Fiber.join(starting)
          assert.match(message, /Firecracker ended at start: exited with code 0.*seccomp: syscall 9/s)
        })
    )
  })

  it.effect("ask nothing of a machine that is gone, and do not fail for it", () => {
    let isGone = false
    return onHost({ answer: (request) => isGone ? disconnected(request) : undefined }, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        yield* exit
        isGone = true
        assert.strictEqual((yield* vmm.ended)._tag, "Reset")
        yield* vmm.request("PowerButton")
        yield* vmm.request("Terminate")
        yield* vmm.request("Kill")
        assert.deepStrictEqual(yield* signals, ["SIGUSR1"])
      }))
  })

  it.effect("fail, for the next stage to come, when nobody answers and the process is there", () => {
    let isGone = false
    return onHost({ answer: (request) => isGone ? disconnected(request) : undefined }, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        isGone = true
        assert.include(yield* through(messageOf(vmm.request("PowerButton"))), "power button failed")
      }))
  })

  it.effect("that cannot reach the guest are not tried", () => {
    const nokbd = Result.getOrThrow(MachineSpec.make({ ...spec, kernelArgs: ["i8042.nokbd"] }))
    return onHost({}, ({ calls }) =>
      Effect.gen(function*() {
        const vmm = yield* MicroVmProvider.use((provider) => provider.launch(nokbd))
        assert.include(yield* messageOf(vmm.request("PowerButton")), "i8042.nokbd: the guest has no keyboard")
        assert.notInclude(calls.join(), "SendCtrlAltDel")
      }))
  })

  it.effect("that end the process are told as what they are", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const ends: Array<string> = []
        for (const request of ["Terminate", "Kill"] as const) {
          const vmm = yield* launch
          yield* vmm.request(request)
          ends.push((yield* through(vmm.ended))._tag)
        }
        const machine = yield* launch
        const pid = Option.getOrThrow(machine.pid)
        yield* ProcessHost.use((processes) => processes.kill(pid, "SIGTERM"))
        ends.push((yield* through(machine.ended))._tag)
        assert.deepStrictEqual(ends, ["Stopped", "Killed", "Killed"])
      })))

  it.effect("climb the ladder: Ctrl-Alt-Del, SIGTERM, SIGKILL", () =>
    onHost({ process: { on: { SIGTERM: "ignore" } } }, ({ calls }) =>
      Effect.gen(function*() {
        const machine = yield* Machine.launch(spec)
        yield* machine.start
        yield* machine.pause
        calls.length = 0
        const outcome = yield* through(machine.shutdown())
        assert.deepStrictEqual(outcome.stages.map(({ end, name }) => `${name} ${end}`), [
          "power button deadline",
          "SIGTERM deadline",
          "SIGKILL ended"
        ])
        // It could not hear while it stood still.
        assert.deepStrictEqual(calls, [
          `PATCH /vm {"state":"Resumed"}`,
          `PUT /actions {"action_type":"SendCtrlAltDel"}`
        ])
        assert.deepStrictEqual(yield* signals, ["SIGTERM", "SIGCONT", "SIGKILL"])
      })))

  it.effect("connect for as long as there is a machine", () =>
    onHost({}, () =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.include(yield* messageOf(vmm.channel("nope")), "it has agent")
        const socket = yield* vmm.channel("agent")
        const scope = yield* Scope.make()
        const { pull } = yield* Scope.provide(socket.reader, scope)
        const [connecting, leaving] = yield* Effect.all([
          Effect.forkChild(Effect.flip(pull), { startImmediately: true }),
          Effect.gen(function*() {
            const own = yield* Scope.make()
            const reader = yield* Scope.provide(socket.reader, own)
            const waiting = yield* Effect.forkChild(Effect.flip(reader.pull), { startImmediately: true })
            yield* Scope.close(own, Exit.void)
            return yield* Fiber.join(waiting)
          })
        ])
        assert.strictEqual(leaving.reason._tag, "SocketCloseError")
        yield* TestClock.adjust("1 minute")
        assert.isUndefined(connecting.pollUnsafe())
        yield* exit
        const { reason } = yield* Fiber.join(connecting)
        assert.match(String("cause" in reason ? reason.cause : ""), /the machine has ended/)
        yield* Scope.close(scope, Exit.void)
      })))
})

describe("saving", () => {
  const standing = Effect.gen(function*() {
    const vmm = yield* launch
    yield* vmm.start
    yield* vmm.pause
    return vmm
  })

  it.effect("a machine writes two files, of which others may map one", () =>
    onHost({}, ({ calls, files }) =>
      Effect.gen(function*() {
        const vmm = yield* standing
        const { form, madeBy, platform } = yield* vmm.save("/out")
        assert.deepStrictEqual([form, madeBy, platform["snapshotFormat"]], ["full", "Firecracker 1.16.1", "10.0.0"])
        assert.strictEqual(
          calls.at(-1),
          `PUT /snapshot/create {"snapshot_path":"/out/state","mem_file_path":"/out/memory","snapshot_type":"Full"}`
        )
        assert.strictEqual(files.at(-1), "/out/memory for all")
      })))

  it.effect("leaves nothing half-made", () =>
    onHost({ answer: ({ path }) => path === "/snapshot/create" ? faulty("No space left on device") : undefined }, (
      { files }
    ) =>
      Effect.gen(function*() {
        const vmm = yield* standing
        assert.include(yield* messageOf(vmm.save("/out")), "snapshot failed")
        assert.strictEqual(files.at(-1), "removed /out/state, /out/memory, /out/pages")
      })))

  it.effect("is waited for by whoever leaves: Firecracker cannot be called off", () =>
    Effect.gen(function*() {
      const written = yield* Deferred.make<void>()
      yield* onHost({
        answer: ({ path }) => path === "/snapshot/create" ? Effect.as(Deferred.await(written), {}) : undefined
      }, () =>
        Effect.gen(function*() {
          const vmm = yield* standing
          const saving = yield* Effect.forkChild(vmm.save("/out"), { startImmediately: true })
          const leaving = yield* Effect.forkChild(Fiber.interrupt(saving), { startImmediately: true })
          yield* TestClock.adjust("1 minute")
          assert.isUndefined(leaving.pollUnsafe())
          yield* Deferred.succeed(written, undefined)
          yield* Fiber.join(leaving)
        }))
    }))

  it.effect("fails when it takes too long, and not before Firecracker writes no more", () => {
    let answersAt = Infinity
    return onHost({
      answer: (request) =>
        request.path === "/snapshot/create"
          ? slow(request)
          : request.path !== "/"
          ? undefined
          : Effect.flatMap(Clock.currentTimeMillis, (now) =>
            now < answersAt
              ? slow(request)
              : Effect.succeed({
                status: 200,
                body: `{"app_name":"Firecracker","id":"x","state":"Paused","vmm_version":"1.16.1"}`
              }))
    }, ({ files }) =>
      Effect.gen(function*() {
        const vmm = yield* standing
        const saving = yield* Effect.forkChild(messageOf(vmm.save("/out")), { startImmediately: true })
        for (let i = 0; i < 80; i++) yield* TestClock.adjust("5 seconds")
        assert.isUndefined(saving.pollUnsafe())
        answersAt = 0
        for (let i = 0; i < 2; i++) yield* TestClock.adjust("5 seconds")
        assert.include(yield* Fiber.join(saving), "PUT /snapshot/create: no answer within 5m")
        assert.strictEqual(files.at(-1), "removed /out/state, /out/memory, /out/pages")
      }))
  })

  it.effect("a machine that has not run keeps what it boots", () =>
    onHost({}, ({ files }) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.strictEqual((yield* vmm.save("/out")).form, "unstarted")
        assert.deepStrictEqual(files.slice(1), ["/k to /out/kernel", "/i to /out/initramfs"])
      })))
})

const base = snapshot("full")
const diff: Snapshot = {
  ...base,
  id: "e".repeat(64),
  directory: "/diff",
  base,
  manifest: { ...base.manifest, form: "diff", base: base.id }
}
const restoreDiff = (from = diff, how: LaunchOptions = {}) =>
  MicroVmProvider.use((provider) => provider.launch(spec, { ...how, from }))

describe("a difference", () => {
  it.effect("is written with a list of its pages, and names its base", () =>
    onHost({ options: { diffs: true } }, ({ calls, files }) =>
      Effect.gen(function*() {
        const vmm = yield* launch
        assert.isUndefined((yield* vmm.save("/out")).moment)
        yield* vmm.start
        assert.include(calls.find((call) => call.startsWith("PUT /machine-config")), `"track_dirty_pages":true`)
        yield* vmm.pause
        const whole = yield* vmm.save("/out")
        assert.deepStrictEqual([whole.form, whole.moment, whole.base], ["full", "moment 1", undefined])
        const saved = yield* vmm.save("/out", base)
        assert.deepStrictEqual([saved.form, saved.moment, saved.base], ["diff", "moment 2", base.id])
        assert.include(calls.at(-1), `"mem_file_path":"/out/memory","snapshot_type":"Diff"}`)
        assert.deepStrictEqual(files.slice(-2), ["pages of /out/memory in /out/pages", "/out/memory for all"])
      })))

  it.effect("of a jail is looked at before it is moved out", () =>
    onHost(
      {
        options: { diffs: true, jail: { user: { uid: 7, gid: 8 } } },
        observed: { jailer: { binary: "/bin/jailer", version: observations.version } }
      },
      ({ files }) =>
        Effect.gen(function*() {
          const vmm = yield* launch
          yield* vmm.start
          yield* vmm.pause
          yield* vmm.save("/out", base)
          const [pages, ...moves] = files.slice(-4)
          assert.match(pages ?? "", /^pages of .*\/saved-memory in \/out\/pages$/)
          assert.deepStrictEqual(moves, [
            "/saved-state to /out/state, 320 MiB at most",
            "/saved-memory to /out/memory, 320 MiB at most",
            "/out/memory for all"
          ])
        })
    ))

  it.effect("is asked for of a machine only whose pages are looked after", () =>
    Effect.gen(function*() {
      assert.isFalse(FirecrackerProvider.capabilities("x86_64").diff)
      assert.isTrue(FirecrackerProvider.capabilities("x86_64", { diffs: true }).diff)
      for (const [minor, memoryMib, can] of [[14, 3072, true], [14, 3073, false], [15, 3073, true]] as const) {
        yield* onHost({
          options: { diffs: true },
          observed: { version: { major: 1, minor, patch: 0 } },
          answer: ({ path }) =>
            path === "/version"
              ? Effect.succeed({ status: 200, body: `{"firecracker_version":"1.${minor}.0"}` })
              : undefined
        }, ({ calls }) =>
          Effect.gen(function*() {
            const vmm = yield* MicroVmProvider.use((provider) => provider.launch({ ...spec, memoryMib }))
            yield* vmm.start
            yield* vmm.pause
            assert.strictEqual((yield* vmm.save("/out")).moment, can ? "moment 1" : undefined)
            const before = calls.length
            const outcome = yield* Effect.result(vmm.save("/out", base))
            assert.strictEqual(Result.isSuccess(outcome), can)
            if (Result.isFailure(outcome)) {
              assert.strictEqual(outcome.failure.reason._tag, "Unsupported")
              assert.match(outcome.failure.message, /1\.15 or later/)
              assert.strictEqual(calls.length, before)
            }
          }))
      }
    }))

  it.effect("whose pages cannot be told leaves nothing", () =>
    onHost(
      { options: { diffs: true }, memoryFault: "its file system does not tell" },
      ({ files }) =>
        Effect.gen(function*() {
          const vmm = yield* launch
          yield* vmm.start
          yield* vmm.pause
          assert.include(yield* messageOf(vmm.save("/out", base)), "its file system does not tell")
          assert.strictEqual(files.at(-1), "removed /out/state, /out/memory, /out/pages")
        })
    ))

  it.effect("is put over its base in a file of the machine's own, which is gone once that is up", () =>
    Effect.gen(function*() {
      const deeper = { ...diff, id: "d".repeat(64), directory: "/deeper", base: diff }
      const from = { ...deeper, manifest: { ...diff.manifest, base: diff.id } }
      for (const memoryBackend of ["file", "uffd"] as const) {
        yield* onHost({ options: { diffs: true, memoryBackend } }, ({ calls, files }) =>
          Effect.gen(function*() {
            yield* restoreDiff(from)
            assert.include(calls[0] ?? "", `"track_dirty_pages":true`)
            const merged = "/d/memory of /s/memory /diff/memory /diff/pages /deeper/memory /deeper/pages"
            assert.deepStrictEqual(
              files,
              memoryBackend === "file"
                ? ["", merged, "state to /deeper/state, memory to /d/memory, firecracker.log", "directory removed"]
                : [
                  "",
                  merged,
                  "state to /deeper/state, firecracker.log",
                  "pages of /d/memory at /d/pages.sock",
                  "directory removed"
                ]
            )
          }))
      }
    }))

  it.effect("is put together once, also where the clock is refused; and outlives us as any other", () =>
    onHost({
      answer: ({ body = "", path }) =>
        path === "/snapshot/load" && body.includes("clock_realtime")
          ? faulty("Load snapshot error: Failed to restore from snapshot: clock_realtime")
          : undefined
    }, ({ files }) =>
      Effect.gen(function*() {
        yield* through(restoreDiff(diff, { keep: { directory: "/k" } }))
        assert.strictEqual(files.filter((what) => what.startsWith("/d/memory of")).length, 1)
        assert.deepStrictEqual(files.slice(-2), ["/k/machine/kept.json written", "directory removed"])
      })))

  it.effect("that cannot be put together is told, and leaves nothing", () =>
    onHost({ memoryFault: "ENOSPC" }, ({ calls, files }) =>
      Effect.gen(function*() {
        const message = yield* messageOf(restoreDiff())
        assert.match(message, /putting its memory together failed: .*ENOSPC/)
        assert.deepStrictEqual([files, calls], [["", "directory removed"], []])
        assert.strictEqual(yield* alive, 0)
      })))

  it.effect("leaves nothing when whoever restores it leaves", () =>
    onHost({ memoryFault: "never" }, ({ files }) =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(restoreDiff(), { startImmediately: true })
        yield* Effect.yieldNow
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(files, ["", "directory removed"])
      })))

  it.effect("says which file of its bases is not there, before it does anything", () =>
    onHost(
      { inspect: (path) => path === "/s/memory" ? { fault: "it cannot be opened: ENOENT" } : {} },
      ({ files }) =>
        Effect.gen(function*() {
          const { reason } = yield* Effect.flip(restoreDiff())
          assert.deepInclude(reason, { _tag: "SnapshotUnusable", snapshot: diff.id })
          assert.include(reason.message, "/s/memory: it cannot be opened: ENOENT")
          assert.deepStrictEqual(files, [])
        })
    ))
})

describe("the pages that machines need first", () => {
  const file = `/sets/${"f".repeat(64)}.json`
  const run = Effect.tap(restore(), (vmm) => vmm.resume)
  const options: FirecrackerProvider.Options = { memoryBackend: "uffd", workingSets: { directory: "/sets" } }
  const written = [`removed ${file}.new`, `${file} written`]
  const started = (how = "") => `pages of /s/memory at /d/pages.sock${how}`

  it.effect("are written down of the first machine, and copied unasked for those after it", () =>
    Effect.gen(function*() {
      const texts = new Map<string, string>()
      yield* onHost({ options, texts, pages: [7, 0, 1] }, ({ files }) =>
        Effect.gen(function*() {
          yield* run
          assert.deepStrictEqual(files.slice(1), [started(", recorded")])
          yield* TestClock.adjust("9 seconds")
          assert.isFalse(texts.has(file))
          yield* TestClock.adjust("1 second")
          assert.deepStrictEqual(files.slice(2), written)
        }))
      assert.strictEqual(texts.get(file), `{"pageSize":4096,"pages":[7,0,1]}`)
      yield* onHost({ options, texts }, ({ files }) =>
        Effect.gen(function*() {
          yield* run
          yield* TestClock.adjust("1 minute")
          assert.deepStrictEqual(files.slice(1), [started(", first 7,0,1")])
        }))
    }))

  it.effect("are not those of a machine that has not run", () =>
    Effect.gen(function*() {
      const texts = new Map<string, string>()
      yield* onHost({ options, texts, pages: [1] }, () => Effect.andThen(restore(), TestClock.adjust("1 minute")))
      assert.isFalse(texts.has(file))
    }))

  it.effect("are kept when the machine ends before, however it does", () =>
    Effect.gen(function*() {
      for (const end of ["scope", "machine"] as const) {
        const texts = new Map<string, string>()
        const gone = yield* Deferred.make<"Gone">()
        yield* onHost({ options, texts, pages: [1], pagesEnd: Deferred.await(gone) }, ({ files }) =>
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            yield* Scope.provide(run, scope)
            if (end === "scope") {
              yield* through(Scope.close(scope, Exit.void))
            } else yield* Deferred.succeed(gone, "Gone")
            yield* TestClock.adjust(0)
            assert.isTrue(texts.has(file), end)
            // The server is there until they are.
            if (end === "scope") {
              assert.isAbove(files.indexOf("pages end"), files.indexOf(`${file} written`))
            }
            yield* through(Scope.close(scope, Exit.void))
          }))
      }
    }))

  it.effect("are found out anew where what is written is no such thing", () =>
    Effect.gen(function*() {
      for (const text of ["", "{", `{"pageSize":5,"pages":[]}`, `{"pageSize":4096,"pages":[-1]}`]) {
        const texts = new Map([[file, text]])
        yield* onHost({ options, texts, pages: [3] }, ({ files }) =>
          Effect.gen(function*() {
            yield* run
            assert.strictEqual(files[1], started(", recorded"))
            yield* TestClock.adjust("10 seconds")
            assert.strictEqual(texts.get(file), `{"pageSize":4096,"pages":[3]}`)
          }))
      }
    }))

  it.effect("are bounded, and of a machine that asked for none there are none", () =>
    Effect.gen(function*() {
      for (const count of [0, 65_536, 70_000]) {
        const texts = new Map<string, string>()
        const pages = Array.from({ length: count }, (_, index) => 99_999_999 - index)
        yield* onHost({ options, texts, pages }, () => Effect.andThen(run, TestClock.adjust("10 seconds")))
        assert.strictEqual(texts.get(file)?.match(/\d{8}/g)?.length ?? 0, Math.min(count, 65_536))
        // What `read` takes.
        assert.isBelow(texts.get(file)?.length ?? 0, 2 ** 20)
      }
    }))

  it.effect("do without what cannot be written", () =>
    onHost({ options, pages: [1], writeFault: "EROFS" }, () =>
      Effect.gen(function*() {
        const vmm = yield* run
        yield* TestClock.adjust("10 seconds")
        assert.strictEqual((yield* vmm.poll)._tag, "None")
      })))

  it.effect("are nobody's business where memory is mapped, or none is restored", () =>
    Effect.gen(function*() {
      const texts = new Map([[file, "{"]])
      const mapped = { ...options, memoryBackend: "file" } as const
      yield* onHost({ options: mapped, texts, pages: [1] }, () => Effect.andThen(run, TestClock.adjust("10 seconds")))
      yield* onHost({ options, texts, pages: [1] }, () => Effect.andThen(launch, TestClock.adjust("10 seconds")))
      assert.strictEqual(texts.get(file), "{")
    }))
})

describe("restoring", () => {
  it.effect("loads, and hands over a machine that stands still", () =>
    onHost({}, ({ calls, files }) =>
      Effect.gen(function*() {
        const vmm = yield* restore()
        assert.deepStrictEqual(files, ["state to /s/state, memory to /s/memory, firecracker.log"])
        assert.deepStrictEqual(calls, [
          `PUT /snapshot/load {"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},` +
          `"resume_vm":false,"clock_realtime":true}`
        ])
        yield* vmm.resume
        assert.strictEqual(calls.at(-1), `PATCH /vm {"state":"Resumed"}`)
      })))

  it.effect("tells again what no snapshot holds", () =>
    onHost({
      options: {
        metrics: true,
        devices: {
          serial: { rate_limiter: { size: 1000, refill_time: 100 } },
          networkInterfaces: [{ iface_id: "n0", host_dev_name: "tap0" }],
          mmds: { config: { network_interfaces: ["n0"], version: "V2" }, data: { latest: 1 } }
        }
      }
    }, ({ calls }) =>
      Effect.gen(function*() {
        yield* restore()
        assert.deepStrictEqual(pathsOf(calls), ["PUT /metrics", "PUT /serial", "PUT /snapshot/load", "PUT /mmds"])
        assert.include(calls[2] ?? "", `"network_overrides":[{"iface_id":"n0","host_dev_name":"tap0"}]`)
      })))

  it.effect("does without the clock where that was refused", () =>
    onHost({
      answer: ({ body = "", path }) =>
        path === "/snapshot/load" && body.includes("clock_realtime")
          ? faulty("Load snapshot error: Failed to restore from snapshot: clock_realtime requested but not present")
          : undefined
    }, ({ calls, files }) =>
      Effect.gen(function*() {
        yield* through(restore())
        assert.lengthOf(calls, 2)
        assert.notInclude(calls[1] ?? "", "clock_realtime")
        assert.strictEqual(yield* alive, 1)
        assert.strictEqual(files[1], "directory removed")
      })))

  it.effect("does without the clock also where Firecracker has ended with its refusal", () => {
    let isEnded = false
    return onHost({
      log: "its log",
      process: { exitAfter: "200 millis", code: 1 },
      answer: ({ body = "", path }) => {
        if (path !== "/snapshot/load") return undefined
        if (!body.includes("clock_realtime")) isEnded = true
        const fault = "Load snapshot error: Failed to restore from snapshot: clock_realtime requested but not present"
        return isEnded ? undefined : Effect.delay(faulty(fault), "201 millis")
      }
    }, ({ calls }) =>
      Effect.gen(function*() {
        yield* through(restore())
        assert.lengthOf(calls.filter((call) => call.startsWith("PUT /snapshot/load")), 2)
      }))
  })

  it.effect("tells why a snapshot was not loaded, and that Firecracker has ended for it", () =>
    onHost({
      process: { exitAfter: "200 millis", code: 1 },
      answer: ({ path }) =>
        path === "/snapshot/load" ? faulty("Load snapshot error: Failed to restore from snapshot: bad CRC") : undefined
    }, () =>
      Effect.gen(function*() {
        const error = yield* through(Effect.flip(restore()))
        assert.deepInclude(error.reason, { _tag: "LaunchFailed", stage: "restoring" })
        assert.match(error.message, /bad CRC.*exited with code 1/s)
      })))

  it.effect("says which file of a snapshot is not there, before it does anything", () =>
    onHost(
      { inspect: (path) => path === "/s/memory" ? { fault: "it cannot be opened: ENOENT" } : {} },
      ({ files }) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(restore())
          assert.strictEqual(error.reason._tag, "SnapshotUnusable")
          assert.include(error.message, "its memory: it cannot be opened: ENOENT")
          assert.deepStrictEqual(files, [])
        })
    ))

  it.effect("may have its memory served, for as long as it is there", () =>
    onHost({ options: { memoryBackend: "uffd" } }, ({ calls, files }) =>
      Effect.gen(function*() {
        const vmm = yield* restore()
        assert.include(calls[0] ?? "", `"mem_backend":{"backend_type":"Uffd","backend_path":"pages.sock"}`)
        yield* vmm.request("Kill")
        yield* through(vmm.ended)
        assert.deepStrictEqual(files, [
          "state to /s/state, firecracker.log",
          "pages of /s/memory at /d/pages.sock"
        ])
      })))

  it.effect("is killed when nobody serves its memory any more, and tells why", () =>
    Effect.gen(function*() {
      const failing = yield* Deferred.make<"Gone", FirecrackerError.FirecrackerError>()
      yield* onHost({ options: { memoryBackend: "uffd" }, pagesEnd: Deferred.await(failing) }, () =>
        Effect.gen(function*() {
          const vmm = yield* restore()
          yield* vmm.resume
          const why = FirecrackerError.make(new FirecrackerError.PageServerFailed({ why: "EFAULT" }))
          yield* Deferred.fail(failing, why)
          const end = yield* through(vmm.ended)
          assert.strictEqual(end._tag === "Failed" ? end.why : end._tag, why.message)
          assert.deepStrictEqual(yield* signals, ["SIGKILL"])
        }))
    }))

  it.effect("fails when nobody serves its memory from the start, however long Firecracker waits", () =>
    Effect.gen(function*() {
      const why = FirecrackerError.make(new FirecrackerError.PageServerFailed({ why: "no userfaultfd here" }))
      yield* onHost({
        options: { memoryBackend: "uffd" },
        pagesEnd: Effect.delay(Effect.fail(why), "1 second"),
        answer: ({ path }) => path === "/snapshot/load" ? Effect.never : undefined
      }, ({ files }) =>
        Effect.gen(function*() {
          const error = yield* through(Effect.flip(restore()))
          assert.match(error.message, /restoring failed: .*no userfaultfd here/)
          assert.deepStrictEqual(files.slice(-2), ["pages end", "directory removed"])
        }))
    }))

  it.effect("boots what was saved before it ran, once it is resumed", () =>
    onHost({}, ({ calls }) =>
      Effect.gen(function*() {
        const vmm = yield* restore("unstarted")
        assert.strictEqual((yield* vmm.save("/out")).form, "unstarted")
        yield* vmm.resume
        assert.strictEqual(calls.at(-1), `PUT /actions {"action_type":"InstanceStart"}`)
        yield* vmm.pause
        yield* vmm.resume
        assert.strictEqual(calls.at(-1), `PATCH /vm {"state":"Resumed"}`)
        assert.strictEqual((yield* vmm.save("/out")).form, "full")
      })))
})

describe("a machine that is kept", () => {
  const keep = { directory: "/keep" }
  const keeping = MicroVmProvider.use((provider) => provider.launch(spec, { keep, cgroup: { path: "/cg" } }))
  const attach = MicroVmProvider.use((provider) => provider.attach(spec, keep))
  const saying = (state: string) => ({ method, path }: ApiRequest): Answer | undefined =>
    method === "GET" && path === "/"
      ? Effect.succeed({
        status: 200,
        body: JSON.stringify({ app_name: "Firecracker", id: "a", state, vmm_version: "1.16.1" })
      })
      : undefined

  it.effect("is in the directory that it is given, is written down when it is whole, and stays", () =>
    onHost({ options: { metrics: true }, answer: saying("Not started") }, ({ files }) =>
      Effect.gen(function*() {
        yield* Effect.scoped(keeping)
        assert.deepStrictEqual(files, [
          "/keep/machine kept, kernel to /k, initramfs to /i, firecracker.log, firecracker.metrics",
          "/keep/machine/firecracker.metrics opened",
          "held in /keep, of /cg",
          "/keep/machine/kept.json written",
          "/keep/machine/firecracker.metrics closed"
        ])
        assert.strictEqual(yield* alive, 1)
        assert.deepStrictEqual(yield* signals, [])
      })))

  it.effect.each([["Not started", "created"], ["Running", "running"], ["Paused", "paused"]] as const)(
    "that says it is %s is found %s",
    ([said, found]) =>
      onHost({ answer: saying(said) }, ({ calls }) =>
        Effect.gen(function*() {
          yield* Effect.scoped(keeping)
          const { state, vmm } = yield* attach
          assert.strictEqual(state, found)
          calls.length = 0
          yield* vmm.resume
          assert.deepStrictEqual(calls, [
            found === "created" ? `PUT /actions {"action_type":"InstanceStart"}` : `PATCH /vm {"state":"Resumed"}`
          ])
          assert.isTrue(Option.isSome(vmm.pid))
          assert.strictEqual(yield* messageOf(vmm.channel("none")), noChannel)
          yield* through(vmm.request("Kill"))
          assert.strictEqual((yield* through(vmm.ended))._tag, "Killed")
        }))
  )

  const noChannel = `Machine "a" has no channel "none": it has agent; name it in the spec's channels`

  it.effect("has a plan that follows it, whoever saves it", () =>
    onHost({ answer: saying("Not started") }, ({ files }) =>
      Effect.gen(function*() {
        yield* Effect.scoped(keeping)
        const { vmm } = yield* attach
        const saved = yield* vmm.save("/to")
        assert.strictEqual(saved.form, "unstarted")
        assert.strictEqual(saved.madeBy, "Firecracker 1.16.1")
        const { platform } = yield* MicroVmProvider
        assert.deepStrictEqual(saved.platform, yield* Effect.fromResult(platform(spec)))
        assert.deepStrictEqual(files.slice(-2), ["/k to /to/kernel", "/i to /to/initramfs"])
      })))

  it.effect("that gives no answer is not waited for for ever, and is not ended", () =>
    onHost({ answer: (request) => request.path === "/" ? slow(request) : undefined }, () =>
      Effect.gen(function*() {
        yield* Effect.scoped(keeping)
        const asking = yield* Effect.forkChild(Effect.flip(attach), { startImmediately: true })
        yield* TestClock.adjust("29 seconds")
        assert.isUndefined(asking.pollUnsafe())
        const error = yield* through(Fiber.join(asking))
        assert.deepInclude(error.reason, { _tag: "AttachFailed", isHeld: false })
        assert.include(error.message, "its Firecracker gave no answer within 30 seconds")
        assert.deepStrictEqual(yield* signals, [])
      })))

  describe("what `onMachine` does for it", () => {
    const hooked = (again: FirecrackerProvider.OnMachine) => {
      let calls = 0
      const onMachine: FirecrackerProvider.OnMachine = (machine) => calls++ === 0 ? Effect.void : again(machine)
      return { answer: saying("Running"), options: { onMachine } }
    }

    it.effect("is not waited for when the machine ends meanwhile, and it is told as one that has ended", () =>
      onHost(hooked(() => Effect.never), () =>
        Effect.gen(function*() {
          yield* Effect.scoped(keeping)
          const attaching = yield* Effect.forkScoped(attach, { startImmediately: true })
          yield* TestClock.adjust("1 minute")
          assert.isUndefined(attaching.pollUnsafe())
          yield* exit
          const { vmm } = yield* through(Fiber.join(attaching))
          assert.strictEqual((yield* through(vmm.ended))._tag, "Reset")
        })))

    const faults: ReadonlyArray<readonly [string, RegExp, FirecrackerProvider.OnMachine]> = [
      ["a defect", /what `onMachine` does threw: Error: no such thing/, () => Effect.die(new Error("no such thing"))],
      ["a throw", /what `onMachine` does threw: Error: not a thing/, () => {
        throw new Error("not a thing")
      }],
      ["an error", /what `onMachine` does: .*No balloon/s, ({ api }) => api.patchBalloon({ amount_mib: 1 })]
    ]
    it.effect.each(faults)("fails the getting hold of it by %s, and nothing is ended", ([, message, again]) => {
      const { answer, options } = hooked(again)
      const refuse = faulty("No balloon device found.")
      return onHost(
        { options, answer: (request) => request.path === "/balloon" ? refuse : answer(request) },
        () =>
          Effect.gen(function*() {
            yield* Effect.scoped(keeping)
            const error = yield* through(Effect.flip(attach))
            assert.deepInclude(error.reason, { _tag: "AttachFailed", isHeld: false })
            assert.match(error.message, message)
            assert.deepStrictEqual(yield* signals, [])
          })
      )
    })

    it.effect("is not what failed when the machine has ended", () => {
      const gone = Deferred.makeUnsafe<void>()
      return onHost(
        hooked(() => Effect.andThen(Deferred.await(gone), Effect.die("it is gone"))),
        () =>
          Effect.gen(function*() {
            yield* Effect.scoped(keeping)
            const attaching = yield* Effect.forkScoped(attach, { startImmediately: true })
            yield* exit
            yield* Deferred.succeed(gone, undefined)
            const { vmm } = yield* through(Fiber.join(attaching))
            assert.strictEqual((yield* through(vmm.ended))._tag, "Reset")
          })
      )
    })
  })

  it.effect("that has ended tells its end, and everything else how it ended", () => {
    let isGone = false
    return onHost({ answer: (request) => isGone ? disconnected(request) : undefined }, () =>
      Effect.gen(function*() {
        yield* Effect.scoped(keeping)
        yield* exit
        isGone = true
        const { vmm } = yield* attach
        assert.strictEqual((yield* through(vmm.ended))._tag, "Reset")
        assert.include(
          yield* through(messageOf(vmm.pause)),
          "Firecracker ended at pause: exited with code 0 (the guest ended"
        )
      }))
  })

  const held = ProcessErrorReason.HandTaken({ directory: "/keep" })
  const broken = ProcessErrorReason.HolderFailed({ directory: "/keep", why: "it makes no sense" })
  it.effect.each([[held, true], [broken, false]] as const)(
    "is not to be had: %o",
    ([holdFault, isHeld]) =>
      onHost({ holdFault }, () =>
        Effect.gen(function*() {
          const { reason } = yield* Effect.flip(attach)
          assert.deepInclude(reason, { _tag: "AttachFailed", isHeld })
        }))
  )

  it.effect("is attached to as itself only, and when it is whole", () =>
    onHost({ answer: saying("Halted") }, () =>
      Effect.gen(function*() {
        assert.include(yield* messageOf(attach), "it holds no process")
        yield* Effect.scoped(keeping)
        assert.include(yield* messageOf(attach), `its Firecracker says that it is "Halted"`)
        const other = { ...spec, id: Result.getOrThrow(MachineSpec.make({ id: "b", kernel: "/k" })).id }
        const provider = yield* MicroVmProvider
        assert.include(yield* messageOf(provider.attach(other, keep)), `the one in /keep is "a"`)
      })))

  it.effect("is destroyed when it does not come up, and when its launch is interrupted", () =>
    onHost({
      answer: (request) => request.path === "/vsock" ? Effect.never : undefined
    }, ({ files }) =>
      Effect.gen(function*() {
        const launching = yield* Effect.forkChild(keeping, { startImmediately: true })
        yield* through(Fiber.interrupt(launching))
        assert.deepStrictEqual(files.slice(-2), ["held in /keep, of /cg", "destroyed in /keep"])
        assert.strictEqual(yield* alive, 0)
        assert.include(yield* messageOf(attach), "its launch was broken off")
      })))

  const user = { uid: 1001, gid: 1001 }
  const observed = { jailer: { binary: "/bin/jailer", version: observations.version } }
  it.effect.each(
    [
      [
        "in a jail",
        { jail: { user } },
        { keep },
        /does not support machines that are kept in jails: leave out the jail/
      ],
      [
        "in a jail, in a control group",
        { jail: { user } },
        { cgroup: { path: "/cg" } },
        /a control group for a machine in a jail/
      ],
      [
        "with its memory served",
        { memoryBackend: "uffd" },
        { keep, from: snapshot("full") },
        /MICROVM_MEM_BACKEND=file/
      ]
    ] as const
  )(
    "is refused before anything is done: %s",
    ([, options, how, why]) =>
      onHost({ observed, options }, ({ files }) =>
        Effect.gen(function*() {
          const provider = yield* MicroVmProvider
          const error = yield* Effect.flip(provider.launch(spec, how))
          assert.strictEqual(error.reason._tag, "Unsupported")
          assert.match(error.message, why)
          assert.deepStrictEqual(Result.getFailure(provider.plan(spec, how)), Option.some(error))
          assert.deepStrictEqual(files, [])
          assert.strictEqual(provider.capabilities.keep, !("jail" in options))
        }))
  )

  it.effect("boots, where only the memory of a restored one would be served", () =>
    onHost({ options: { memoryBackend: "uffd" } }, () => Effect.asVoid(Effect.scoped(keeping))))
})

describe("a jailed machine", () => {
  const observed = { jailer: { binary: "/bin/jailer", version: observations.version } }

  it.effect("is told the same, in its jail, and is its own user's", () => {
    const users = [{ uid: 1001, gid: 1001 }, { uid: 1002, gid: 1002 }]
    const free: Array<number> = []
    const user = {
      take: Effect.acquireRelease(
        Effect.sync(() => users.shift() ?? { uid: 9, gid: 9 }),
        ({ uid }) => Effect.sync(() => void free.push(uid))
      )
    }
    return onHost({ observed, options: { jail: { user } } }, ({ calls, files }) =>
      Effect.gen(function*() {
        yield* through(Effect.scoped(Effect.gen(function*() {
          const vmm = yield* launch
          yield* launch
          assert.deepStrictEqual(files, ["jail of uid 1001", "jail of uid 1002"])
          assert.include(calls[1] ?? "", `"kernel_image_path":"kernel"`)
          yield* vmm.start
          yield* vmm.pause
          yield* vmm.save("/out")
          assert.include(calls.at(-1) ?? "", `"snapshot_path":"saved-state","mem_file_path":"saved-memory"`)
          assert.deepStrictEqual(files.slice(2), [
            "/saved-state to /out/state, 320 MiB at most",
            "/saved-memory to /out/memory, 320 MiB at most",
            "/out/memory for all"
          ])
        })))
        assert.sameMembers(free, [1001, 1002])
        assert.strictEqual(files.filter((what) => what === "jail removed").length, 2)
        assert.isFalse((yield* MicroVmProvider).capabilities.rename)
      }))
  })

  it.effect("is not saved once it has run, if it writes to a file that the jail has a copy of", () =>
    onHost({
      observed,
      options: { jail: { user: { uid: 1001, gid: 1001 } } },
      inspect: (path) => path === "/dev/loop7" ? { device: true } : {}
    }, ({ calls, files }) =>
      Effect.gen(function*() {
        const saved = (drives: ReadonlyArray<{ name: string; path: string; readOnly?: boolean }>) =>
          Effect.scoped(Effect.gen(function*() {
            const provider = yield* MicroVmProvider
            const vmm = yield* provider.launch(yield* MachineSpec.decode({ id: "a", kernel: "/k", drives }))
            yield* vmm.save("/unstarted")
            yield* vmm.start
            yield* vmm.pause
            return (yield* vmm.save("/out")).form
          }))
        const tools = { name: "tools", path: "/tools", readOnly: true }
        const data = { name: "data", path: "/data" }
        assert.strictEqual(yield* through(saved([tools, { name: "data", path: "/dev/loop7" }])), "full")
        const created = calls.length
        const error = yield* through(Effect.flip(saved([tools, data])))
        assert.strictEqual(error.reason._tag, "Unsupported")
        assert.match(error.message, /drives\[1\]\.path.*give a block device/)
        assert.isFalse(calls.slice(created).some((call) => call.includes("/snapshot/create")))
        assert.notInclude(files.slice(-3).join(), "/out/")
      })))

  it.effect("that is no child of ours is ended all the same, and never by SIGTERM", () =>
    onHost({
      observed,
      options: { jail: { user: { uid: 1001, gid: 1001 }, newPidNamespace: true } },
      process: { exitAfter: "1 millis" }
    }, ({ files }) =>
      Effect.gen(function*() {
        const machine = yield* Machine.launch(spec)
        assert.deepStrictEqual(machine.pid, Option.some(4000))
        yield* machine.start
        const outcome = yield* through(machine.shutdown({ request: { atLeast: "SIGTERM" } }))
        assert.deepStrictEqual(outcome.stages.map(({ end, name }) => `${name} ${end}`), [
          "SIGTERM failed",
          "SIGKILL ended"
        ])
        assert.strictEqual((yield* machine.ended)._tag, "Killed")
        assert.deepStrictEqual(yield* signals, ["SIGKILL"])
        assert.deepStrictEqual(files, ["jail of uid 1001"])
      })))

  it.effect("whose jailer fails tells what that said, and leaves nothing", () =>
    onHost({
      observed,
      options: { jail: { user: { uid: 1001, gid: 1001 } } },
      process: { exitAfter: "1 millis", code: 1, stderr: "Failed to create the cgroup\n" },
      answer: disconnected
    }, ({ files }) =>
      Effect.gen(function*() {
        const message = yield* through(messageOf(launch))
        assert.match(message, /exited with code 1.*Failed to create the cgroup/s)
        assert.deepStrictEqual(files, ["jail of uid 1001", "jail removed"])
      })))
})

describe("config", () => {
  const read = (env: Readonly<Record<string, string>>) =>
    Effect.exit(FirecrackerProvider.config.parse(ConfigProvider.fromEnv({ env })))
  const options = (env: Readonly<Record<string, string>>) => Effect.flatten(read(env))

  it.effect("has defaults for all", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* options({}), {
        binary: undefined,
        kvm: "check",
        kernelArgs: [],
        stateDirectory: undefined,
        deadlines: { read: undefined, change: undefined },
        readyWithin: undefined,
        memoryBackend: "file",
        workingSets: undefined,
        jail: undefined
      })
    }))

  it.effect("reads what is set", () =>
    Effect.gen(function*() {
      const all = yield* options({
        MICROVM_FIRECRACKER_BIN: "/opt/firecracker",
        MICROVM_FIRECRACKER_KVM: "assume",
        MICROVM_FIRECRACKER_BOOT_ARGS: " nomodule  x=1 ",
        MICROVM_FIRECRACKER_STATE_DIR: "/run/vms",
        MICROVM_FIRECRACKER_API_TIMEOUT_MS: "250",
        MICROVM_FIRECRACKER_SOCKET_READY_TIMEOUT_MS: "1500",
        MICROVM_MEM_BACKEND: " UFFD ",
        MICROVM_MEM_WORKING_SETS: "/var/cache/sets",
        MICROVM_JAILER_BIN: "/opt/jailer",
        MICROVM_JAILER_UID: "123",
        MICROVM_JAILER_GID: "100",
        MICROVM_JAILER_CHROOT_BASE: "/jails",
        MICROVM_JAILER_CGROUP_PARENT: "microvm.slice",
        MICROVM_JAILER_CGROUP_VERSION: "2"
      })
      assert.deepStrictEqual(all, {
        binary: "/opt/firecracker",
        kvm: "assume",
        kernelArgs: ["nomodule", "x=1"],
        stateDirectory: "/run/vms",
        deadlines: { read: Duration.millis(250), change: Duration.millis(250) },
        readyWithin: Duration.millis(1500),
        memoryBackend: "uffd",
        workingSets: { directory: "/var/cache/sets" },
        jail: {
          jailer: "/opt/jailer",
          user: { uid: 123, gid: 100 },
          base: "/jails",
          parentCgroup: "microvm.slice",
          cgroupVersion: 2
        }
      })
    }))

  for (
    const [name, values] of [
      ["MICROVM_MEM_BACKEND", ["mmap", "filee", " "]],
      ["MICROVM_FIRECRACKER_KVM", ["yes"]],
      ["MICROVM_FIRECRACKER_API_TIMEOUT_MS", ["0", "-1", "x", "1.5"]],
      ["MICROVM_FIRECRACKER_SOCKET_READY_TIMEOUT_MS", ["0", "5s"]],
      ["MICROVM_JAILER_UID", ["0", "root", "4294967295"]],
      ["MICROVM_JAILER_CGROUP_VERSION", ["3"]]
    ] as const
  ) {
    it.effect(`refuses a wrong ${name}, by its name`, () =>
      Effect.gen(function*() {
        const jail = { MICROVM_JAILER_BIN: "/j", MICROVM_JAILER_UID: "1", MICROVM_JAILER_GID: "1" }
        for (const value of values) {
          const result = yield* read({ ...jail, [name]: value })
          assert.isTrue(Exit.isFailure(result), value)
          assert.include(String(Exit.isFailure(result) ? result.cause : ""), name)
        }
      }))
  }

  it.effect("wants a user for a jail", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(options({ MICROVM_JAILER_BIN: "/j" }))
      assert.isTrue(error instanceof Config.ConfigError)
      assert.include(String(error), "MICROVM_JAILER_UID")
    }))
})
