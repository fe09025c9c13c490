import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import type * as Take from "effect/Take"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import { MachineEnd } from "../MachineEnd.ts"
import type { MachineId, MachineSpec } from "../MachineSpec.ts"
import type { LaunchStep, MemoryDriver, MemoryEvent, MemoryGuest, Script } from "../MemoryDriver.ts"
import { obey } from "../MemoryDriver.ts"
import * as MicroVmError from "../MicroVmError.ts"
import type { Attached, Capabilities, LaunchOptions, MicroVmProvider, Vmm } from "../MicroVmProvider.ts"
import * as Snapshot from "../Snapshot.ts"
import { makeSocketPair } from "./socketPair.ts"

const backend = "memory"
const tailBytes = 64 * 1024
const encoder = new TextEncoder()

type Ended = "PoweredOff" | "Reset" | "Panicked" | "Stopped" | "Killed"

/**
 * The world of the in-memory backend: what is claimed in it, and what happened.
 */
export const makeMemoryHost = (capabilities: Capabilities): {
  readonly provider: MicroVmProvider["Service"]
  readonly driver: Omit<MemoryDriver["Service"], "corrupt">
} => {
  const scripts = new Map<string, Script>()
  const guests = new Map<MachineId, MemoryGuest>()
  const claims = new Map<string, { readonly life: number; readonly id: MachineId }>()
  const events: Array<MemoryEvent> = []
  /** What outlives its launch, by the directory that stands for it. */
  const kept = new Map<string, { readonly id: MachineId; readonly attached: () => Attached; isHeld: boolean }>()
  /** One hand at a time; its scope lets go. */
  const hold = (directory: string) =>
    Effect.suspend(() => {
      const one = kept.get(directory)
      return one === undefined ? Effect.void : Effect.acquireRelease(
        Effect.sync(() => void (one.isHeld = true)),
        () => Effect.sync(() => void (one.isHeld = false))
      )
    })
  /** What was saved, by the form that its manifest has: a store may move directories. `undefined` is what was forgotten since. */
  const saves = new Map<string, ReadonlyMap<string, string | undefined>>()
  const savedAs = (snapshot: Snapshot.Snapshot) =>
    Effect.fromNullishOr(saves.get(snapshot.manifest.form)).pipe(
      Effect.mapError(() => `nothing was saved as "${snapshot.manifest.form}"`)
    )
  /** What the machine remembered when the snapshot was made. */
  const recall = (snapshot: Snapshot.Snapshot): Effect.Effect<Map<string, string>, string> =>
    Effect.map(Effect.forEach(Snapshot.layers(snapshot), savedAs), (all) => {
      const memory = new Map<string, string>()
      for (const layer of all) {
        for (const [name, value] of layer) {
          if (value === undefined) memory.delete(name)
          else memory.set(name, value)
        }
      }
      return memory
    })
  let platform: Snapshot.Platform = { backend }
  let lives = 0

  const launch: MicroVmProvider["Service"]["launch"] = (spec, options = {}) => {
    const { keep } = options
    if (keep === undefined) return play(spec, options)
    if (!capabilities.keep) {
      const remedy = "choose another backend, or do without"
      return MicroVmError.fail(new MicroVmError.Unsupported({ operation: "keeping a machine", backend, remedy }))
    }
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const vmm = yield* restore(play(spec, options)).pipe(
          Scope.provide(scope),
          Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
        )
        yield* Effect.forkDetach(Effect.andThen(vmm.ended, Scope.close(scope, Exit.void)))
        yield* hold(keep.directory)
        return vmm
      })
    )
  }

  const play = Effect.fnUntraced(function*(
    spec: MachineSpec,
    { from, keep, template = false }: LaunchOptions
  ): Effect.fn.Return<Vmm, MicroVmError.MicroVmError, Scope.Scope> {
    const { id } = spec
    const life = ++lives
    const note = (what: string) => Effect.sync(() => void events.push({ life, id, what }))
    const script = (): Script => scripts.get(id) ?? scripts.get("*") ?? {}

    let consoleTail = ""
    let pausedNow = from !== undefined
    let begun = false
    const console = yield* PubSub.sliding<Take.Take<Uint8Array>>(256)
    const over = yield* Deferred.make<MachineEnd>()
    let end: MachineEnd | undefined
    const poll = Effect.sync(() => Option.fromUndefinedOr(end))
    const channels = new Map<string, Effect.Success<ReturnType<typeof makeSocketPair>>>()

    const finish = (make: (tails: { readonly consoleTail: string; readonly stderrTail: string }) => MachineEnd) =>
      Effect.suspend(() => {
        if (end !== undefined) return Effect.void
        end = make({ consoleTail, stderrTail: "" })
        PubSub.endUnsafe(console, Exit.void)
        channels.forEach((pair) => pair.close())
        return Effect.andThen(note("ended"), Deferred.succeed(over, end))
      })
    const endBy = (tag: Ended, status: ExitStatus.ExitStatus = ExitStatus.exited(0)) =>
      finish((tails) => MachineEnd.cases[tag].make({ ...tails, status }))

    const channel =
      (side: "host" | "guest") => (name: string): Effect.Effect<Socket.Socket, MicroVmError.MicroVmError> =>
        Effect.suspend(() => {
          const pair = channels.get(name)
          if (pair !== undefined) return Effect.succeed(pair[side])
          const known = spec.channels
          return MicroVmError.fail(new MicroVmError.ChannelUnavailable({ id, channel: name, known }))
        })

    // Not the scope of the launch: the guest reacts while that one closes, and a closed scope takes no fiber.
    const background = yield* Effect.acquireRelease(Scope.make(), (made) => Scope.close(made, Exit.void))
    const guest: MemoryGuest = {
      id,
      spec,
      life,
      memory: new Map(),
      powerOff: endBy("PoweredOff"),
      reboot: endBy("Reset"),
      panic: endBy(capabilities.panicDetection ? "Panicked" : "Reset"),
      quit: endBy("Stopped"),
      kill: (signal) => endBy("Killed", ExitStatus.signaled(signal)),
      crash: (why) => finish((tails) => MachineEnd.cases.Failed.make({ ...tails, status: ExitStatus.exited(1), why })),
      print: (text) =>
        Effect.suspend(() => {
          consoleTail = (consoleTail + text).slice(-tailBytes)
          return Effect.asVoid(PubSub.publish(console, [encoder.encode(text)]))
        }),
      channel: channel("guest"),
      background: (effect) =>
        Effect.asVoid(
          Effect.forkIn(Effect.raceFirst(effect, Deferred.await(over)), background, { startImmediately: true })
        )
    }

    // Each step notes what it is about to do, then does what the script says, then takes effect.
    const step = (name: LaunchStep) =>
      Effect.andThen(
        note(name),
        Effect.suspend(() => script().launch?.(name) ?? Effect.void)
      ).pipe(Effect.mapError((cause) =>
        MicroVmError.make(
          new MicroVmError.LaunchFailed({ id, stage: name, stderrTail: "", consoleTail, cause })
        )
      ))
    yield* step("claim")
    const key = capabilities.rename ? String(life) : id
    const holder = claims.get(key)
    if (holder !== undefined) {
      const cause = new Error(`life ${holder.life} still holds it`)
      return yield* MicroVmError.fail(
        new MicroVmError.LaunchFailed({ id, stage: "claim", stderrTail: "", consoleTail, cause })
      )
    }
    yield* Effect.acquireRelease(
      Effect.sync(() => claims.set(key, { life, id })),
      () =>
        Effect.suspend(() => script().release ?? Effect.void).pipe(
          Effect.andThen(note("released")),
          Effect.andThen(Effect.sync(() => claims.delete(key)))
        )
    )
    yield* step("spawn")
    const request: Vmm["request"] = (wanted) =>
      Effect.andThen(
        note(wanted),
        Effect.suspend(() => {
          // A guest that stands still does not hear its power button.
          if (wanted === "PowerButton" && pausedNow) return Effect.void
          return (script().request ?? obey)(wanted, guest)
        })
      ).pipe(Effect.mapError((cause) => failed(wanted, cause)))
    const failed = (operation: string, cause: unknown) =>
      MicroVmError.make(new MicroVmError.OperationFailed({ id, operation, cause }))
    yield* Effect.acquireRelease(
      Effect.sync(() => guests.set(id, guest)),
      // A script may leave it hanging; a release must come to an end.
      () =>
        Effect.suspend(() =>
          end === undefined ? Effect.ignoreCause(Effect.timeoutOption(request("Kill"), "2 seconds")) : Effect.void
        ).pipe(
          // One that has not ended is there still, and another of this id may be there by now.
          Effect.andThen(Effect.sync(() => end !== undefined && guests.get(id) === guest && guests.delete(id)))
        )
    )
    yield* step("connect")
    for (const name of spec.channels) channels.set(name, yield* makeSocketPair(16))
    if (from !== undefined) {
      yield* step("restore")
      const remembered = yield* Effect.mapError(recall(from), (why) => {
        const cause = new Error(why)
        return MicroVmError.make(
          new MicroVmError.LaunchFailed({ id, stage: "restore", stderrTail: "", consoleTail, cause })
        )
      })
      for (const [name, value] of remembered) guest.memory.set(name, value)
    }
    yield* note("launched")

    const perform = <A>(operation: "start" | "pause" | "resume" | "save", then: Effect.Effect<A>) =>
      Effect.andThen(
        note(operation),
        Effect.suspend(() => script()[operation] ?? Effect.void)
      ).pipe(
        Effect.mapError((cause) => failed(operation, cause)),
        Effect.andThen(then)
      )
    const setPaused = (to: boolean) => Effect.sync(() => void (pausedNow = to))
    /** Sets its program going, once. */
    const begin = Effect.suspend(() => {
      if (begun) return Effect.void
      begun = true
      const { program, restored = program } = script()
      const run = from === undefined ? program : restored
      return guest.background(
        Effect.suspend(() => run?.(guest) ?? Effect.void).pipe(Effect.catchCause(() => guest.panic))
      )
    })
    const save = (base: Snapshot.Snapshot | undefined) =>
      Effect.gen(function*() {
        const { memory } = guest
        const before = base === undefined ? new Map<string, string>() : yield* Effect.orDie(recall(base))
        const form = `${base === undefined ? template ? "template" : "copy" : "diff"} ${saves.size + 1}`
        saves.set(
          form,
          new Map([
            ...Array.from(before.keys(), (name) => [name, undefined] as const).filter(([name]) => !memory.has(name)),
            ...Array.from(memory).filter(([name, value]) => before.get(name) !== value)
          ])
        )
        if (!capabilities.saveKeepsChannels) channels.forEach((pair) => pair.close())
        const saved = { form, platform, madeBy: "the in-memory backend" }
        if (!capabilities.diff) return saved
        return { ...saved, moment: form, ...(base !== undefined && { base: base.id }) }
      })
    const vmm: Vmm = {
      start: perform("start", begin),
      pause: perform("pause", setPaused(true)),
      ping: Effect.mapError(Effect.suspend(() => script().ping ?? Effect.void), (cause) => failed("ping", cause)),
      resume: perform("resume", Effect.andThen(setPaused(false), begin)),
      save: (_, base) => perform("save", save(base)),
      ended: Deferred.await(over),
      poll,
      request,
      remains: Effect.sync(() => ({
        status: Option.fromUndefinedOr(end?.status),
        survivors: script().survivors ??
          (end === undefined ? [{ pid: 0, command: `memory:${id}`, why: "does not react to SIGKILL" }] : [])
      })),
      channel: channel("host"),
      console: Stream.fromPubSubTake(console),
      consoleTail: Effect.sync(() => consoleTail),
      pid: Option.none()
    }
    if (keep !== undefined) {
      const attached = (): Attached => ({ vmm, state: pausedNow ? "paused" : begun ? "running" : "created" })
      kept.set(keep.directory, { id, attached, isHeld: false })
    }
    return vmm
  })

  return {
    provider: {
      backend,
      capabilities,
      plan: (spec) =>
        Result.succeed({
          backend,
          description: [`play a machine with ${spec.vcpus} vCPU and ${spec.memoryMib} MiB in memory`],
          argv: []
        }),
      platform: () => Result.succeed(platform),
      launch,
      attach: ({ id }, { directory }) =>
        Effect.suspend(() => {
          const one = kept.get(directory)
          const refuse = (isHeld: boolean, why: string) =>
            MicroVmError.fail(new MicroVmError.AttachFailed({ id, isHeld, why }))
          if (one === undefined || one.id !== id) return refuse(false, `none is kept in ${directory}`)
          if (one.isHeld) return refuse(true, "somebody else has hold of it")
          return Effect.as(hold(directory), one.attached())
        })
    },
    driver: {
      script: (id, script) => Effect.sync(() => void scripts.set(id, script)),
      guest: (id) =>
        Effect.suspend(() => {
          const guest = guests.get(id)
          return guest === undefined
            ? MicroVmError.fail(new MicroVmError.MachineNotFound({ id }))
            : Effect.succeed(guest)
        }),
      platform: (more) => Effect.sync(() => void (platform = { backend, ...more })),
      events: Effect.sync(() => [...events]),
      claims: Effect.sync(() => [...claims.values()])
    }
  }
}
