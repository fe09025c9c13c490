/**
 * The guest's end of `GuestRenewal` for `FakeGuestAgent`: `microvm-renew` and `microvm-refresh`, which can be made to fail.
 *
 * @since 0.2.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Program } from "./FakeGuestProgram.ts"
import { concat } from "./internal/fakeFiles.ts"

/**
 * A step of the renewal.
 *
 * @category models
 * @since 0.2.0
 */
export type Step = "seed" | "clock" | "hostname" | "machine-id" | "boot-id"

/**
 * What is a guest's own. It may be changed from outside, as by a program in the guest.
 *
 * @category models
 * @since 0.2.0
 */
export interface Own {
  /** Milliseconds by which its clock is ahead of ours. */
  clockOff: number
  hostname: string
  machineId: string
  bootId: string
  /** All that its random number generator was given. */
  readonly seeds: Array<Uint8Array>
}

/**
 * @category options
 * @since 0.2.0
 */
export interface Options {
  /** Milliseconds by which its clock is ahead of ours at the start. Default 0. */
  readonly clockOff?: number | undefined
  /** Steps that fail, and say so. */
  readonly refuses?: ReadonlyArray<Step> | undefined
  /** Steps that change nothing, and do not say so. */
  readonly passesOver?: ReadonlyArray<Step> | undefined
  /** Network interfaces besides the loopback. */
  readonly interfaces?: ReadonlyArray<string> | undefined
  /** What is in `/etc/microvm/renew.d`, with the exit codes. */
  readonly hooks?: Readonly<Record<string, number>> | undefined
  /** How long the whole takes. Default no time. */
  readonly takes?: Duration.Input | undefined
}

const blockBytes = 280

/**
 * What is the guest's own, and the programs that change it.
 *
 * ```ts import.meta.vitest
 * import { FakeGuestRenewal } from "effect-microvm-runtime/testing"
 * FakeGuestRenewal.make({ clockOff: -60_000 }).own.clockOff // => -60000
 * ```
 *
 * @category constructors
 * @since 0.2.0
 */
export const make = (options: Options = {}): {
  readonly own: Own
  readonly programs: Readonly<Record<string, Program>>
} => {
  const own: Own = {
    clockOff: options.clockOff ?? 0,
    hostname: "microvm",
    machineId: "0".repeat(32),
    bootId: "00000000-0000-0000-0000-000000000000",
    seeds: []
  }

  /** False when it fails. */
  const step = (name: Step, act: () => void): boolean => {
    if (options.refuses?.includes(name) === true) return false
    if (options.passesOver?.includes(name) !== true) act()
    return true
  }

  const refresh = (input: Uint8Array): number => {
    if (input.length < blockBytes) return 1
    const view = new DataView(input.buffer, input.byteOffset)
    if (!step("seed", () => own.seeds.push(input.slice(216, blockBytes)))) return 3
    const nanos = view.getBigInt64(72, true) * 1_000_000_000n + view.getBigInt64(80, true)
    return step("clock", () => {
        own.clockOff += Number(nanos) / 1e6
      })
      ? 0
      : 5
  }

  const takeInput = (stdin: Stream.Stream<Uint8Array>) =>
    Stream.runFold(stdin, () => new Uint8Array(0), (all: Uint8Array, part: Uint8Array) => concat(all, part)).pipe(
      Effect.delay(options.takes ?? Duration.zero)
    )

  return {
    own,
    programs: {
      "microvm-refresh": ({ stdin }) => Effect.map(takeInput(stdin), refresh),
      "microvm-renew": Effect.fnUntraced(
        function*({ args: [hostname = "", machineId = "", bootId = ""], stdin, write }) {
          const code = refresh(yield* takeInput(stdin))
          const faults = code === 0 ? [] : [`microvm-refresh ended with ${code}`]
          const refused = (["hostname", "machine-id", "boot-id"] as const).filter((name) =>
            !step(name, () => {
              if (name === "hostname") own.hostname = hostname
              else if (name === "machine-id") own.machineId = machineId
              else own.bootId = bootId
            })
          )
          faults.push(...refused.map((name) => `the ${name} was refused`))
          const lines = [`hostname ${own.hostname}`, `machine-id ${own.machineId}`, `boot-id ${own.bootId}`]
          lines.push(...options.interfaces?.map((name) => `interface ${name}`) ?? [])
          for (const [name, status] of Object.entries(options.hooks ?? {}).toSorted(([a], [b]) => a < b ? -1 : 1)) {
            if (status === 0) lines.push(`restarted ${name}`)
            else faults.push(`${name} ended with ${status}`)
          }
          yield* write("stdout", lines.map((line) => `${line}\n`).join(""))
          yield* write("stderr", faults.map((fault) => `microvm-renew: ${fault}\n`).join(""))
          return faults.length === 0 ? 0 : 1
        }
      )
    }
  }
}
