/**
 * What a host is like, as far as it matters to machines: looked at once, and judged elsewhere. The real one is
 * `NodeHostFacts`.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import type * as Addresses from "./Addresses.ts"
import type { HostError } from "./HostError.ts"

/**
 * May a device be opened to read and to write?
 *
 * @category models
 * @since 0.1.0
 */
export type Access = "Usable" | "Missing" | { readonly denied: string }

/**
 * - `Absent`: nothing is there; `parent` is the nearest directory above it that is.
 *
 * @category models
 * @since 0.1.0
 */
export type StateDirectory =
  | { readonly _tag: "Absent"; readonly parent: string; readonly isWritable: boolean; readonly free: number }
  | {
    readonly _tag: "There"
    readonly isDirectory: boolean
    readonly owner: number
    readonly mode: number
    /** `ext4`, `tmpfs`, …: of proc_pid_mountinfo(5). */
    readonly fileSystem: string
    /** What went wrong when a file was written there, synced, renamed and removed. */
    readonly fault: string | undefined
    /** Bytes that we may still write. */
    readonly free: number
  }

/**
 * What can be limited, and by which version of cgroups, or why it cannot be.
 *
 * @category models
 * @since 0.1.0
 */
export type Limit =
  | { readonly what: string; readonly by: "v1" | "v2" }
  | { readonly what: string; readonly why: string; readonly remedy: string }

/**
 * What was seen. What could not be looked at is absent, or empty.
 *
 * @category models
 * @since 0.1.0
 */
export interface Facts {
  readonly uid: number
  /** A bit for each capability in effect (capabilities(7)). */
  readonly capabilities: bigint
  /** Which of `programs` were found. */
  readonly programs: ReadonlyArray<string>
  readonly tun: Access
  readonly kvm: Access
  readonly cpu: {
    /** What the processor shows of its virtualisation. */
    readonly virtualization: "vmx" | "svm" | "unknown" | undefined
    /** Is this host itself a virtual machine? */
    readonly isGuest: boolean
  }
  /**
   * By their paths below `/proc/sys`: `net/ipv4/ip_forward`. Those of `settings`, and `net/ipv6/conf/DEVICE/accept_ra` of the device
   * of the IPv6 default route.
   */
  readonly settings: Readonly<Record<string, string>>
  /** Is `/proc/sys` mounted so that nobody may write to it, as it is in most containers? */
  readonly areSettingsReadOnly: boolean
  /** The devices of the default routes. */
  readonly egress: { readonly ipv4: string | undefined; readonly ipv6: string | undefined }
  /** The pool of addresses: its IPv4 network, and whether it is there already; or why machines would get none. */
  readonly addresses:
    | { readonly ipv4: string; readonly isKept: boolean }
    | { readonly why: string; readonly remedy?: string }
  /** What is routed, but for default routes, and by which device; machines' links are among them. */
  readonly networks: ReadonlyArray<{ readonly device: string; readonly cidr: string }>
  /**
   * Base chains that drop what is forwarded, by their policy or by a rule for all packets, and have no rules before that accept
   * what is from machines' links and what is to them, or answers; a text when they could not be listed. Those of the old
   * iptables have the name of its program, `iptables-legacy` or `ip6tables-legacy`, for a family.
   */
  readonly forwardDrops:
    | ReadonlyArray<{ readonly family: string; readonly table: string; readonly chain: string }>
    | string
  readonly limits: ReadonlyArray<Limit>
  readonly state: StateDirectory
  /** The hard limit. Node raises the soft one to it when it starts. */
  readonly openFiles: number
  /** In bytes. */
  readonly swap: number
  readonly clockSource: string | undefined
}

/**
 * The programs that are looked for.
 *
 * @category models
 * @since 0.1.0
 */
export const programs = ["ip", "nft", "cp", "resize2fs", "e2fsck", "modprobe"] as const

/**
 * The settings that are looked at.
 *
 * @category models
 * @since 0.1.0
 */
export const settings = [
  "net/ipv4/ip_forward",
  "net/ipv6/conf/all/forwarding",
  "net/ipv4/neigh/default/gc_thresh3",
  "net/bridge/bridge-nf-call-iptables",
  "fs/inotify/max_user_instances",
  "kernel/pid_max",
  "kernel/seccomp/actions_avail",
  "user/max_net_namespaces",
  "vm/unprivileged_userfaultfd"
] as const

/**
 * Something that can be put in order without harm to anybody:
 *
 * - `MakeDirectory`: with the mode 0700, and those above it as they are made by default.
 * - `LoadModule`: of the kernel.
 * - `Forward`: lets packets pass between the devices of this host. That makes it a router, so `apply` is to be asked for it. With
 *   IPv6, a router takes no more advice from others, so the device that has its default route that way is told to go on
 *   taking it, if it does (`accept_ra` = 2 where it is 1).
 *
 * @category models
 * @since 0.1.0
 */
export type Fix = Data.TaggedEnum<{
  MakeDirectory: { readonly path: string }
  LoadModule: { readonly module: "tun" | "kvm_intel" | "kvm_amd" }
  Forward: { readonly family: "ipv4" | "ipv6"; readonly egress: string | undefined }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Fix = Data.taggedEnum<Fix>()

/**
 * - `observe`: looks at all there is. The pool of addresses is that of `addresses` in the state directory by default. The only trace is
 *   a file in the state directory, which is gone again. Never fails: what cannot be looked at is told as such.
 * - `apply`: does it, and tells what it did.
 *
 * @category services
 * @since 0.1.0
 */
export class HostFacts extends Context.Service<HostFacts, {
  readonly observe: (
    options: { readonly stateDirectory: string; readonly addresses?: Addresses.Options | undefined }
  ) => Effect.Effect<Facts>
  readonly apply: (fix: Fix) => Effect.Effect<string, HostError>
}>()("effect-microvm-runtime/host/HostFacts") {}
