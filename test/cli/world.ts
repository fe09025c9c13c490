/**
 * A world for `microvm run` in which everything happens in memory and by the virtual clock: the backend, the guest, the
 * image, the terminal and the signals.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PlatformError from "effect/PlatformError"
import * as Queue from "effect/Queue"
import * as Result from "effect/Result"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { Control } from "../../src/cli/Control.ts"
import { FirecrackerHere } from "../../src/cli/FirecrackerHere.ts"
import { HostSignals } from "../../src/cli/HostSignals.ts"
import { Reporter } from "../../src/cli/Reporter.ts"
import * as Run from "../../src/cli/Run.ts"
import type { RunHost } from "../../src/cli/RunHost.ts"
import * as RunOptions from "../../src/cli/RunOptions.ts"
import * as FirecrackerError from "../../src/firecracker/FirecrackerError.ts"
import * as FirecrackerHost from "../../src/firecracker/FirecrackerHost.ts"
import { Jail } from "../../src/firecracker/Jail.ts"
import type { JailHost } from "../../src/firecracker/JailPlan.ts"
import { MetricsFiles } from "../../src/firecracker/MetricsCollector.ts"
import * as NodeVsock from "../../src/firecracker/NodeVsock.ts"
import { PageServer } from "../../src/firecracker/PageServer.ts"
import type * as ImageError from "../../src/image/ImageError.ts"
import { type Image, ImageStore } from "../../src/image/ImageStore.ts"
import * as NodeHasher from "../../src/image/NodeHasher.ts"
import type { Signal } from "../../src/lifecycle/Signal.ts"
import * as MemoryDriver from "../../src/microvm/MemoryDriver.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import { BackendUnavailable, fail, type MicroVmError } from "../../src/microvm/MicroVmError.ts"
import { MicroVmProvider } from "../../src/microvm/MicroVmProvider.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import * as QemuHost from "../../src/qemu/QemuHost.ts"
import * as FakeGuestAgent from "../../src/testing/FakeGuestAgent.ts"
import { FileSeals } from "../../src/warm/FileSeals.ts"
import * as GoldenMachines from "../../src/warm/GoldenMachines.ts"
import * as MemoryRunHost from "./memoryRunHost.ts"

/** How long each part takes, so that a test can act in any of them. */
export const takes = { image: 4000, launch: 2000, boot: 3000, save: 1000, restore: 200, answer: 100 } as const
/** When the command starts in a machine that boots, in milliseconds. */
export const commandStarts = takes.image + takes.launch + takes.boot

/** Of a machine that boots. */
export const flags: RunOptions.RunFlags = {
  backend: "auto",
  name: Option.none(),
  vcpus: Option.none(),
  memory: Option.none(),
  image: Option.none(),
  cold: true,
  from: Option.none(),
  env: [],
  workdir: Option.none(),
  timeout: Option.none(),
  grace: "5s",
  watchdog: Option.none(),
  network: "none",
  allow: [],
  detach: false,
  json: false,
  command: ["true"]
}

export const optionsOf = (some: Partial<RunOptions.RunFlags>): RunOptions.RunOptions =>
  Result.getOrThrow(RunOptions.fromFlags({ ...flags, ...some }))

const sha256 = "0".repeat(64)

export const image: Image = {
  name: "default",
  digest: sha256,
  kernel: "/images/kernel",
  initramfs: "/images/initramfs",
  kernelRelease: "6.1.0",
  manifest: {
    recipe: sha256,
    kernelRelease: "6.1.0",
    packages: [],
    files: {
      kernel: { name: "kernel", size: 1, sha256 },
      initramfs: { name: "initramfs", size: 1, sha256 }
    }
  }
}

/** A host on which so many bytes may still be written below directories that are there. */
export const fileSeals = (free: number, isThere: (directory: string) => boolean = () => true) =>
  Layer.mock(FileSeals, {
    room: (directory) =>
      isThere(directory)
        ? Effect.succeed(free)
        : PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "statfs" })
  })

export const imageStore = (
  ensure: Effect.Effect<Image, ImageError.ImageError>,
  known: Option.Option<Image> = Option.none()
): ImageStore["Service"] => ({
  ensure: () => ensure,
  known: () => Effect.succeed(known),
  update: () => ensure,
  list: Effect.succeed([]),
  writable: Effect.void,
  remove: () => Effect.succeed(false)
})

/** Somebody who types Ctrl-C, and how many wait for that. */
export const makeSignals = Effect.gen(function*() {
  const queue = yield* Queue.unbounded<Signal>()
  let waiting = 0
  const next = Effect.acquireUseRelease(
    Effect.sync(() => {
      waiting++
    }),
    () => Queue.take(queue),
    () =>
      Effect.sync(() => {
        waiting--
      })
  )
  return {
    layer: Layer.succeed(HostSignals, { next }),
    send: (signal: Signal) => Queue.offer(queue, signal),
    waiting: Effect.sync(() => waiting)
  }
})

/** A stream of ours that breaks, in the words of Node. */
export const broken = (method: string, code: string): PlatformError.PlatformError =>
  PlatformError.systemError({
    module: "Stdio",
    method,
    _tag: "Unknown",
    cause: Object.assign(new Error(`write ${code}`), { code })
  })

/** What is written, in the order in which it comes. */
export class Written {
  readonly chunks: Array<string | Uint8Array> = []
  get bytes(): Buffer {
    return Buffer.concat(this.chunks.map((chunk) => Buffer.from(chunk)))
  }
  get text(): string {
    return this.bytes.toString()
  }
  readonly sink = (): Sink.Sink<void, string | Uint8Array> =>
    Sink.forEach((chunk: string | Uint8Array) => Effect.sync(() => this.chunks.push(chunk)))
}

/** What outlives a run: the backend, and the snapshots that were made of its machines. */
export type Host = Context.Context<Control | MemoryDriver.MemoryDriver | MicroVmProvider | SnapshotStore>

export const makeHost = Layer.build(Layer.merge(MemoryProvider.layer, Control.layerMemory))

export interface Setting {
  /** Where the run is. Default: where none has been before. */
  readonly host?: Host
  /** What differs from `true`, run in machine `m`. */
  readonly flags?: Partial<RunOptions.RunFlags>
  /** What the guest's programs do, and how it takes a power-off. */
  readonly guest?: Pick<FakeGuestAgent.Options, "programs" | "onShutdown" | "renewal">
  /** In place of the guest that serves after `takes.boot`. */
  readonly machine?: MemoryDriver.Script
  /** In place of the backend as it is. */
  readonly provider?: (provider: MicroVmProvider["Service"]) => MicroVmProvider["Service"]
  /** In place of the store as it is. */
  readonly store?: (store: SnapshotStore["Service"]) => SnapshotStore["Service"]
  readonly image?: Effect.Effect<Image, ImageError.ImageError>
  /** Was the image built before? Default false. */
  readonly built?: boolean
  readonly stdin?: Stdio.Stdio["stdin"]
  readonly stdout?: Stdio.Stdio["stdout"]
  readonly stderr?: Stdio.Stdio["stderr"]
  readonly json?: boolean
  /** Sees to what other runs have left. */
  readonly tidy?: Effect.Effect<void>
  /** In place of one that forgets everything with the run. */
  readonly runHost?: Layer.Layer<RunHost>
  /** What is told of the run. */
  readonly context?: Pick<Run.Context, "onStarted" | "resume">
}

/** The guest: boots for a while, or goes on where it was saved; then its agent serves. It powers off when it is told to. */
const makeGuest = (setting: Setting, told: (guest: FakeGuestAgent.FakeGuest) => void): MemoryDriver.Script => {
  const serveAfter = (millis: number): MemoryDriver.Script["program"] => (guest) =>
    Effect.scoped(Effect.gen(function*() {
      yield* Effect.sleep(millis)
      told(
        yield* FakeGuestAgent.serve(guest.channel, {
          onShutdown: (mode) =>
            mode === "powerdown" ? guest.background(Effect.delay(guest.powerOff, 500)) : Effect.void,
          ...setting.guest
        })
      )
      return yield* Effect.never
    }))
  const slow: Partial<Record<MemoryDriver.LaunchStep, number>> = { spawn: takes.launch, restore: takes.restore }
  return {
    launch: (step) => Effect.sleep(slow[step] ?? 0),
    save: Effect.sleep(takes.save),
    program: serveAfter(takes.boot),
    restored: serveAfter(takes.answer),
    ...setting.machine
  }
}

/** Starts a run. Its guest shows up once the agent serves. */
export const start = Effect.fnUntraced(function*(setting: Setting = {}) {
  const stdout = new Written()
  const stderr = new Written()
  const lines: Array<string> = []
  const signals = yield* makeSignals
  let guest: FakeGuestAgent.FakeGuest | undefined
  let stdinOpen = 0
  const host = setting.host ?? (yield* makeHost)
  const driver = Context.get(host, MemoryDriver.MemoryDriver)
  const provider = Context.get(host, MicroVmProvider)
  const store = Context.get(host, SnapshotStore)
  yield* driver.script("*", makeGuest(setting, (serving) => void (guest = serving)))
  const began = yield* Clock.currentTimeMillis
  const fiber = yield* Run.run(optionsOf({ name: Option.some("m"), ...setting.flags }), {
    backendDetail: "a backend in memory",
    json: setting.json ?? false,
    ...setting.context
  }).pipe(
    Effect.flatMap((report) => Effect.map(Clock.currentTimeMillis, (now) => ({ report, took: now - began }))),
    Effect.provide(
      GoldenMachines.layerWith({}).pipe(Layer.provideMerge(Layer.mergeAll(
        Layer.succeed(Control, Context.get(host, Control)),
        Layer.succeed(MicroVmProvider, setting.provider?.(provider) ?? provider),
        Layer.succeed(SnapshotStore, setting.store?.(store) ?? store),
        Layer.succeed(
          ImageStore,
          imageStore(
            setting.image ?? Effect.delay(Effect.succeed(image), takes.image),
            setting.built === true ? Option.some(image) : Option.none()
          )
        ),
        setting.runHost ?? MemoryRunHost.layerWith({}, setting.tidy),
        NodeHasher.layer,
        SecureRandom.layerWebCrypto,
        Stdio.layerTest({
          stdin: Stream.unwrap(
            Effect.acquireRelease(
              Effect.sync(() => {
                stdinOpen++
                return setting.stdin ?? Stream.empty
              }),
              () =>
                Effect.sync(() => {
                  stdinOpen--
                })
            )
          ),
          stdout: setting.stdout ?? stdout.sink,
          stderr: setting.stderr ?? stderr.sink
        }),
        signals.layer,
        Reporter.layerMemory(lines)
      )))
    ),
    Effect.forkChild({ startImmediately: true })
  )

  /** Lets the run end, and sees that nothing of it is left. */
  const end = Effect.gen(function*() {
    for (let seconds = 0; fiber.pollUnsafe() === undefined; seconds++) {
      if (seconds === 600) return yield* Effect.die(new Error("the run does not end"))
      yield* TestClock.adjust("1 second")
    }
    const result = yield* Fiber.join(fiber)
    const events = yield* driver.events
    const count = (name: string) => events.filter(({ what }) => what === name).length
    const left = {
      claims: yield* driver.claims,
      machines: count("spawn") - count("released"),
      takers: yield* signals.waiting,
      stdin: stdinOpen
    }
    const { report, took } = result
    return {
      report,
      code: report.exitCode,
      took,
      left,
      /** What was asked of the machine once it ran. */
      asked: events.map(({ what }) => what).filter((what) => ["PowerButton", "Terminate", "Kill"].includes(what)),
      stages: report.shutdown?.stages.map((stage) => `${stage.name} ${stage.end}`) ?? [],
      lines,
      phases: report.phases.map((phase) => `${phase.name} ${Math.round(Duration.toMillis(phase.took))}`),
      stdout: stdout.text,
      stderr: stderr.text
    }
  })
  return {
    fiber,
    host,
    driver,
    lines,
    stdout,
    stderr,
    signal: signals.send,
    /** The machine's inner side. */
    machine: driver.guest("m"),
    guest: Effect.suspend(() =>
      guest === undefined ? Effect.die(new Error("no guest serves yet")) : Effect.succeed(guest)
    ),
    end
  }
})

export const nothing = { claims: [], machines: 0, takers: 0, stdin: 0 }

/** A run from its start to its end. */
export const run = (setting: Setting = {}) => Effect.flatMap(start(setting), (started) => started.end)

/** A host that is what was observed, and keeps no memory for machines. */
export const qemuHost = (
  observed: Effect.Effect<QemuHost.Observations, MicroVmError> = Effect.succeed(observations)
): QemuHost.QemuHost["Service"] => ({
  observe: () => observed,
  inspect: (path) => Effect.succeed({ path, worldReadable: true, worldWritable: true }),
  copy: (_, path) => Effect.fail(new QemuHost.HostFailed({ path, why: "nothing is copied" })),
  makeRam: () => Effect.fail(new QemuHost.HostFailed({ path: "/dev/shm", why: "there is no room" })),
  receive: (path) => Effect.fail(new QemuHost.HostFailed({ path, why: "nothing is received" }))
})

/** A host that is what was observed. By default it has no Firecracker. Nothing can be launched there. */
export const firecracker = (
  observed?: Partial<FirecrackerHost.Observations>,
  { jails, pages = Effect.void }: {
    /** What there is for jails. Default: nothing. */
    readonly jails?: Effect.Effect<JailHost, FirecrackerError.FirecrackerError>
    readonly pages?: Effect.Effect<void, FirecrackerError.FirecrackerError>
  } = {}
) => {
  const none = (path: string) =>
    FirecrackerError.fail(new FirecrackerError.HostFailed({ operation: "nothing is done with", path, why: "a test" }))
  const missing = new BackendUnavailable({ backend: "firecracker", why: "it was not found", remedy: "install it" })
  const host: FirecrackerHost.FirecrackerHost["Service"] = {
    observe: ({ jailer }) =>
      observed === undefined || (jailer !== undefined && observed.jailer === undefined)
        ? fail(missing)
        : Effect.succeed({
          binary: "/usr/bin/firecracker",
          version: { major: 1, minor: 15, patch: 1 },
          snapshotFormat: "9.0.0",
          architecture: "x86_64",
          kvm: { _tag: "Usable" },
          cpu: "a processor",
          kernel: "6.1.0",
          uid: 1000,
          ...observed
        }),
    inspect: (path) => Effect.succeed({ path, kernel: "ELF" }),
    makeDirectory: () => none("a directory"),
    keepDirectory: none,
    empty: none,
    read: none,
    write: none,
    connect: none,
    copy: none,
    makeReadable: none,
    listPages: none,
    mergeMemory: none,
    moment: Effect.die("no moment is named"),
    remove: () => none("files"),
    tail: () => Effect.succeed(""),
    trim: () => Effect.succeed(false)
  }
  const parts = Layer.mergeAll(
    Layer.succeed(FirecrackerHost.FirecrackerHost, host),
    Layer.succeed(Jail, { observe: ({ executable }) => jails ?? none(executable), prepare: ({ root }) => none(root) }),
    Layer.succeed(MetricsFiles, { create: none, open: none }),
    Layer.succeed(PageServer, { usable: pages, start: ({ socket }) => none(socket) }),
    NodeVsock.layer
  )
  return Layer.succeed(FirecrackerHere, { mayBe: Effect.succeed(true), parts })
}

/** A host with QEMU and without KVM. */
export const observations: QemuHost.Observations = {
  binary: "qemu-system-x86_64",
  version: { major: 7, minor: 2, micro: 22 },
  architecture: "x86_64",
  kvm: { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy: "turn it on" },
  cpu: "a processor",
  uid: 1000,
  setpriv: true,
  path: "/usr/bin:/bin"
}
