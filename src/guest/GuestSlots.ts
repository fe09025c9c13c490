/**
 * Slots: triples of ports, each of which carries the streams of one command at a time.
 *
 * A slot goes back to the free ones when all that its command can still send has come; until then it is retired, for what is left
 * in its ports would end up in the next command's streams.
 *
 * @since 0.1.0
 */
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import * as GuestError from "./GuestError.ts"
import * as GuestStdio from "./GuestStdio.ts"

/**
 * The byte channels of a slot.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ports {
  /** N in `microvm.N.stdin`. */
  readonly slot: number
  readonly stdin: Socket.Socket
  readonly stdout: Socket.Socket
  readonly stderr: Socket.Socket
}

/**
 * A slot that runs a command.
 *
 * @category models
 * @since 0.1.0
 */
export interface Slot {
  readonly slot: number
  /**
   * Writes in order, and waits until the guest takes it. Interruption only ends the wait: what was begun is written, or the
   * guest would lose its place in the stream.
   */
  readonly write: (chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) => Effect.Effect<void, GuestError.GuestError>
  /** Writes in order, without waiting: for the few bytes that begin and end the input. */
  readonly post: (bytes: Uint8Array) => Effect.Effect<void>
  readonly pullStdout: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, GuestError.GuestError>
  readonly pullStderr: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, GuestError.GuestError>
  /**
   * Gives the slot back; `clean` says that all of the command's streams have come. Only the first call counts. One that is retired
   * is free again when `rest`, which goes on behind, has found that all has come after all.
   */
  readonly release: (how: "clean" | "retire", rest?: Effect.Effect<boolean>) => Effect.Effect<void>
}

/**
 * The slots of a machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface GuestSlots {
  /** Takes a free slot, or fails with `NoFreeSlot` at once. */
  readonly take: Effect.Effect<Slot, GuestError.GuestError>
  /**
   * Takes the slot of this number, where a command runs that another process has started. Fails with `InvalidArgument` when
   * it is not among the free ones.
   */
  readonly takeSlot: (slot: number) => Effect.Effect<Slot, GuestError.GuestError>
  /** The numbers of the free ones, in the order in which they are taken. */
  readonly free: Effect.Effect<ReadonlyArray<number>>
  /** How many slots are free, run a command, and are retired. */
  readonly usage: Effect.Effect<{ readonly free: number; readonly inUse: number; readonly retired: number }>
}

const closed = (channel: string) => (cause: unknown): GuestError.GuestError =>
  GuestError.make(new GuestError.Closed({ channel, cause }))

const open = Effect.fnUntraced(function*(ports: Ports) {
  const names = GuestStdio.portNames(ports.slot)
  const scope = yield* Effect.scope
  const output = (socket: Socket.Socket, name: string) =>
    Socket.readerBytes(socket).pipe(
      Effect.map((pull) => Effect.mapError(pull, closed(name))),
      Effect.mapError(closed(name))
    )
  const pullStdout = yield* output(ports.stdout, names.stdout)
  const pullStderr = yield* output(ports.stderr, names.stderr)
  const writer = yield* ports.stdin.writer
  // A socket's writer waits until its reader is open.
  yield* Effect.asVoid(output(ports.stdin, names.stdin))
  const turn = yield* Semaphore.make(1)
  const begin = (chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) =>
    Semaphore.withPermit(turn, writer.writeAll(chunks)).pipe(
      Effect.mapError(closed(names.stdin)),
      Effect.forkIn(scope, { startImmediately: true })
    )
  return {
    slot: ports.slot,
    write: (chunks: Arr.NonEmptyReadonlyArray<Uint8Array>) => Effect.flatMap(begin(chunks), Fiber.join),
    post: (bytes: Uint8Array) => Effect.asVoid(begin([bytes])),
    pullStdout,
    pullStderr
  }
})

/**
 * Opens the ports of all slots, and closes them with the scope. Slots are taken in the order in which they are given.
 *
 * ```ts import.meta.vitest
 * import { GuestSlots } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const slots = yield* GuestSlots.make([yield* guest.ports(0), yield* guest.ports(1)])
 *   yield* slots.take
 *   return (yield* slots.usage).free
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 1
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("GuestSlots.make")(function*(
  slots: ReadonlyArray<Ports>
): Effect.fn.Return<GuestSlots, GuestError.GuestError, Scope.Scope> {
  const scope = yield* Effect.scope
  const free = yield* Effect.forEach(slots, open)
  let inUse = 0
  let retired = 0
  const handOut = (opened: (typeof free)[number]): Slot => {
    inUse++
    let released = false
    return {
      ...opened,
      release: (how, rest = Effect.succeed(false)) =>
        Effect.suspend(() => {
          if (released) return Effect.void
          released = true
          inUse--
          if (how === "clean") {
            free.push(opened)
            return Effect.void
          }
          retired++
          const reclaim = Effect.map(rest, (isClean) => {
            if (!isClean) return
            retired--
            free.push(opened)
          })
          return Effect.asVoid(Effect.forkIn(reclaim, scope))
        })
    }
  }
  return {
    take: Effect.suspend(() => {
      const opened = free.shift()
      return opened === undefined
        ? Effect.fail(GuestError.make(new GuestError.NoFreeSlot({ inUse, retired })))
        : Effect.succeed(handOut(opened))
    }),
    takeSlot: (slot) =>
      Effect.suspend(() => {
        const at = free.findIndex((one) => one.slot === slot)
        const [opened] = at === -1 ? [] : free.splice(at, 1)
        if (opened !== undefined) return Effect.succeed(handOut(opened))
        const there = `free are ${free.length === 0 ? "none" : free.map((one) => one.slot).join(", ")}`
        const faults = [`slot: ${slot} is not free: give one that is, ${there}`]
        return Effect.fail(GuestError.make(new GuestError.InvalidArgument({ faults })))
      }),
    free: Effect.sync(() => free.map(({ slot }) => slot)),
    usage: Effect.sync(() => ({ free: free.length, inUse, retired }))
  }
})

/**
 * The channels that a machine must have for `count` slots, as `fromChannels` looks for them.
 *
 * ```ts import.meta.vitest
 * import { GuestSlots } from "effect-microvm-runtime/guest"
 * GuestSlots.channelNames(1) // => ["microvm.0.stdin", "microvm.0.stdout", "microvm.0.stderr"]
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const channelNames = (count: number): ReadonlyArray<string> =>
  Array.from({ length: count }, (_, slot) => GuestStdio.portNames(slot))
    .flatMap(({ stderr, stdin, stdout }) => [stdin, stdout, stderr])

/**
 * The slots whose ports are all among these channels.
 *
 * ```ts import.meta.vitest
 * import { GuestSlots } from "effect-microvm-runtime/guest"
 * GuestSlots.inChannels(["agent", ...GuestSlots.channelNames(2)]) // => [0, 1]
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const inChannels = (channels: ReadonlyArray<string>): ReadonlyArray<number> =>
  channels.map((_, slot) => slot).filter((slot) => {
    const { stderr, stdin, stdout } = GuestStdio.portNames(slot)
    return [stdin, stdout, stderr].every((name) => channels.includes(name))
  })

/**
 * Opens the ports of slots 0 to `count` − 1, or of the slots of these numbers, by their names: `channel` gives the byte channel
 * of a name, as a machine does.
 *
 * ```ts import.meta.vitest
 * import { GuestSlots } from "effect-microvm-runtime/guest"
 * import { FakeGuestAgent } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const guest = yield* FakeGuestAgent.make()
 *   const slots = yield* GuestSlots.fromChannels(2, guest.channel)
 *   return (yield* slots.usage).free
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 2
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromChannels = Effect.fn("GuestSlots.fromChannels")(function*<E, R>(
  slots: number | ReadonlyArray<number>,
  channel: (name: string) => Effect.Effect<Socket.Socket, E, R>
): Effect.fn.Return<GuestSlots, E | GuestError.GuestError, R | Scope.Scope> {
  return yield* make(
    yield* Effect.forEach(
      typeof slots === "number" ? Array.from({ length: slots }, (_, slot) => slot) : slots,
      (slot) => {
        const names = GuestStdio.portNames(slot)
        return Effect.all({
          slot: Effect.succeed(slot),
          stdin: channel(names.stdin),
          stdout: channel(names.stdout),
          stderr: channel(names.stderr)
        })
      }
    )
  )
})
