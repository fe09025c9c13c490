/** The guest's ends of the ports of `FakeGuestAgent`. */
import type * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type * as Pull from "effect/Pull"
import * as GuestStdio from "../../guest/GuestStdio.ts"
import { concat } from "./fakeFiles.ts"

export interface Port {
  readonly write: (bytes: Uint8Array) => Effect.Effect<void>
  readonly pull: Effect.Effect<Arr.NonEmptyReadonlyArray<Uint8Array>, Cause.Done>
  unread: Uint8Array
}

/** The guest's end of the input of one command. What comes after it is kept for the next command. */
export const readInput = (port: Port, nonce: string): Pull.Pull<Arr.NonEmptyReadonlyArray<Uint8Array>> => {
  const decoder = GuestStdio.makeFrameDecoder(nonce)
  return Effect.gen(function*() {
    while (true) {
      if (decoder.ended()) return yield* Cause.done()
      if (port.unread.length === 0) {
        for (const chunk of yield* port.pull) port.unread = concat(port.unread, chunk)
      }
      const [first, ...more] = decoder.push(port.unread)
      port.unread = decoder.excess()
      if (first !== undefined) return [first, ...more]
    }
  })
}
