/** Whoever is at the other end of a socket: lines at first, and frames once both sides know each other. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as NodeNet from "node:net"
import * as Frames from "./frames.ts"
import { Broken, type Wire } from "./session.ts"

/** The longest that a side may say before the other has read it: a line, or two frames. */
const maxUnread = 128 * 1024
/** The longest line: all that a stranger can make us keep. */
export const maxLine = 64 * 1024
/** Windows bound what a peer who reads has not read yet. From here on, one who does not is spared what only says that we live. */
const maxUnsent = 1024 * 1024
/** How long one who does not read may take for the last that was said. */
const lastWordsWithin = 5000

export interface Peer extends Wire {
  readonly read: <A>(schema: Schema.Codec<A, string>) => Effect.Effect<A, Broken>
  /** Does not wait. */
  readonly write: <A>(schema: Schema.Codec<A, string>, value: A) => Effect.Effect<void>
}

/** Hangs up when the scope closes; what was written is sent before the end is. */
export const makePeer = (socket: NodeNet.Socket): Effect.Effect<Peer, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      let unread: Uint8Array = Buffer.alloc(0)
      let over = false
      let look = (): void => {}
      socket.on("data", (chunk: Buffer) => {
        unread = unread.length === 0 ? chunk : Buffer.concat([unread, chunk])
        if (unread.length >= maxUnread) socket.pause()
        look()
      })
      socket.on("close", () => {
        over = true
        look()
      })
      /** Waits until `parse` finds something, and where it ends. */
      const take = <A>(parse: () => { readonly value: A; readonly end: number } | "broken" | undefined) =>
        Effect.callback<A, Broken>((resume) => {
          const tryIt = (): void => {
            const found = parse()
            if (found === undefined && !over) return
            look = () => {}
            if (found === undefined || found === "broken") return resume(Effect.fail(new Broken()))
            unread = unread.subarray(found.end)
            if (socket.isPaused() && unread.length < maxUnread) socket.resume()
            resume(Effect.succeed(found.value))
          }
          look = tryIt
          tryIt()
          return Effect.sync(() => {
            look = () => {}
          })
        })
      const line = take(() => {
        const end = unread.indexOf(0x0a)
        if (end === -1) return unread.length > maxLine ? "broken" : undefined
        return end > maxLine ? "broken" : { value: new TextDecoder().decode(unread.subarray(0, end)), end: end + 1 }
      })
      return {
        read: (schema) =>
          Effect.flatMap(line, (text) => Effect.mapError(Schema.decodeEffect(schema)(text), () => new Broken())),
        write: (schema, value) =>
          Effect.map(Effect.orDie(Schema.encodeEffect(schema)(value)), (text) => {
            if (socket.writable) socket.write(`${text}\n`)
          }),
        receive: take(() => {
          const found = Frames.decode(unread)
          return found === undefined || found === "broken" ? found : { value: found.frame, end: found.end }
        }),
        send: (frame) =>
          Effect.sync(() => {
            if (!socket.writable || (frame._tag === "Message" && socket.writableLength > maxUnsent)) return
            socket.cork()
            for (const part of Frames.encode(frame)) socket.write(part)
            socket.uncork()
          })
      } satisfies Peer
    }),
    () =>
      Effect.sync(() => {
        if (socket.closed) return
        socket.resume()
        const last = setTimeout(() => socket.destroy(), lastWordsWithin)
        socket.once("close", () => clearTimeout(last))
        // Read on until the other hangs up too: were it closed at once, what he is just writing would fail, and he would lose
        // our answer with that. Our own end need not wait for him.
        socket.end(() => {
          socket.unref()
          last.unref()
        })
      })
  )
