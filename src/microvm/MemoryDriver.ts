/**
 * The far side of the in-memory backend: scripts how machines behave, plays their guests, and counts what is claimed.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Socket from "effect/socket/Socket"
import type { Survivor } from "../lifecycle/ShutdownOutcome.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { MachineId, MachineSpec } from "./MachineSpec.ts"
import type { MicroVmError } from "./MicroVmError.ts"
import type { MachineRequest } from "./MicroVmProvider.ts"
import type * as Snapshot from "./Snapshot.ts"

/**
 * One life of a machine, from within. Everything that ends it does so at once, whatever the machine does just then;
 * only the first end counts.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryGuest {
  /** The id that the machine was launched with. */
  readonly id: MachineId
  readonly spec: MachineSpec
  /** Which launch of the backend this is, from 1. */
  readonly life: number
  /** What its programs remember: a snapshot holds a copy, and so has each machine that is restored from it. */
  readonly memory: Map<string, string>
  readonly powerOff: Effect.Effect<void>
  readonly reboot: Effect.Effect<void>
  /** The kernel panics; without `panicDetection` it looks like a reboot. */
  readonly panic: Effect.Effect<void>
  /** The monitor ends as if asked to by the host. */
  readonly quit: Effect.Effect<void>
  /** A signal kills the monitor. */
  readonly kill: (signal: Signal) => Effect.Effect<void>
  /** The monitor ends by itself, with code 1. */
  readonly crash: (why: string) => Effect.Effect<void>
  /** Writes to the serial console. */
  readonly print: (text: string) => Effect.Effect<void>
  /** The guest's end of a channel. */
  readonly channel: (name: string) => Effect.Effect<Socket.Socket, MicroVmError>
  /** Runs an effect beside, until it is done or the machine has ended. */
  readonly background: (effect: Effect.Effect<void>) => Effect.Effect<void>
}

/**
 * How machines behave. What is left out works at once and without fault; an effect that fails makes the step fail, one
 * that sleeps makes it slow, `Effect.never` makes it hang.
 *
 * @category options
 * @since 0.1.0
 */
export interface Script {
  /** Before each step of a launch. */
  readonly launch?: ((step: LaunchStep) => Effect.Effect<void, unknown>) | undefined
  readonly start?: Effect.Effect<void, unknown> | undefined
  readonly pause?: Effect.Effect<void, unknown> | undefined
  readonly ping?: Effect.Effect<void, unknown> | undefined
  readonly resume?: Effect.Effect<void, unknown> | undefined
  readonly save?: Effect.Effect<void, unknown> | undefined
  /** What a request does; the default is `obey`. For a late effect use `guest.background`. */
  readonly request?: ((request: MachineRequest, guest: MemoryGuest) => Effect.Effect<void, unknown>) | undefined
  /**
   * The guest's program: runs from the start of the machine to its end, and goes on while the machine is paused. A
   * failure is a kernel panic; an end leaves the machine running.
   */
  readonly program?: ((guest: MemoryGuest) => Effect.Effect<void, unknown>) | undefined
  /**
   * The program of a guest that was restored, from its first resume on. Default: `program`, from its beginning, with the
   * memory that the snapshot holds.
   */
  readonly restored?: ((guest: MemoryGuest) => Effect.Effect<void, unknown>) | undefined
  /** What it takes to release the machine's resources. */
  readonly release?: Effect.Effect<void> | undefined
  /** What is still there after the end. */
  readonly survivors?: ReadonlyArray<Survivor> | undefined
}

/**
 * The steps of a launch, in order: the id is claimed, the monitor is spawned, its channels are connected; the snapshot is
 * loaded, if there is one.
 *
 * @category models
 * @since 0.1.0
 */
export type LaunchStep = "claim" | "spawn" | "connect" | "restore"

/**
 * Something that happened at the backend: a call (`"start"`, `"Kill"`), a step of a launch, `"launched"`, `"ended"`,
 * `"released"`.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryEvent {
  readonly life: number
  readonly id: MachineId
  readonly what: string
}

/**
 * A well-behaved machine: the power button powers it off, SIGTERM makes its monitor quit, SIGKILL kills it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const obey = (request: MachineRequest, guest: MemoryGuest): Effect.Effect<void> => {
  switch (request) {
    case "PowerButton":
      return guest.powerOff
    case "Terminate":
      return guest.quit
    case "Kill":
      return guest.kill("SIGKILL")
  }
}

/**
 * Drives the in-memory backend.
 *
 * @category services
 * @since 0.1.0
 */
export class MemoryDriver extends Context.Service<MemoryDriver, {
  /** How machines of this id behave from now on, in place of an earlier script; `"*"` is for all that have none. */
  readonly script: (id: string, script: Script) => Effect.Effect<void>
  /** The latest life of a machine by the id it was launched with; fails with `MachineNotFound` when there was none. */
  readonly guest: (id: MachineId) => Effect.Effect<MemoryGuest, MicroVmError>
  /** Is part of what snapshots need from now on: as if the host had become another one. Default nothing. */
  readonly platform: (platform: Snapshot.Platform) => Effect.Effect<void>
  /** The store finds this snapshot unusable from now on. Fails with `SnapshotNotFound` when there is none. */
  readonly corrupt: (nameOrId: string, why: string) => Effect.Effect<void, MicroVmError>
  /** All that happened so far, oldest first. Kept as long as the layer. */
  readonly events: Effect.Effect<ReadonlyArray<MemoryEvent>>
  /** The lives whose resources are not released yet. */
  readonly claims: Effect.Effect<ReadonlyArray<{ readonly life: number; readonly id: MachineId }>>
}>()("effect-microvm-runtime/microvm/MemoryDriver") {}
