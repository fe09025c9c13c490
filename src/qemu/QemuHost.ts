/**
 * What this backend has to know about the host, and what it decides from that: which accelerator, which user.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import type * as Snapshot from "../microvm/Snapshot.ts"
import * as UserMap from "../process/UserMap.ts"

/**
 * A version of QEMU.
 *
 * @category models
 * @since 0.1.0
 */
export interface Version {
  readonly major: number
  readonly minor: number
  readonly micro: number
}

/**
 * Guests run with the host's instruction set; these two are known here.
 *
 * @category models
 * @since 0.1.0
 */
export type Architecture = "x86_64" | "aarch64"

/**
 * Can guests run on the processor itself? `mode` and `gid` are those of `/dev/kvm`.
 *
 * @category models
 * @since 0.1.0
 */
export type Kvm =
  | { readonly _tag: "Usable"; readonly mode: number; readonly gid: number }
  | { readonly _tag: "Unusable"; readonly why: string; readonly remedy: string }

/**
 * What was seen on the host.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observations {
  /** The program, as it is going to be started. */
  readonly binary: string
  readonly version: Version
  /** The SHA-256 of the program. Absent when it cannot be read. */
  readonly digest?: string
  readonly architecture: Architecture
  readonly kvm: Kvm
  /** The processor, as far as a guest with KVM sees a difference. */
  readonly cpu: string
  /** Our own effective user id. */
  readonly uid: number
  /** Is setpriv(1) of util-linux there? Looked for only when we have rights that QEMU is not to have. */
  readonly setpriv: boolean
  /** Do the programs that we start keep capabilities of ours (`ProcessCapabilities.ambient`)? Default false. */
  readonly passesCapabilities?: boolean | undefined
  /** The users that we can become when we are root. Default all. */
  readonly others?: ReadonlyArray<UserMap.Range> | undefined
  /** May only root open `/dev/net/tun`? udev has it otherwise. Default false. */
  readonly tunIsClosed?: boolean | undefined
  /** Our PATH, for the programs that are started. */
  readonly path: string
}

/**
 * A file that QEMU has to open.
 *
 * @category models
 * @since 0.1.0
 */
export interface FileFacts {
  readonly path: string
  /** Why it cannot be opened by us; absent when it can. */
  readonly fault?: string
  /** Is that only for want of a right or a descriptor, or for a mount that is read-only? The file may be as it should, then. Default false. */
  readonly isClosed?: boolean
  /** What helps, where it is not the file that is to blame: we have too many open. */
  readonly remedy?: string
  /** Can a user without any rights of its own read it, once it is open? */
  readonly worldReadable: boolean
  /** And can such a user write to it? */
  readonly worldWritable: boolean
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Default: `qemu-system-x86_64` or `qemu-system-aarch64`, found in PATH. */
  readonly binary?: string | undefined
  /** `"auto"`, the default, takes KVM when it is usable, else TCG, QEMU's own translator. */
  readonly accelerator?: "auto" | "kvm" | "tcg" | undefined
  /** `"auto"`, the default, gives QEMU a user without rights when we are root. `"keep"` leaves it ours. */
  readonly user?: "auto" | "keep" | undefined
  /** Asks programs for their versions also where what they said before is kept. Default false. */
  readonly afresh?: boolean | undefined
}

/**
 * The host could not do with a file what was asked of it.
 *
 * @category errors
 * @since 0.1.0
 */
export class HostFailed extends Data.TaggedError("HostFailed")<{
  readonly path: string
  readonly why: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `${this.path}: ${this.why}`
  }
}

/**
 * Memory for a machine, as a file without a name: it is gone with the last process that has it open, however that ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ram {
  /** By which our children can open it. */
  readonly path: string
  /** Copies it into a new file, with holes where it is zero. Nothing may write to it meanwhile. */
  readonly copyTo: (file: string, mode: number) => Effect.Effect<void, HostFailed>
}

/**
 * A socket that waits for one connection, and writes what that sends into a file.
 *
 * @category models
 * @since 0.1.0
 */
export interface Receiver {
  /** Gone as soon as somebody has connected. */
  readonly path: string
  /** Waits until the sender has ended and all of it is written. */
  readonly received: Effect.Effect<void, HostFailed>
}

/**
 * @category services
 * @since 0.1.0
 */
export class QemuHost extends Context.Service<QemuHost, {
  /** Looks at the host now. Fails with `BackendUnavailable` when there is no QEMU that can be used. */
  readonly observe: (options: Options) => Effect.Effect<Observations, MicroVmError.MicroVmError>
  /** Opens the file, also for writing if it is to be `writable` (default false), and changes nothing of it. */
  readonly inspect: (
    path: string,
    options?: { readonly writable?: boolean | undefined }
  ) => Effect.Effect<FileFacts>
  /**
   * What a disk is now. One that is `readOnly` is read, unless it is as `known` tells, or was read before. Default: disks are not
   * looked at.
   */
  readonly disk?: (
    path: string,
    options: { readonly readOnly: boolean; readonly known: Snapshot.Disk | undefined }
  ) => Effect.Effect<Omit<Snapshot.Disk, "name">, Error>
  /** Copies a file into a new one that all can read. An interruption waits until the copy is through. */
  readonly copy: (from: string, to: string) => Effect.Effect<void, HostFailed>
  /** Memory of so many bytes, all zero. Fails when there is no room for it. */
  readonly makeRam: (bytes: number) => Effect.Effect<Ram, HostFailed, Scope.Scope>
  /** Waits for a connection of this user, whose bytes go into a new file that only we can read. */
  readonly receive: (file: string, from: User) => Effect.Effect<Receiver, HostFailed, Scope.Scope>
}>()("effect-microvm-runtime/qemu/QemuHost") {}

/**
 * The user QEMU runs as. `Unprivileged` is taken on by setpriv(1) before QEMU's first instruction, and so are capabilities of ours
 * given up that QEMU would have with our own user (`dropsCapabilities`, default false).
 *
 * @category models
 * @since 0.1.0
 */
export type User =
  | { readonly _tag: "Own"; readonly why: string; readonly dropsCapabilities?: boolean }
  | {
    readonly _tag: "Unprivileged"
    readonly uid: number
    readonly gid: number
    readonly groups: ReadonlyArray<number>
  }

/**
 * What was decided.
 *
 * @category models
 * @since 0.1.0
 */
export interface Setup {
  readonly binary: string
  readonly version: Version
  /** The SHA-256 of the program, as far as it is known. */
  readonly digest?: string
  readonly architecture: Architecture
  readonly accelerator: "kvm" | "tcg"
  /** Why this accelerator. */
  readonly because: string
  readonly cpu: string
  readonly user: User
  /** Default false. */
  readonly tunIsClosed?: boolean | undefined
  readonly path: string
}

/**
 * The first version with every option that is used here.
 *
 * @category constants
 * @since 0.1.0
 */
export const oldest: Version = { major: 6, minor: 0, micro: 0 }

/**
 * Is this version `major.minor` or a later one?
 *
 * ```ts import.meta.vitest
 * import { QemuHost } from "effect-microvm-runtime/qemu"
 * QemuHost.isAtLeast({ major: 7, minor: 2, micro: 22 }, 7, 0) // => true
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const isAtLeast = (self: Version, major: number, minor: number): boolean =>
  self.major > major || (self.major === major && self.minor >= minor)

/**
 * Reads the first line of `--version`.
 *
 * ```ts import.meta.vitest
 * import { QemuHost } from "effect-microvm-runtime/qemu"
 * QemuHost.parseVersion("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)") // => { major: 10, minor: 0, micro: 2 }
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const parseVersion = (text: string): Version | undefined => {
  const [, major, minor, micro] = /^QEMU emulator version (\d+)\.(\d+)\.(\d+)/.exec(text) ?? []
  return micro === undefined ? undefined : { major: Number(major), minor: Number(minor), micro: Number(micro) }
}

/**
 * @category conversions
 * @since 0.1.0
 */
export const formatVersion = ({ major, micro, minor }: Version): string => `${major}.${minor}.${micro}`

/** The overflow user of the kernel, by which no file and no other service should be owned (user_namespaces(7)). */
const nobody = 65534

const unavailable = (why: string, remedy: string): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.BackendUnavailable({ backend: "qemu", why, remedy }))

/** How a user without rights gets at `/dev/kvm`: as anybody, as a member of its group, or not at all. */
const groupsForKvm = ({ gid, mode }: { readonly gid: number; readonly mode: number }) => {
  if ((mode & 0o006) === 0o006) return []
  return (mode & 0o060) === 0o060 && gid !== 0 ? [gid] : undefined
}

const chooseUser = (
  { kvm, others, passesCapabilities = false, setpriv, uid }: Observations,
  accelerator: "kvm" | "tcg",
  options: Options
): User => {
  if (uid !== 0) return { _tag: "Own", why: `uid ${uid}`, ...(passesCapabilities && { dropsCapabilities: true }) }
  if (options.user === "keep") return { _tag: "Own", why: "root, as asked for" }
  if (!setpriv) return { _tag: "Own", why: "root: setpriv(1) of util-linux is missing" }
  if (others !== undefined && !UserMap.covers(others, { first: nobody, last: nobody })) {
    return { _tag: "Own", why: "root, who has not the right to become another user here, or none to become" }
  }
  const groups = accelerator === "kvm" && kvm._tag === "Usable" ? groupsForKvm(kvm) : []
  return groups === undefined
    ? { _tag: "Own", why: "root: nobody else may open /dev/kvm (chgrp kvm /dev/kvm && chmod 660 /dev/kvm)" }
    : { _tag: "Unprivileged", uid: nobody, gid: nobody, groups }
}

/**
 * Decides. Fails with `BackendUnavailable` when QEMU is too old, KVM was asked for and is not usable, or QEMU would keep rights that
 * are ours and not root's.
 *
 * ```ts import.meta.vitest
 * import { QemuHost } from "effect-microvm-runtime/qemu"
 * import * as Result from "effect/Result"
 * const setup = QemuHost.choose({
 *   binary: "qemu-system-x86_64",
 *   version: { major: 7, minor: 2, micro: 22 },
 *   architecture: "x86_64",
 *   kvm: { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy: "" },
 *   cpu: "Model 1",
 *   uid: 1000,
 *   setpriv: true,
 *   path: "/usr/bin:/bin"
 * })
 * Result.getOrThrow(setup).accelerator // => "tcg"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const choose = (
  observations: Observations,
  options: Options = {}
): Result.Result<Setup, MicroVmError.MicroVmError> => {
  const { architecture, binary, cpu, digest, kvm, path, tunIsClosed, version } = observations
  const { accelerator: wanted = "auto" } = options
  if (!isAtLeast(version, oldest.major, oldest.minor)) {
    return Result.fail(
      unavailable(
        `${binary} is version ${formatVersion(version)}`,
        `install QEMU ${oldest.major}.${oldest.minor} or later`
      )
    )
  }
  if (wanted === "kvm" && kvm._tag === "Unusable") {
    return Result.fail(unavailable(`KVM was asked for, but ${kvm.why}`, kvm.remedy))
  }
  if (observations.uid !== 0 && observations.passesCapabilities === true && !observations.setpriv) {
    return Result.fail(unavailable("it would keep our capabilities", "apt-get install util-linux"))
  }
  const found = kvm._tag === "Usable"
    ? { accelerator: "kvm", because: "KVM is usable" } as const
    : { accelerator: "tcg", because: kvm.why } as const
  const { accelerator, because } = wanted === "auto" ? found : { accelerator: wanted, because: "asked for" }
  const user = chooseUser(observations, accelerator, options)
  const program = { binary, version, ...(digest !== undefined && { digest }) }
  return Result.succeed({ ...program, architecture, accelerator, because, cpu, user, tunIsClosed, path })
}
