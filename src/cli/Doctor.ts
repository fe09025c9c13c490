/**
 * What this host has, what it lacks, and what to do about it: all checks at once.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Capabilities from "../firecracker/Capabilities.ts"
import * as FirecrackerHost from "../firecracker/FirecrackerHost.ts"
import * as FirecrackerProvider from "../firecracker/FirecrackerProvider.ts"
import * as FirecrackerVersion from "../firecracker/FirecrackerVersion.ts"
import { Jail } from "../firecracker/Jail.ts"
import * as JailPlan from "../firecracker/JailPlan.ts"
import { PageServer } from "../firecracker/PageServer.ts"
import * as HostChecks from "../host/HostChecks.ts"
import { HostFacts } from "../host/HostFacts.ts"
import * as ImageError from "../image/ImageError.ts"
import { cacheDirectory, ImageStore } from "../image/ImageStore.ts"
import { MicroVmError } from "../microvm/MicroVmError.ts"
import * as KillScope from "../process/KillScope.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as UserMap from "../process/UserMap.ts"
import * as QemuHost from "../qemu/QemuHost.ts"
import * as QemuProvider from "../qemu/QemuProvider.ts"
import { FileSeals } from "../warm/FileSeals.ts"
import * as GoldenMachines from "../warm/GoldenMachines.ts"
import * as Backend from "./Backend.ts"
import { FirecrackerHere } from "./FirecrackerHere.ts"
import { addressesIn, networkConfig } from "./internal/networkConfig.ts"
import { userPool } from "./internal/userPool.ts"
import * as RunDirectory from "./RunDirectory.ts"

/**
 * One check. `required`: without it no machine can run; the others make machines faster or safer.
 *
 * @category models
 * @since 0.1.0
 */
export const Check = Schema.Struct({
  name: Schema.String,
  ok: Schema.Boolean,
  required: Schema.Boolean,
  found: Schema.String,
  /** Why it matters. */
  why: Schema.optionalKey(Schema.String),
  /** What to type, or to do. */
  remedy: Schema.optionalKey(Schema.String),
  /** The flags by which this command does something about it itself. */
  fix: Schema.optionalKey(Schema.Literals(["--fix", "--fix --forwarding"]))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Check = typeof Check.Type

/**
 * All checks, as `microvm doctor --json` prints them.
 *
 * @category models
 * @since 0.1.0
 */
export const Diagnosis = Schema.Struct({
  /** Can a machine run here, with the network that was asked for? */
  usable: Schema.Boolean,
  network: Schema.Literals(["none", "nat"]),
  checks: Schema.Array(Check),
  /** What `--fix` did, or could not do, before the checks were made. */
  fixed: Schema.optionalKey(
    Schema.Array(Schema.Struct({ name: Schema.String, ok: Schema.Boolean, what: Schema.String }))
  )
})

/**
 * @category models
 * @since 0.1.0
 */
export type Diagnosis = typeof Diagnosis.Type

const passed = (name: string, required: boolean, found: string): Check => ({ name, ok: true, required, found })
const failed = (name: string, required: boolean, found: string, remedy?: string): Check => ({
  name,
  ok: false,
  required,
  found,
  ...(remedy === undefined ? {} : { remedy })
})

/** What keeps a backend from being used, in words of its own where it has any. */
const unusable = (name: string, required: boolean, error: unknown): Check => {
  const reason = error instanceof MicroVmError && error.reason._tag === "BackendUnavailable" ? error.reason : undefined
  return failed(name, required, reason?.why ?? Backend.explain(error), reason?.remedy)
}

const requiredIf = (check: Check, required: boolean): Check => ({ ...check, required })

/** It stands for the machine that is to be jailed. */
const sample = { id: "doctor", uid: 65_534, gid: 65_534, machine: { vcpus: 1, memoryMib: 128 } }

/** What machines are jailed by, which takes root. Where variables ask for it, no machine runs without. */
const jailer = Effect.gen(function*() {
  const host = yield* FirecrackerHost.FirecrackerHost
  const options = yield* FirecrackerProvider.config
  const name = "firecracker jailer"
  const required = options.jail !== undefined
  const { base, jailer: program = "jailer", user = sample, ...jail } = options.jail ?? {}
  return yield* Effect.gen(function*() {
    const observed = yield* host.observe({ ...options, jailer: program })
    // Whether machines can run is told by another check.
    yield* Effect.fromResult(FirecrackerHost.choose(observed, { ...options, kvm: "assume" }))
    const { binary, jailer: found, uid, version } = observed
    if (found === undefined || uid !== 0) {
      return failed(name, required, "it can only be started by root", "run as root to have machines jailed")
    }
    const place = yield* Jail.use(({ observe }) => observe({ executable: binary, base }))
    const whom = "take" in user ? sample : user
    yield* Effect.fromResult(JailPlan.make(place, { ...jail, ...sample, ...whom, jailer: found.binary, version }))
    return passed(
      name,
      required,
      `${found.binary}, version ${FirecrackerVersion.format(found.version)}, makes jails in ${place.base}`
    )
  }).pipe(
    Effect.catchReason("FirecrackerError", "InvalidRequest", ({ faults }) =>
      Effect.succeed(failed(
        name,
        required,
        faults.map(({ field, value }) => `${field}: ${String(value)}`).join("; "),
        faults.map(({ field, remedy }) =>
          field === "base" ? `${remedy}, and let MICROVM_JAILER_CHROOT_BASE name it` : remedy
        ).join("; ")
      ))),
    Effect.catch((error) =>
      Effect.succeed({
        ...(required ? {} : { remedy: "until then machines are not jailed" }),
        ...unusable(name, required, error)
      })
    )
  )
})

/** What it takes to serve the memory of restored machines page by page, where variables ask for that. */
const pages = Effect.gen(function*() {
  const { memoryBackend } = yield* FirecrackerProvider.config
  if (memoryBackend !== "uffd") return []
  const name = "firecracker pages"
  return [
    yield* PageServer.use(({ usable }) => usable).pipe(Effect.match({
      onSuccess: () => passed(name, true, "memory can be served page by page"),
      onFailure: ({ message }) => failed(name, true, message, "or set MICROVM_MEM_BACKEND=file")
    }))
  ]
})

/** What of Firecracker the machines of this command use. */
const usedBy = ({ jail, memoryBackend }: FirecrackerProvider.Options): ReadonlyArray<Capabilities.Use> => [
  "restore",
  "vsock",
  ...(jail === undefined ? [] : ["jail"] as const),
  ...(memoryBackend === "uffd" ? ["pages"] as const : [])
]

const firecracker = Effect.gen(function*() {
  const host = yield* FirecrackerHost.FirecrackerHost
  const options = yield* FirecrackerProvider.config
  const observed = yield* host.observe(options)
  const { binary, snapshotFormat, version } = observed
  const found = `${binary}, version ${FirecrackerVersion.format(version)}, snapshots of format ${snapshotFormat}`
  return [
    Result.match(FirecrackerHost.choose(observed, options), {
      onSuccess: ({ because }) => passed("firecracker", false, `${found}; ${because}`),
      onFailure: (error) => {
        const { found: why, ...check } = unusable("firecracker", false, error)
        return { ...check, found: `${found}; ${why}` }
      }
    }),
    yield* jailer,
    ...yield* pages,
    ...Capabilities.warnings(observed, usedBy(options)).map((what) =>
      failed("firecracker release", false, what, "take another release, or do without")
    )
  ]
}).pipe(
  Effect.catch((error) => Effect.succeed([unusable("firecracker", false, error)])),
  Effect.provide(Layer.unwrap(FirecrackerHere.use(({ parts }) => Effect.succeed(parts))))
)

const qemu = Effect.gen(function*() {
  const host = yield* QemuHost.QemuHost
  const options = yield* QemuProvider.config
  const observed = yield* host.observe({ ...options, afresh: true })
  const setup = yield* Effect.fromResult(QemuHost.choose(observed, options))
  const nobody = { first: sample.uid, last: sample.uid }
  const isNobodyHere = observed.others === undefined || UserMap.covers(observed.others, nobody)
  const shared = setup.user._tag === "Unprivileged" && Option.isNone(yield* userPool(observed.others))
  const checks: Array<Check> = [
    passed("qemu", true, `${observed.binary}, version ${QemuHost.formatVersion(observed.version)}`),
    observed.kvm._tag === "Usable"
      ? passed("kvm", false, "usable")
      : failed("kvm", false, `${observed.kvm.why}, so guests run emulated, and slowly`, observed.kvm.remedy),
    shared
      ? failed(
        "privileges",
        false,
        "QEMU runs as nobody, for all machines: the user namespace of this container has none of the users for them",
        "give the container users from 65536 on, and say which: export MICROVM_UIDS=FIRST-LAST"
      )
      : setup.user._tag === "Own" && observed.uid === 0
      ? failed(
        "privileges",
        false,
        `QEMU runs as ${setup.user.why}`,
        !observed.setpriv
          ? "apt-get install util-linux"
          : options.user === "keep"
          ? "unset MICROVM_QEMU_USER"
          : !isNobodyHere
          ? "give the container CAP_SETUID, CAP_SETGID and users of its own, or run as an ordinary user"
          : "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"
      )
      : passed(
        "privileges",
        false,
        setup.user._tag === "Own"
          ? `QEMU runs as ${setup.user.why}${setup.user.dropsCapabilities === true ? ", without our capabilities" : ""}`
          : "QEMU runs as a user of its own for each machine"
      )
  ]
  return checks
}).pipe(Effect.catch((error) => Effect.succeed([unusable("qemu", true, error)])))

const killScope = Effect.gen(function*() {
  const spawner = yield* ProcessSpawner
  const process = yield* spawner.spawn(ChildProcess.make("true", [], { stdin: "ignore", stdout: "ignore" }))
  yield* process.exit
  return process.killScope._tag === "CGroup"
    ? passed("cgroup", false, KillScope.format(process.killScope))
    : failed(
      "cgroup",
      false,
      KillScope.format(process.killScope),
      "run as root, or in a delegated cgroup (systemd: Delegate=yes), so that nothing can escape from a process tree"
    )
}).pipe(
  Effect.scoped,
  Effect.catch((error) => Effect.succeed(failed("cgroup", false, error.message)))
)

const otherCache = "export MICROVM_CACHE_DIR=DIRECTORY"

/** What lacks in the cache, where that is known: directories are made when they are needed, so the nearest one that is there counts. */
const lackingRoom = Effect.fnUntraced(function*(below: ReadonlyArray<string>, needed: number) {
  const path = yield* Path.Path
  const { room } = yield* FileSeals
  const roomAt = (directory: string): ReturnType<typeof room> =>
    Effect.catchIf(
      room(directory),
      ({ reason }) => reason._tag === "NotFound" && path.dirname(directory) !== directory,
      () => roomAt(path.dirname(directory))
    )
  const directory = path.join(yield* cacheDirectory, ...below)
  const free = yield* roomAt(directory)
  const [has, takes] = [free, needed].map((bytes) => `${Math.floor(bytes / 1e6)} MB`)
  return free < needed ? Option.some(`it takes up to ${takes} in ${directory}, and ${has} are free`) : Option.none()
}, Effect.orElseSucceed(() => Option.none<string>()))

/** What the golden machine of the default size needs: a place for its snapshot, and memory that is a file. */
const warm = Effect.gen(function*() {
  const store = yield* ImageStore
  const host = yield* QemuHost.QemuHost
  const lacking = (remedy: string) => ({ message }: { readonly message: string }) =>
    failed("warm start", false, `${message}, so each machine boots, which takes longer`, remedy)
  yield* Effect.mapError(store.writable, lacking(otherCache))
  const full = yield* lackingRoom(["snapshots"], GoldenMachines.usualMib * 1024 * 1024)
  if (Option.isSome(full)) return lacking(otherCache)({ message: full.value })
  yield* Effect.mapError(
    host.makeRam(GoldenMachines.usualMib * 1024 * 1024),
    lacking("nothing to type: see to it that there is memory for the file of one")
  )
  return passed("warm start", false, "machines can be restored from a golden one")
}).pipe(Effect.scoped, Effect.catch(Effect.succeed))

const image = Effect.gen(function*() {
  const store = yield* ImageStore
  const images = yield* store.list
  const built = images.find(({ names }) => names.includes("default"))
  if (built !== undefined) return passed("image", true, `default is built, Linux ${built.kernelRelease}`)
  const closed = yield* Effect.flip(store.writable).pipe(Effect.option)
  if (Option.isSome(closed)) {
    return failed(
      "image",
      true,
      `default is not built, and cannot be: ${closed.value.message}`,
      otherCache
    )
  }
  const full = yield* lackingRoom([], ImageError.roomToBuild)
  if (Option.isSome(full)) {
    return failed("image", true, `default is not built, and cannot be: ${full.value}`, otherCache)
  }
  const spawner = yield* ProcessSpawner
  const apt = yield* Effect.option(Effect.scoped(
    Effect.flatMap(
      spawner.spawn(ChildProcess.make("apt-get", ["--version"], { stdin: "ignore", stdout: "ignore" })),
      (process) => process.exit
    )
  ))
  return Option.isSome(apt)
    ? passed("image", true, "default is not built yet; the first run, or microvm image build, builds it with apt-get")
    : failed(
      "image",
      true,
      "default is not built, and there is no apt-get to build it with",
      "nothing to type here: build it on a Debian machine with microvm image build, and copy its cache directory here"
    )
}).pipe(Effect.catch((error) => Effect.succeed(failed("image", true, error.message))))

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** What machines are to have; with `nat`, what is advice otherwise is required. Default `none`. */
  readonly network?: "none" | "nat" | undefined
  /** How many machines at a time. Default 50. */
  readonly machines?: number | undefined
  /**
   * Puts in order first what can be without harm to anybody: makes directories, and loads modules of the kernel. With
   * `forwarding`, the host becomes a router too. Default: nothing is changed.
   */
  readonly fix?: { readonly forwarding: boolean } | undefined
}

const toCheck = ({ fix, found, level, name, ok, remedy, why }: HostChecks.Check): Check => ({
  name,
  ok,
  required: level === "required",
  found,
  why,
  ...(remedy === undefined ? {} : { remedy }),
  ...(fix === undefined ? {} : { fix: fix._tag === "Forward" ? "--fix --forwarding" : "--fix" })
})

/** What is there beside the backends. */
const host = Effect.fnUntraced(function*({ fix, machines, network }: Options) {
  const { apply, observe } = yield* HostFacts
  const stateDirectory = yield* RunDirectory.stateDirectory
  const { forwarding, ...networks } = yield* networkConfig
  const evaluate = Effect.map(
    observe({ stateDirectory, addresses: { directory: addressesIn(stateDirectory), ...networks } }),
    (facts) => HostChecks.evaluate(facts, { network: network === "nat", machines, stateDirectory, forwarding })
  )
  const before = yield* evaluate
  if (fix === undefined) return { checks: before.map(toCheck) }
  const fixed = yield* Effect.forEach(
    before.flatMap((check) =>
      check.fix === undefined || (check.fix._tag === "Forward" && !fix.forwarding) ? [] : [{ ...check, fix: check.fix }]
    ),
    ({ fix: one, name }) =>
      Effect.match(apply(one), {
        onFailure: ({ message: what }) => ({ name, ok: false, what }),
        onSuccess: (what) => ({ name, ok: true, what })
      })
  )
  return { checks: (yield* evaluate).map(toCheck), fixed }
}, Effect.catch((error) => Effect.succeed({ checks: [failed("state directory", true, Backend.explain(error))] })))

/**
 * Runs all checks, also after one has failed. With `fix`, what can be put in order is, before the others are made.
 *
 * @category main
 * @since 0.1.0
 */
export const diagnose = Effect.fn("Doctor.diagnose")(function*(options: Options = {}) {
  const one = <E, R>(check: Effect.Effect<Check, E, R>) => Effect.map(check, (found) => [found])
  const all = [firecracker, qemu, one(killScope), one(image), one(warm)] as const
  const hosted = yield* host(options)
  const found = [...(yield* Effect.all(all, { concurrency: "unbounded" })).flat(), ...hosted.checks]
  const choice = yield* Effect.orElseSucceed(Backend.config, () => "auto" as const)
  // One backend is enough, unless it is another that was asked for.
  const needed = choice !== "auto"
    ? choice
    : found.some(({ name, ok }) => name === "firecracker" && ok)
    ? "firecracker"
    : "qemu"
  const checks = found.map((check) => {
    if (check.name === "qemu" || check.name === "firecracker") return requiredIf(check, check.name === needed)
    return check.name.startsWith("firecracker ") ? requiredIf(check, check.required && needed === "firecracker") : check
  })
  return {
    usable: checks.every(({ ok, required }) => ok || !required),
    network: options.network ?? "none",
    checks,
    ...("fixed" in hosted ? { fixed: hosted.fixed } : {})
  } satisfies Diagnosis
})

/**
 * The checks for people: what was put in order, then one line for each check, and where one failed, why it matters and what to do.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = ({ checks, fixed = [], network, usable }: Diagnosis): string =>
  [
    ...fixed.map(({ name, ok, what }) => `${ok ? "done" : "FAIL"}  ${name}: ${what}`),
    ...checks.flatMap(({ fix, found, name, ok, remedy, required, why }) => [
      `${ok ? "ok  " : required ? "FAIL" : "warn"}  ${name}: ${found}`,
      ...(ok || why === undefined ? [] : [`      ${why}`]),
      ...(remedy === undefined ? [] : [`      → ${remedy}${fix === undefined ? "" : `, or microvm doctor ${fix}`}`])
    ]),
    `${usable ? "Machines" : "No machine"}${network === "nat" ? " with a network" : ""} can run here.`
  ].join("\n")
