/**
 * What this backend has to know of the host and what it needs done there, and what it decides from that.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import type * as Snapshot from "../microvm/Snapshot.ts"
import type { ApiTransport } from "./ApiTransport.ts"
import type { FirecrackerError } from "./FirecrackerError.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"

/**
 * Guests run with the host's instruction set; Firecracker knows these two.
 *
 * @category models
 * @since 0.1.0
 */
export type Architecture = "x86_64" | "aarch64"

/**
 * Can guests run on the processor? Firecracker has no other way to run them.
 *
 * @category models
 * @since 0.1.0
 */
export type Kvm =
  | { readonly _tag: "Usable" }
  | { readonly _tag: "Unusable"; readonly why: string; readonly remedy: string }

/**
 * What was seen on the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observations {
  /** Absolute path of the program. */
  readonly binary: string
  readonly version: FirecrackerVersion.FirecrackerVersion
  /** The SHA-256 of the program. Absent when it cannot be read. */
  readonly digest?: string
  /** The format of snapshots that it writes and reads, `10.0.0`. No release tells it by its own number. */
  readonly snapshotFormat: string
  readonly architecture: Architecture
  readonly kvm: Kvm
  /** The processor, as far as a guest sees a difference. */
  readonly cpu: string
  /** The release of the host's kernel. */
  readonly kernel: string
  /** Our own effective user id. */
  readonly uid: number
  /** Do the programs that we start keep capabilities of ours (`ProcessCapabilities.ambient`)? Default false. */
  readonly passesCapabilities?: boolean | undefined
  /** The jailer, if it was looked for. */
  readonly jailer?: { readonly binary: string; readonly version: FirecrackerVersion.FirecrackerVersion }
}

/**
 * A file that Firecracker has to open.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileFacts {
  readonly path: string
  /** Why it cannot be opened by us; absent when it can. */
  readonly fault?: string
  /** What its first bytes say, where it is a kernel image that is known here. */
  readonly kernel?: "ELF" | "bzImage" | "arm64 Image"
  /** Is it a block device? */
  readonly device?: true
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default: `firecracker`, found in PATH. */
  readonly binary?: string | undefined
  /**
   * `"check"`, the default, refuses a host whose `/dev/kvm` cannot be opened, or whose processor shows no virtualization.
   * `"assume"` leaves it to Firecracker to find out.
   */
  readonly kvm?: "check" | "assume" | undefined
  /** The jailer, if machines are to be jailed: a path, or a name that is found in PATH. */
  readonly jailer?: string | undefined
  /**
   * Can machines be saved as the difference to another snapshot? Then it is noted which pages each has written, which KVM does in
   * pages of 4 KiB also where the machine has larger ones. It needs the package `koffi`. Default false.
   */
  readonly diffs?: boolean | undefined
}

/**
 * A memory file that is only the difference to another one: what counts of `memory` are the pages that are listed in `pages`.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryLayer {
  readonly memory: string
  readonly pages: string
}

/**
 * What the directory of a machine has in it from the start.
 *
 * @category options
 * @since 0.1.0
 */
export interface DirectoryOptions {
  /** Symbolic links: the name of each, and where it leads. */
  readonly links: ReadonlyMap<string, string>
  /** Empty files. */
  readonly files: ReadonlyArray<string>
}

/**
 * - `observe`: looks at the host now. Fails with `BackendUnavailable` when there is no Firecracker that can be used.
 * - `inspect`: opens a file, also for writing if it is to be `writable` (default false), and changes nothing of it.
 * - `disk`: what a disk is now. One that is `readOnly` is read, unless it is as `known` tells, or was read before. Default: disks
 *   are not looked at.
 * - `makeDirectory`: a directory for one machine, with a name of its own that nobody can guess, that only this user can look
 *   into (mode 0700). It is removed with all that is in it when the scope closes, and when we are killed: by the guard, or
 *   by whoever makes the next one. `parent` is where it is made: that and those above it are made too, open to this user alone;
 *   for its default see `NodeFirecrackerHost`.
 * - `keepDirectory`: makes this very directory (mode 0700), which must not be there yet, and stays.
 * - `empty`: removes all that is in a directory.
 * - `connect`: to the API at a socket.
 * - `copy`: copies a file into a new one that all can read. An interruption waits until the copy is through.
 * - `makeReadable`: lets all read a file, those that are jailed too. Keep it in a directory that is open to its owner alone.
 * - `write`: a file of this text that only this user can read. It is there as a whole, or not at all.
 * - `read`: the text of a file of 1 MiB at most; nothing when there is none.
 * - `listPages`: lists in a new file `to` which pages of a sparse file were written. Fails where its file system does not tell
 *   one page from the next.
 * - `mergeMemory`: makes a new memory file of one and the differences to it, the topmost last, and reads these only. All can
 *   read it. An interruption breaks it off; then, and after a failure, there is none.
 * - `moment`: a new name that nothing else has.
 * - `remove`: removes files. One that is not there is no failure.
 * - `tail`: the whole lines of the last 64 KiB of a file; empty when it cannot be read.
 * - `trim`: gives back the room of a log that has more than 1 MiB on the disk, and tells whether it had. Who writes it goes on
 *   where it was, so that holes come before that, which are no part of its `tail`.
 *
 * All that can fail but `observe` fail with `HostFailed`.
 *
 * @category services
 * @since 0.1.0
 */
export class FirecrackerHost extends Context.Service<FirecrackerHost, {
  readonly observe: (options: Options) => Effect.Effect<Observations, MicroVmError.MicroVmError>
  readonly inspect: (
    path: string,
    options?: { readonly writable?: boolean | undefined }
  ) => Effect.Effect<FileFacts>
  readonly disk?: (
    path: string,
    options: { readonly readOnly: boolean; readonly known: Snapshot.Disk | undefined }
  ) => Effect.Effect<Omit<Snapshot.Disk, "name">, Error>
  readonly makeDirectory: (
    options: DirectoryOptions & { readonly parent: string | undefined }
  ) => Effect.Effect<string, FirecrackerError, Scope.Scope>
  readonly keepDirectory: (directory: string, options: DirectoryOptions) => Effect.Effect<void, FirecrackerError>
  readonly empty: (directory: string) => Effect.Effect<void, FirecrackerError>
  readonly connect: (socket: string) => Effect.Effect<ApiTransport, FirecrackerError, Scope.Scope>
  readonly copy: (from: string, to: string) => Effect.Effect<void, FirecrackerError>
  readonly makeReadable: (path: string) => Effect.Effect<void, FirecrackerError>
  readonly write: (path: string, text: string) => Effect.Effect<void, FirecrackerError>
  readonly read: (path: string) => Effect.Effect<string | undefined, FirecrackerError>
  readonly listPages: (memory: string, to: string) => Effect.Effect<void, FirecrackerError>
  readonly mergeMemory: (
    base: string,
    layers: ReadonlyArray<MemoryLayer>,
    to: string
  ) => Effect.Effect<void, FirecrackerError>
  readonly moment: Effect.Effect<string>
  readonly remove: (paths: ReadonlyArray<string>) => Effect.Effect<void, FirecrackerError>
  readonly tail: (path: string) => Effect.Effect<string>
  readonly trim: (path: string) => Effect.Effect<boolean>
}>()("effect-microvm-runtime/firecracker/FirecrackerHost") {}

/**
 * What was decided.
 *
 * @category models
 * @since 0.1.0
 */
export interface Setup {
  readonly binary: string
  readonly version: FirecrackerVersion.FirecrackerVersion
  /** The SHA-256 of the program, as far as it is known. */
  readonly digest?: string
  readonly snapshotFormat: string
  readonly architecture: Architecture
  readonly cpu: string
  readonly kernel: string
  readonly uid: number
  /** Are these taken from a Firecracker that is not jailed? Default false. */
  readonly passesCapabilities?: boolean | undefined
  /** Absolute path of the jailer, if there is to be one. */
  readonly jailer?: string
  /** Why machines can be expected to run. */
  readonly because: string
}

/**
 * Reads what `--snapshot-version` prints: `v10.0.0` (docs/snapshotting/versioning.md of Firecracker).
 *
 * ```ts import.meta.vitest
 * import { FirecrackerHost } from "effect-microvm-runtime/firecracker"
 * FirecrackerHost.parseSnapshotFormat("v10.0.0\n") // => "10.0.0"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parseSnapshotFormat = (text: string): string | undefined =>
  /^v?(\d{1,4}\.\d{1,4}\.\d{1,4})$/m.exec(text)?.[1]

const unavailable = (why: string, remedy: string): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.BackendUnavailable({ backend: "firecracker", why, remedy }))

/**
 * Decides. Fails with `BackendUnavailable` when Firecracker is too old, the jailer of another release, or KVM not usable.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerHost } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const setup = FirecrackerHost.choose({
 *   binary: "/usr/local/bin/firecracker",
 *   version: { major: 1, minor: 16, patch: 1 },
 *   snapshotFormat: "10.0.0",
 *   architecture: "x86_64",
 *   kvm: { _tag: "Usable" },
 *   cpu: "Model 1",
 *   kernel: "6.1.0",
 *   uid: 1000
 * })
 * Result.getOrThrow(setup).because // => "KVM is usable"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const choose = (
  observations: Observations,
  options: Options = {}
): Result.Result<Setup, MicroVmError.MicroVmError> => {
  const { jailer, kvm, ...firecracker } = observations
  const seen = jailer === undefined ? firecracker : { ...firecracker, jailer: jailer.binary }
  const { oldest } = FirecrackerVersion.known
  if (!FirecrackerVersion.isAtLeast(seen.version, oldest)) {
    return Result.fail(unavailable(
      `${seen.binary} is version ${FirecrackerVersion.format(seen.version)}`,
      `install Firecracker ${oldest.major}.${oldest.minor} or later`
    ))
  }
  // A jailer passes on arguments, and makes devices, for the Firecracker that it was released with (docs/jailer.md).
  if (jailer !== undefined && FirecrackerVersion.format(jailer.version) !== FirecrackerVersion.format(seen.version)) {
    const [ours, its] = [FirecrackerVersion.format(seen.version), FirecrackerVersion.format(jailer.version)]
    return Result.fail(unavailable(
      `${jailer.binary} is version ${its}, and ${seen.binary} is ${ours}`,
      "let MICROVM_JAILER_BIN and MICROVM_FIRECRACKER_BIN name programs of one release"
    ))
  }
  if (kvm._tag === "Usable") return Result.succeed({ ...seen, because: "KVM is usable" })
  return options.kvm === "assume"
    ? Result.succeed({ ...seen, because: `KVM is taken for usable, though ${kvm.why}` })
    : Result.fail(unavailable(kvm.why, kvm.remedy))
}
