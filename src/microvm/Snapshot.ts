/**
 * A machine that was written down, as a value: what it is made of, and whether it can be loaded here.
 *
 * A snapshot is a directory of files and a manifest that vouches for each of them. Nothing is ever loaded on trust: a
 * monitor does not notice that its state was changed, or was made by another one.
 *
 * ```
 *   Machine.save ▸ SnapshotStore.add ▸ … ▸ SnapshotStore.open ▸ verdict ▸ Machine.restore
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Struct from "effect/Struct"
import * as MachineSpec from "./MachineSpec.ts"
import * as MicroVmError from "./MicroVmError.ts"

/**
 * A SHA-256 digest, in lower-case hexadecimal.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/))

/**
 * Names a snapshot: letters, digits, `.`, `_` and `-`, 64 characters at most, without `..`. No name is the id of a
 * snapshot.
 *
 * @category schemas
 * @since 0.1.0
 */
export const SnapshotName = Schema.String.check(
  Schema.isPattern(/^(?!.*\.\.)(?![0-9a-f]{64}$)[A-Za-z0-9._-]{1,64}$/)
)

/**
 * What a snapshot needs of whoever loads it, by keys of the backend's choice: each must be the same. `devices` is a list of what the
 * guest finds, with `, ` between.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Platform = Schema.Record(Schema.String, Schema.String)

/**
 * @category models
 * @since 0.1.0
 */
export type Platform = typeof Platform.Type

/**
 * The spec of a machine without what is its own: every machine that is restored has another id, other network cards and disks.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Spec = MachineSpec.MachineSpec.mapFields(Struct.omit(["id", "hostname", "networks", "drives"]))

/**
 * @category models
 * @since 0.1.0
 */
export type Spec = typeof Spec.Type

/**
 * What a guest finds in a machine. Where its network cards and disks lead does not matter, and which there are does: without
 * a word of them, there are none.
 *
 * @category models
 * @since 0.1.0
 */
export type Inventory = Spec & Partial<Pick<MachineSpec.MachineSpec, "networks" | "drives">>

/**
 * A file of a snapshot. `size` is its length in bytes; holes count, and read as zeros.
 *
 * @category schemas
 * @since 0.1.0
 */
export const SnapshotFile = Schema.Struct({
  name: Schema.String.check(Schema.isPattern(/^[a-z][a-z0-9-]{0,31}$/)),
  size: Schema.Int,
  sha256: Sha256
})

/**
 * A disk as it was when the machine was saved. Of a block device nothing but the `size` is told.
 *
 * - `file`, `modified`, `changed`: which file it was (device, inode, and when it was made), when it was written to last, and when it or
 *   its inode was changed last, in nanoseconds since 1970.
 * - `sha256`: of one that the guest only reads.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Disk = Schema.Struct({
  name: Schema.String,
  size: Schema.Int,
  file: Schema.optionalKey(Schema.String),
  modified: Schema.optionalKey(Schema.String),
  changed: Schema.optionalKey(Schema.String),
  sha256: Schema.optionalKey(Sha256)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Disk = typeof Disk.Type

/**
 * - `format`: the version of this description. Another one is not read.
 * - `kind`: `golden` ones are made and removed by themselves, `saved` ones by whoever asked for them.
 * - `form`: how the files hold the machine, in the backend's words.
 * - `madeBy`: the monitor, for people.
 * - `labels`: what its maker wants to find again, such as the digest of its image.
 * - `createdAt`: in ISO 8601, UTC.
 * - `moment`: names the moment at which it was made, where the backend tells what machines write from then on.
 * - `base`: the id of the snapshot that it is only the difference to.
 * - `disks`: what its disks were at that moment. Absent where it had none.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Manifest = Schema.Struct({
  format: Schema.Literal(1),
  kind: Schema.Literals(["golden", "saved"]),
  form: Schema.String,
  platform: Platform,
  madeBy: Schema.String,
  spec: Spec,
  labels: Schema.Record(Schema.String, Schema.String),
  createdAt: Schema.String,
  moment: Schema.optionalKey(Schema.String),
  base: Schema.optionalKey(Sha256),
  disks: Schema.optionalKey(Schema.Array(Disk)),
  files: Schema.Array(SnapshotFile)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Manifest = typeof Manifest.Type

/**
 * A snapshot whose files were found to be what its manifest says.
 *
 * @category models
 * @since 0.1.0
 */
export interface Snapshot {
  /** The SHA-256 of its manifest; it vouches for every byte. */
  readonly id: string
  /** Where its files are. They are not to be changed. */
  readonly directory: string
  readonly manifest: Manifest
  /** What it is only the difference to, found to be right as well. Absent when it is whole by itself. */
  readonly base?: Snapshot
}

/**
 * What a backend has written.
 *
 * @category models
 * @since 0.1.0
 */
export interface Saved {
  readonly form: string
  readonly platform: Platform
  readonly madeBy: string
  /** More labels for the manifest: what is known only when the machine has been saved. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** Names this moment, and no other of any machine: what the machine writes from now on will be known. */
  readonly moment?: string
  /** The id of the snapshot that only the difference to was written. */
  readonly base?: string
  /** What its disks are at this moment. */
  readonly disks?: ReadonlyArray<Disk>
}

/**
 * On how many others a snapshot may stand, each the difference to the next: all of them are read when it is restored.
 *
 * @category constants
 * @since 0.1.0
 */
export const mostBases = 16

/**
 * All that a snapshot is made of, from the one that is whole by itself to the snapshot.
 *
 * ```ts import.meta.vitest
 * import { Machine, MachineSpec, MemoryProvider, Snapshot, SnapshotStore } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const store = yield* SnapshotStore.SnapshotStore
 *   const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "web-1", kernel: "/boot/vmlinux" }))
 *   yield* machine.start
 *   const about = { kind: "saved", spec: Snapshot.specOf(machine.spec) } as const
 *   const base = yield* store.add(about, machine.save)
 *   const snapshot = yield* store.add(about, (directory) => machine.save(directory, { base }))
 *   return Snapshot.layers(snapshot).map(({ id }) => id === base.id)
 * }))
 * await Effect.runPromise(program.pipe(Effect.provide(MemoryProvider.layer))) // => [true, false]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const layers = (snapshot: Snapshot): ReadonlyArray<Snapshot> => [
  ...(snapshot.base === undefined ? [] : layers(snapshot.base)),
  snapshot
]

/**
 * What of a manifest a backend tells.
 *
 * ```ts import.meta.vitest
 * import { Snapshot } from "effect-microvm-runtime/microvm"
 * const saved = { form: "full", platform: { backend: "firecracker" }, madeBy: "Firecracker 1.16.1" }
 * Object.keys(Snapshot.told(saved, { image: "abc" })) // => ["form", "platform", "madeBy", "labels"]
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const told = (
  { base, disks, form, labels: more, madeBy, moment, platform }: Saved,
  labels: Readonly<Record<string, string>> = {}
): Pick<Manifest, "form" | "platform" | "madeBy" | "labels" | "moment" | "base" | "disks"> => ({
  form,
  platform,
  madeBy,
  labels: { ...labels, ...more },
  ...(moment !== undefined && { moment }),
  ...(base !== undefined && { base }),
  ...(disks !== undefined && { disks })
})

/**
 * Why a snapshot cannot be used whose base cannot be: `undefined` where the base is not to blame.
 *
 * ```ts import.meta.vitest
 * import { MicroVmError, Snapshot } from "effect-microvm-runtime/microvm"
 * const id = "a".repeat(64)
 * Snapshot.baseFaults(id, new MicroVmError.SnapshotNotFound({ snapshot: id })) // => ["its base aaaaaaaaaaaa is not there"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const baseFaults = (base: string, reason: MicroVmError.Reason): ReadonlyArray<string> | undefined => {
  const name = `its base ${base.slice(0, 12)}`
  if (reason._tag === "SnapshotNotFound") return [`${name} is not there`]
  return reason._tag === "SnapshotUnusable" ? reason.why.map((why) => `${name}: ${why}`) : undefined
}

/** Those of a list that another has not, or not as often. */
const without = (all: ReadonlyArray<string>, others: ReadonlyArray<string>): string => {
  const left = [...others]
  return all.filter((one) => {
    const at = left.indexOf(one)
    if (at >= 0) left.splice(at, 1)
    return at < 0
  }).join(", ")
}

const differentDevices = (made: string, here: string): string => {
  const [its, ours] = [made.split(", "), here.split(", ")]
  const [more, less] = [without(its, ours), without(ours, its)]
  if (more !== "" && less !== "") return `it has ${more}, here there is ${less}`
  if (more === "" && less === "") return `its devices come in another order, here that is ${here}`
  return more === "" ? `here there is also ${less}` : `it also has ${more}`
}

/**
 * Why a snapshot that was made for `made` cannot be loaded on `here`; nothing when it can be. Another `program` of the same version is
 * no reason.
 *
 * ```ts import.meta.vitest
 * import { Snapshot } from "effect-microvm-runtime/microvm"
 * const why = Snapshot.differences({ backend: "qemu", cpu: "max" }, { backend: "qemu", cpu: "host" })
 * why // => ["its cpu is max, here it is host"]
 * Snapshot.differences({ devices: "1 vCPU, disk a, disk b" }, { devices: "1 vCPU, disk b" }) // => ["it also has disk a"]
 * Snapshot.differences({ version: "7.2", program: "ab" }, { version: "7.2", program: "cd" }) // => []
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const differences = (made: Platform, here: Platform): ReadonlyArray<string> =>
  Array.from(new Set([...Object.keys(made), ...Object.keys(here)])).toSorted().flatMap((key) => {
    // An upgrade within a release keeps the state that it reads: this one is for people, and for golden machines, which are made anew.
    if (key === "program" || made[key] === here[key]) return []
    if (key === "devices") return [differentDevices(made[key] ?? "", here[key] ?? "")]
    return [`its ${key} is ${made[key] ?? "not told"}, here it is ${here[key] ?? "not told"}`]
  })

/**
 * What disks are now, each by `identify`, as a backend tells it. Fails with `InvalidSpec` for one that cannot be looked at.
 *
 * @category constructors
 * @since 0.1.0
 */
export const identifyDisks = <E extends { readonly message: string }>(
  identify: (
    path: string,
    options: { readonly readOnly: boolean; readonly known: Disk | undefined }
  ) => Effect.Effect<Omit<Disk, "name">, E>
) =>
(
  drives: ReadonlyArray<MachineSpec.Drive>,
  known: ReadonlyArray<Disk> = []
): Effect.Effect<ReadonlyArray<Disk>, MicroVmError.MicroVmError> =>
  Effect.forEach(
    drives,
    ({ name, path, readOnly }, index) =>
      identify(path, { readOnly, known: known.find((one) => one.name === name) }).pipe(
        Effect.map((disk): Disk => ({ name, ...disk })),
        Effect.mapError(({ message }) => {
          const remedy = `it cannot be looked at, ${message}: name an image that we may read`
          const fault = { field: `drives[${index}].path`, value: path, remedy }
          return MicroVmError.make(new MicroVmError.InvalidSpec({ faults: [fault] }))
        })
      )
  )

/**
 * Why a machine that was saved with these disks cannot go on with those that are here: its guest counts on finding what it has
 * read or written. The content of one that it only reads must be the same. Of one that it writes to the size must be, and the very
 * file that it had must not have been written to since; whether a copy is of that moment is not known.
 *
 * ```ts import.meta.vitest
 * import { Snapshot } from "effect-microvm-runtime/microvm"
 * const saved = [{ name: "data", size: 4096, file: "1 7", modified: "100" }]
 * Snapshot.diskFaults(saved, [{ name: "data", size: 8192, file: "1 8" }]) // => ["its disk data has 4096 bytes, here 8192"]
 * Snapshot.diskFaults(saved, [{ name: "data", size: 4096, file: "1 8", modified: "300" }]) // => []
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const diskFaults = (saved: ReadonlyArray<Disk>, here: ReadonlyArray<Disk>): ReadonlyArray<string> =>
  here.flatMap((disk) => {
    const { name } = disk
    const was = saved.find((one) => one.name === name)
    if (was === undefined) return [`what was on its disk ${name} is not told`]
    if (was.size !== disk.size) return [`its disk ${name} has ${was.size} bytes, here ${disk.size}`]
    if (was.sha256 !== disk.sha256) return [`its disk ${name} has another content here`]
    if (
      was.sha256 !== undefined || was.file === undefined || was.file !== disk.file || was.modified === disk.modified
    ) {
      return []
    }
    return [`its disk ${name} was written to since it was saved: give a copy that was made at that moment`]
  })

/**
 * What of a snapshot does not belong together; nothing when it is whole. A store gives whole ones only.
 *
 * ```ts import.meta.vitest
 * import { Snapshot } from "effect-microvm-runtime/microvm"
 * const manifest: Snapshot.Manifest = {
 *   format: 1,
 *   kind: "saved",
 *   form: "diff",
 *   platform: {},
 *   madeBy: "Firecracker 1.16.1",
 *   spec: { vcpus: 1, memoryMib: 128, kernel: "/boot/vmlinux", kernelArgs: [], channels: [] },
 *   labels: {},
 *   createdAt: "2026-11-22T00:00:00.000Z",
 *   base: "a".repeat(64),
 *   files: []
 * }
 * Snapshot.faults({ id: "b".repeat(64), directory: "/b", manifest }) // => ["its base aaaaaaaaaaaa is not there"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const faults = (snapshot: Snapshot): ReadonlyArray<string> => {
  const all = layers(snapshot)
  return [
    ...(all.length > mostBases + 1 ? [`it stands on ${all.length - 1} others, and ${mostBases} are the most`] : []),
    ...all.flatMap(({ base, manifest }) =>
      manifest.base === undefined || manifest.base === base?.id
        ? []
        : baseFaults(manifest.base, new MicroVmError.SnapshotNotFound({ snapshot: manifest.base })) ?? []
    ),
    ...all.flatMap(({ base, manifest }) =>
      base === undefined ? [] : differences(base.manifest.platform, manifest.platform)
    )
  ]
}

/**
 * Checks the name of a snapshot. Fails with `InvalidSpec`, whose field is `snapshot`.
 *
 * ```ts import.meta.vitest
 * import { Snapshot } from "effect-microvm-runtime/microvm"
 * import * as Effect from "effect/Effect"
 * const reason = Snapshot.checkName("../warm").pipe(Effect.flip, Effect.map((error) => error.reason._tag))
 * Effect.runSync(reason) // => "InvalidSpec"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const checkName = (name: string): Effect.Effect<void, MicroVmError.MicroVmError> => {
  if (Schema.is(SnapshotName)(name)) return Effect.void
  const remedy = "give 1 to 64 letters, digits, \".\", \"_\" and \"-\", without \"..\"; not 64 hexadecimal digits"
  return MicroVmError.fail(
    new MicroVmError.InvalidSpec({ faults: [{ field: "snapshot", value: name, remedy }] })
  )
}

/**
 * What is left of a spec without what is a machine's own.
 *
 * ```ts import.meta.vitest
 * import { MachineSpec, Snapshot } from "effect-microvm-runtime/microvm"
 * import * as Result from "effect/Result"
 * const spec = MachineSpec.make({ id: "web-1", hostname: "web", kernel: "/boot/vmlinux" })
 * Object.keys(Snapshot.specOf(Result.getOrThrow(spec))) // => ["vcpus", "memoryMib", "kernel", "kernelArgs", "channels"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const specOf = (spec: MachineSpec.MachineSpec): Spec =>
  Struct.omit(spec, ["id", "hostname", "networks", "drives"])
