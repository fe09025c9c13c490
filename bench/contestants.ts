/** The same child, started and ended by each contestant. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Scope from "effect/Scope"
import { execa } from "execa"
import { type ChildProcess as NodeChild, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { ShutdownPolicy } from "../src/lifecycle/index.ts"
import { type KillScope, NodeProcessSpawner, ProcessSpawner } from "../src/process/index.ts"
import { now } from "./measure.ts"

export const runtime = ManagedRuntime.make(Layer.mergeAll(NodeServices.layer, NodeProcessSpawner.layer))

/** From when it was asked for until it was told. */
export interface Span {
  readonly from: number
  readonly until: number
}

export interface Child {
  readonly pid: number
  /** SIGTERM, the grace, SIGKILL, or SIGKILL at once for a grace of 0; gives the time until it was reaped. */
  readonly stop: () => Promise<Span>
  /** Whatever there is to clear up after that. */
  readonly close: () => Promise<void>
}

export interface Contender {
  readonly name: string
  readonly start: (command: string, args: ReadonlyArray<string>, graceMillis: number) => Promise<Child>
}

/** Taken where the contestant's user sees it: in a promise, or in an Effect. */
export const timed = async (stop: () => Promise<unknown>): Promise<Span> => {
  const from = now()
  await stop()
  return { from, until: now() }
}
const timedEffect = <E>(stop: Effect.Effect<unknown, E>): Promise<Span> =>
  runtime.runPromise(Effect.suspend(() => {
    const from = now()
    return Effect.map(stop, () => ({ from, until: now() }))
  }))

const nothing = (): Promise<void> => Promise.resolve()
const reaped = (child: NodeChild): Promise<unknown> => once(child, "exit")

const raw: Contender = {
  name: "raw Node",
  start: async (command, args, grace) => {
    const child = spawn(command, args, { stdio: "ignore" })
    await once(child, "spawn")
    return {
      pid: child.pid ?? 0,
      stop: () =>
        timed(async () => {
          const exit = reaped(child)
          child.kill("SIGTERM")
          const timer = setTimeout(() => child.kill("SIGKILL"), grace)
          await exit
          clearTimeout(timer)
        }),
      close: nothing
    }
  }
}

const viaExeca: Contender = {
  name: "execa",
  start: (command, args, grace) => {
    const child = execa(command, args, { stdio: "ignore", reject: false, forceKillAfterDelay: grace })
    return Promise.resolve({
      pid: child.pid ?? 0,
      stop: () =>
        timed(() => {
          child.kill()
          return child
        }),
      close: nothing
    })
  }
}

const viaEffect: Contender = {
  name: "Effect's spawner",
  start: async (command, args, grace) => {
    const scope = await runtime.runPromise(Scope.make())
    const handle = await runtime.runPromise(
      Scope.provide(
        Effect.gen(function*() {
          return yield* ChildProcess.make(command, args, { stdin: "ignore", stdout: "ignore", stderr: "ignore" })
        }),
        scope
      )
    )
    return {
      pid: handle.pid,
      stop: () => timedEffect(handle.kill({ killSignal: "SIGTERM", forceKillAfter: grace })),
      close: () => runtime.runPromise(Scope.close(scope, Exit.void))
    }
  }
}

export const ours = (killScope: KillScope.Choice): Contender => ({
  name: `this library, ${killScope}`,
  start: async (command, args, grace) => {
    const scope = await runtime.runPromise(Scope.make())
    const child = await runtime.runPromise(
      Scope.provide(
        Effect.flatMap(ProcessSpawner.ProcessSpawner, (spawner) =>
          spawner.spawn(
            ChildProcess.make(command, args, { stdin: "ignore", stdout: "ignore", stderr: "ignore" }),
            { killScope, policy: ShutdownPolicy.signals(grace === 0 ? { signal: "SIGKILL" } : { grace }) }
          )),
        scope
      )
    )
    return {
      pid: child.pid,
      // The engine's proof that nothing else is left comes after the end of the child.
      stop: () =>
        timedEffect(Effect.andThen(Effect.forkDetach(child.shutdown(), { startImmediately: true }), child.exit)),
      close: () => runtime.runPromise(Effect.andThen(child.shutdown(), Scope.close(scope, Exit.void)))
    }
  }
})

const has = (command: string): boolean => spawnSync("sh", ["-c", `command -v ${command}`]).status === 0

/** tini forwards the signal and has no escalation: only for children that obey. */
const tini: Contender = {
  name: "raw Node through tini",
  start: (command, args, grace) => raw.start("tini", ["-s", "--", command, ...args], grace)
}

export const escalating: ReadonlyArray<Contender> = [
  raw,
  viaExeca,
  viaEffect,
  ours("process"),
  ours("group"),
  ours("cgroup")
]

export const obedient: ReadonlyArray<Contender> = has("tini") ? [...escalating, tini] : escalating
