/** `microvm-resident` for `FakeGuestAgent`. */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as GuestResident from "../../guest/GuestResident.ts"
import type { World } from "../FakeGuestRenewal.ts"
import { bytesOf, concat } from "./fakeFiles.ts"
import type { Port } from "./fakePort.ts"

export interface Waited {
  readonly result: number
  readonly status?: number
  readonly words?: Uint8Array
}

interface Asked {
  readonly path: string
  readonly args: ReadonlyArray<string>
  readonly env: ReadonlyArray<string>
}

interface Guest<E> {
  readonly port: Effect.Effect<Port, E>
  /** How long it takes until the first call is made. */
  readonly takes: Duration.Input
  readonly makeCalls: (input: Uint8Array, world: World) => Uint8Array | undefined
  /** Gives the pid. */
  readonly spawn: (asked: Asked) => Effect.Effect<number>
  readonly waitFor: (pid: number) => Waited
  readonly powerOff: Effect.Effect<void>
}

const memoryBytes = 4096
const base = 0x10000000
const wait4 = 61

/** What an input asks for besides the kernel's calls. */
const special = (input: Uint8Array) => {
  const memory = concat(input, new Uint8Array(memoryBytes))
  const view = new DataView(memory.buffer)
  const numbers = Array.from({ length: view.getUint16(4, true) }, (_, nth) => view.getUint16(8 + 16 * nth, true))
  const textAt = (at: number) => new TextDecoder().decode(memory.subarray(at, memory.indexOf(0, at)))
  const wordsAt = (at: number): ReadonlyArray<string> => {
    const pointer = view.getUint32(at, true)
    return pointer === 0 ? [] : [textAt(pointer - base), ...wordsAt(at + 8)]
  }
  const nth = numbers.indexOf(GuestResident.calls.spawn)
  const argument = (which: number) => view.getUint32(8 + 16 * nth + 4 + 4 * which, true)
  return {
    powersOff: numbers.at(-1) === GuestResident.calls.powerOff,
    asked: nth === -1 ? undefined : {
      path: textAt(argument(0)),
      args: wordsAt(argument(1)).slice(1),
      env: wordsAt(argument(2))
    }
  }
}

/** Serves until the port ends, or an input is none. */
export const serve = Effect.fnUntraced(function*<E>({ makeCalls, port, powerOff, spawn, takes, waitFor }: Guest<E>) {
  const { pull, write } = yield* port
  yield* write(bytesOf(GuestResident.greeting))
  let words: Uint8Array | undefined
  let input: Uint8Array = new Uint8Array(0)
  while (true) {
    for (const chunk of yield* pull) input = concat(input, chunk)
    if (input.length < 8 || input.length < new DataView(input.buffer, input.byteOffset).getUint32(0, true)) continue
    yield* Effect.sleep(takes)
    const { asked, powersOff } = special(input)
    const pid = asked === undefined ? -1 : yield* spawn(asked)
    const output = makeCalls(input, {
      now: yield* Clock.currentTimeMillis,
      file: (path) => path === GuestResident.wordsFile ? words : undefined,
      call: (number, [which, at], memory) => {
        if (number === GuestResident.calls.spawn) return pid
        if (number !== wait4) return undefined
        const { result, status = 0, words: said } = waitFor(which)
        words = said ?? words
        new DataView(memory.buffer).setUint32(at, status, true)
        return result
      }
    })
    if (output === undefined) return
    input = new Uint8Array(0)
    yield* write(output)
    if (powersOff) return yield* powerOff
  }
})
