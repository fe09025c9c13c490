/** The guest of `FakeGuestAgent` behind the ports of a machine: the agent's channel, and those of the commands' slots. */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Effect from "effect/Effect"
import * as Base64 from "effect/encoding/Base64"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Socket from "effect/socket/Socket"
import type { Duplex } from "node:stream"
import * as FakeGuestAgent from "../FakeGuestAgent.ts"
import type { MakeGuest } from "./fakeFirecrackerGuest.ts"
import { type Json, list, parse, string, struct } from "./fakeSerde.ts"

const files = list(struct("File", { path: string, content: string }))

/** Brings what comes from one end to the other until either is over. */
const bridge = Effect.fnUntraced(function*(host: Socket.Socket, connection: Duplex) {
  const outside = yield* NodeSocket.fromDuplex(
    Effect.acquireRelease(Effect.succeed(connection), (duplex) => Effect.sync(() => duplex.destroy()))
  )
  const bring = Effect.fnUntraced(function*(from: Socket.Socket, to: Socket.Socket) {
    const writer = yield* to.writer
    const pull = yield* Socket.readerBytes(from)
    return yield* Effect.forever(Effect.flatMap(pull, (chunks) => writer.writeAll(chunks)))
  })
  return yield* Effect.raceFirst(bring(outside, host), bring(host, outside))
})

export const agent = (options: Omit<FakeGuestAgent.Options, "onShutdown" | "paused"> = {}): MakeGuest => (place) => {
  const scope = Scope.makeUnsafe()
  const guest = Effect.runSync(
    FakeGuestAgent.make({
      ...options,
      onShutdown: (mode) => Effect.sync(() => place.onEnd(mode))
    }).pipe(Scope.provide(scope))
  )
  if (place.saved !== undefined && place.saved !== null) {
    for (const { content, path } of parse(files, Buffer.from(JSON.stringify(place.saved)))) {
      guest.files.set(path, Result.getOrThrow(Base64.decode(content)))
    }
  }
  const turns = new Map(place.channels.map((name) => [name, Semaphore.makeUnsafe(1)]))
  return {
    listen: (port, connection) => {
      const name = place.channels[port - place.firstPort]
      const turn = name === undefined ? undefined : turns.get(name)
      if (name === undefined || turn === undefined) return false
      // One at a time, as the device behind it is one.
      Effect.runFork(
        guest.channel(name).pipe(
          Effect.flatMap((host) => Effect.scoped(bridge(host, connection))),
          Effect.ignore,
          (serving) => turn.withPermit(serving),
          Effect.forkIn(scope)
        )
      )
      return true
    },
    pause: () => Effect.runSync(guest.pause),
    resume: () => Effect.runSync(guest.resume),
    save: (): Json => Array.from(guest.files, ([path, bytes]) => ({ path, content: Base64.encode(bytes) })),
    stop: () => Effect.runPromise(Scope.close(scope, Exit.void)),
    tellsWritten: true
  }
}
