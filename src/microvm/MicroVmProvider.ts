/**
 * What a backend has to be able to do: few primitives, from which all the rest is made.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as Socket from "effect/socket/Socket"
import type * as Stream from "effect/Stream"
import type { Remains } from "../lifecycle/Shutdown.ts"
import type { MachineEnd } from "./MachineEnd.ts"
import type { Drive, MachineSpec } from "./MachineSpec.ts"
import type { MicroVmError } from "./MicroVmError.ts"
import type * as Snapshot from "./Snapshot.ts"

/**
 * What a backend can do beyond the least.
 *
 * @category models
 * @since 0.1.0
 */
export interface Capabilities {
  /** Can it stop the guest's processors and set them going again? */
  readonly pause: boolean
  /** Can it write a machine down, and restore machines from that? Only one that has `pause` can. */
  readonly snapshot: boolean
  /** Can it write down only what has changed since another snapshot? Only one that has `snapshot` can. */
  readonly diff: boolean
  /** Is nothing of a machine named after its id, so that a machine can be given another while it is there? */
  readonly rename: boolean
  /** Can it press a power button that the guest hears? */
  readonly powerButton: boolean
  /** Is a guest's kernel panic told from a power-off? */
  readonly panicDetection: boolean
  /** Does a machine that was saved and goes on still have its byte channels? Where it does not, each has ended. */
  readonly saveKeepsChannels: boolean
  /** Can a machine outlive the process that launched it, and be attached to by another? */
  readonly keep: boolean
  /** Can the monitor of each machine run as a user of the caller's choice? */
  readonly user: boolean
}

/**
 * What a backend is going to do, for people to read. Making one has no side effect.
 *
 * @category models
 * @since 0.1.0
 */
export interface LaunchPlan {
  readonly backend: string
  /** What will be claimed and done, one sentence each, in order. */
  readonly description: ReadonlyArray<string>
  /** The command line of the monitor; empty when there is none. */
  readonly argv: ReadonlyArray<string>
}

/**
 * What the host can ask of a machine, from the politest to the one that cannot be refused:
 *
 * - `PowerButton`: the guest is told that its power button was pressed.
 * - `Terminate`: the monitor is asked to end (SIGTERM); the guest is not asked.
 * - `Kill`: the monitor, and all that it has started, is killed (SIGKILL to its kill scope).
 *
 * @category models
 * @since 0.1.0
 */
export type MachineRequest = "PowerButton" | "Terminate" | "Kill"

/**
 * How a machine is to be brought up.
 *
 * @category options
 * @since 0.1.0
 */
export interface LaunchOptions {
  /** The machine goes on from this snapshot: it is handed over paused. Default: it boots. */
  readonly from?: Snapshot.Snapshot | undefined
  /**
   * Its snapshots are to be restored from often: they may take longer to make, so that machines that are restored from one
   * are up sooner and share memory. Default false.
   */
  readonly template?: boolean | undefined
  /**
   * The machine is to outlive us, however we end: neither our death nor the close of the launch's scope ends it, only
   * requests do. `directory` is an empty one that is the machine's alone: what `attach` needs is kept there, and nothing of
   * the machine is anywhere else. Removing it, once the machine has ended, is the caller's. Default: it is not kept.
   */
  readonly keep?: { readonly directory: string } | undefined
  /**
   * Control groups that the caller has made, with their limits: the monitor starts in all of them. `path` is of version 2, and
   * `Kill` kills all that is in it; `v1` has one for each hierarchy of version 1 that has a controller. Removing them, once the
   * machine has ended, is the caller's. Default: the backend's own choice.
   */
  readonly cgroup?: { readonly path?: string | undefined; readonly v1?: ReadonlyArray<string> | undefined } | undefined
  /**
   * Path of the network namespace in which the TAP devices of the spec are, `/run/netns/NAME`: the monitor runs in it. Default:
   * ours.
   */
  readonly netns?: string | undefined
  /**
   * The user that the monitor runs as; its group has the same number. One that nobody else has keeps a monitor that was broken
   * out of away from all the others. Only where the backend has the capability `user`. Default: the backend's own choice.
   */
  readonly user?: number | undefined
}

/**
 * A machine that was kept, and that this process has now got hold of. `state` is what it was found in.
 *
 * @category models
 * @since 0.1.0
 */
export interface Attached {
  readonly vmm: Vmm
  readonly state: "created" | "running" | "paused"
}

/**
 * One launched machine, as a backend hands it over: its monitor is up, its guest has not run yet, or stands where its
 * snapshot was made.
 *
 * A backend need not check the order of calls: `Machine` does. All effects must be interruptible. `request` is also
 * called while the scope of the launch closes: a fiber that is forked into it then does not run.
 *
 * @category models
 * @since 0.1.0
 */
export interface Vmm {
  /** Sets a guest going that boots. Called once at most with success. */
  readonly start: Effect.Effect<void, MicroVmError>
  readonly pause: Effect.Effect<void, MicroVmError>
  readonly resume: Effect.Effect<void, MicroVmError>
  /** Done when the monitor has answered something that is no work for it. The guest is not asked. */
  readonly ping: Effect.Effect<void, MicroVmError>
  /**
   * Writes the machine into an empty directory. The guest stands still when this is called, and after it, also when it has
   * failed or was interrupted; then nothing writes there any more, and it can go on as if nothing had happened.
   *
   * With a `base`, only what is another than in that: it is of the moment at which the machine was saved last, or at which
   * it goes on if it was not saved since. A backend that can do that names the moment in each answer.
   */
  readonly save: (
    directory: string,
    base?: Snapshot.Snapshot
  ) => Effect.Effect<Snapshot.Saved, MicroVmError>
  /** Why this machine cannot be saved as a difference, if it cannot though the backend can. */
  readonly refusesDiff?: Effect.Effect<never, MicroVmError> | undefined
  /** Waits until all that `Kill` reaches is gone. */
  readonly ended: Effect.Effect<MachineEnd>
  /** Has it ended by now? Must not wait. */
  readonly poll: Effect.Effect<Option.Option<MachineEnd>>
  /** Fails only when the request could not be made; a machine that is gone is not a failure. */
  readonly request: (request: MachineRequest) => Effect.Effect<void, MicroVmError>
  /** What is there now, also where `Kill` does not reach. */
  readonly remains: Effect.Effect<Remains>
  /** The host's end of a byte channel of the spec. Fails with `ChannelUnavailable` when the spec does not name it. */
  readonly channel: (name: string) => Effect.Effect<Socket.Socket, MicroVmError>
  /** The serial console from now to the end. Each run is a view of its own; a slow reader loses the oldest. */
  readonly console: Stream.Stream<Uint8Array>
  /** The last 64 KiB of the serial console, also after the end. */
  readonly consoleTail: Effect.Effect<string>
  /** The monitor's process, if there is one. */
  readonly pid: Option.Option<number>
}

/**
 * A backend.
 *
 * @category services
 * @since 0.1.0
 */
export class MicroVmProvider extends Context.Service<MicroVmProvider, {
  /** What people call it: `"qemu"`, `"memory"`. */
  readonly backend: string
  readonly capabilities: Capabilities
  /** What `launch` would do. Fails where it would be sure to, with `InvalidSpec` or `Unsupported`. */
  readonly plan: (spec: MachineSpec, options?: LaunchOptions) => Result.Result<LaunchPlan, MicroVmError>
  /** What a snapshot must have been made for, to be loaded here as a machine of this spec. */
  readonly platform: (spec: Snapshot.Inventory) => Result.Result<Snapshot.Platform, MicroVmError>
  /**
   * What these disks are now; `known` is what they were when a snapshot was made, of which nothing is read a second time while it
   * is the same file. Default: disks are not looked at.
   */
  readonly disks?:
    | ((
      drives: ReadonlyArray<Drive>,
      known?: ReadonlyArray<Snapshot.Disk>
    ) => Effect.Effect<ReadonlyArray<Snapshot.Disk>, MicroVmError>)
    | undefined
  /**
   * Claims all resources in the scope and brings the monitor up. Closing the scope kills whatever is left of it and
   * releases everything; after a failure or an interruption nothing is left.
   */
  readonly launch: (spec: MachineSpec, options?: LaunchOptions) => Effect.Effect<Vmm, MicroVmError, Scope.Scope>
  /**
   * Gets hold of a machine that was launched with `keep`, of this spec and in this directory. One that has ended since is
   * attached to as well: it tells its end, its exit status and the last of its console. Closing the scope lets go of it, and
   * ends nothing. Fails with `AttachFailed` when there is no such machine, or somebody else has hold of it.
   */
  readonly attach: (
    spec: MachineSpec,
    options: { readonly directory: string }
  ) => Effect.Effect<Attached, MicroVmError, Scope.Scope>
}>()("effect-microvm-runtime/microvm/MicroVmProvider") {}
