import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import { createServer, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"

/** A directory of our own for sockets; its path may be made longer than a socket address holds. */
export const directory = (below = ""): Effect.Effect<string, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => NodeFs.mkdtempSync(join(tmpdir(), "raw-"))),
      (made) => Effect.sync(() => NodeFs.rmSync(made, { recursive: true, force: true }))
    ),
    (made) => {
      const path = join(made, below)
      NodeFs.mkdirSync(path, { recursive: true })
      return path
    }
  )

export interface RawServer {
  readonly path: string
  /** What came on each connection, in the order of the connections. */
  readonly received: ReadonlyArray<ReadonlyArray<string>>
  /** How many of them are open. */
  readonly open: () => number
}

/**
 * A server on a unix socket that does on each connection what the test says. Like Firecracker, it drops one that is half
 * closed, with what was still to be answered.
 */
export const serve = (
  path: string,
  onConnection: (socket: Socket, index: number) => void
): Effect.Effect<RawServer, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<RawServer & { readonly close: () => void }>((resume) => {
      const received: Array<Array<string>> = []
      const sockets = new Set<Socket>()
      const server = createServer({ allowHalfOpen: true }, (socket) => {
        const pieces: Array<string> = []
        sockets.add(socket)
        socket.on("error", () => {})
        socket.on("end", () => socket.destroy())
        socket.on("close", () => sockets.delete(socket))
        socket.on("data", (chunk) => pieces.push(chunk.toString("latin1")))
        onConnection(socket, received.push(pieces) - 1)
      })
      // Node does not take a longer path, and the test's own way around it must not be the code that is tested.
      const before = process.cwd()
      process.chdir(dirname(path))
      server.listen(path.slice(dirname(path).length + 1), () =>
        resume(Effect.succeed({
          path,
          received,
          open: () => sockets.size,
          close: () => {
            server.close()
            for (const socket of sockets) socket.destroy()
          }
        })))
      process.chdir(before)
    }),
    (server) => Effect.sync(server.close)
  )

/** Waits, in real time whatever clock the test has, for what crosses a real socket. */
export const until = (holds: () => boolean): Effect.Effect<void> =>
  Effect.promise(async () => {
    for (let tries = 0; !holds(); tries++) {
      if (tries > 2500) throw new Error("it does not happen")
      await sleep(2)
    }
  })
