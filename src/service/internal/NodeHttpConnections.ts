import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as NodeFs from "node:fs"
import type { Server, ServerResponse } from "node:http"
import * as Net from "node:net"
import type { Duplex } from "node:stream"

interface Connection {
  /** Answers that are not sent yet, oldest first. */
  readonly answering: Set<ServerResponse>
  /** What had been read when the last answer was sent: more than that is the beginning of a request. */
  read: number
  /** When that was, or when it was accepted. */
  since: number
  upgraded: boolean
}

/** A request that is not answered yet. */
export interface InFlight {
  readonly method: string
  /** Without the query, which may hold a secret. */
  readonly path: string
}

/**
 * The connections of a server, so that it can stop as soon as its last answer is sent.
 *
 * Node's own `close` leaves open what has sent nothing yet, what becomes idle later, and what is upgraded.
 */
export interface Connections {
  readonly size: () => number
  /** From now on each answer is the last one of its connection. */
  readonly lastAnswers: () => void
  /** Closes the connection that has been idle for the longest time, else the oldest one. */
  readonly evict: () => void
  /** This one is no HTTP any more: it ends by itself or by `destroy`. */
  readonly upgraded: (socket: Duplex) => void
  readonly inFlight: () => ReadonlyArray<InFlight>
  /** Stops accepting: who connects from then on is refused. */
  readonly refuse: Effect.Effect<void>
  /** After that, closes what is idle; what was busy a moment ago, if its next request has not begun `within`. */
  readonly closeIdle: (within: Duration.Duration) => Effect.Effect<void>
  /** Closes what has sent no more than a piece of a request. */
  readonly closeUnfinished: () => void
  /** Waits for the last connection after `refuse`. */
  readonly ended: Effect.Effect<void>
  readonly destroy: () => void
}

/** One round of the event loop, so that what has already arrived is read. The second one has seen the poll phase whole. */
const turn = Effect.callback<void>((resume) => {
  setImmediate(() => setImmediate(() => resume(Effect.void)))
})

/**
 * Milliseconds since a client connected or was answered in which it probably goes on asking. Its next request may be on
 * its way while the server stops. Everything else that is idle is closed at once: who has been silent for several times
 * the wait hardly ever asks within it.
 */
const busyFor = 100

/** Before all other listeners of the server, and before it listens. */
export const track = (server: Server): Connections => {
  const connections = new Map<Net.Socket, Connection>()
  const ended = Latch.makeUnsafe()
  let last = false
  let stopping = false

  const idle = (connection: Connection): boolean => connection.answering.size === 0 && !connection.upgraded

  server.once("close", () => {
    // Ends the timer with which `http` looks after its connections.
    server.close()
    ended.openUnsafe()
  })

  server.on("connection", (socket) => {
    connections.set(socket, { answering: new Set(), read: 0, since: performance.now(), upgraded: false })
    socket.once("close", () => connections.delete(socket))
  })

  server.on("request", (request, response) => {
    const { socket } = request
    const connection = connections.get(socket)
    if (connection === undefined) return
    if (last) {
      // Requests that were sent without waiting for answers: only the last of these is the last one.
      for (const earlier of connection.answering) if (!earlier.headersSent) earlier.removeHeader("connection")
      response.setHeader("connection", "close")
    }
    connection.answering.add(response)
    response.once("close", () => {
      connection.answering.delete(response)
      connection.read = socket.bytesRead
      connection.since = performance.now()
      // To the end of the order: the first idle one has been idle for the longest time.
      if (connections.delete(socket)) connections.set(socket, connection)
      if (stopping && idle(connection) && request.complete) socket.destroySoon()
    })
  })

  const lastAnswers = () => {
    if (last) return
    last = true
    for (const { answering } of connections.values()) {
      const response = [...answering].at(-1)
      if (response !== undefined && !response.headersSent) response.setHeader("connection", "close")
    }
  }

  const closeIdle = (which: (socket: Net.Socket, connection: Connection) => boolean) => {
    for (const [socket, connection] of connections) if (idle(connection) && which(socket, connection)) socket.destroy()
  }

  return {
    size: () => connections.size,
    lastAnswers,
    evict: () => {
      let oldest: Net.Socket | undefined
      for (const [socket, connection] of connections) {
        oldest ??= socket
        if (!idle(connection)) continue
        oldest = socket
        break
      }
      oldest?.destroy()
    },
    upgraded: (socket) => {
      const connection = socket instanceof Net.Socket ? connections.get(socket) : undefined
      if (connection !== undefined) connection.upgraded = true
    },
    inFlight: () =>
      [...connections.values()].flatMap(({ answering }) =>
        [...answering].map(({ req: { method = "", url = "" } }) => ({ method, path: url.replace(/[?#].*$/s, "") }))
      ),
    refuse: Effect.gen(function*() {
      lastAnswers()
      // A request that is here, or a connection that the system has accepted, is not lost.
      yield* turn
      stopping = true
      // Of `net`: that of `http` would also close connections on which the next request may be on its way.
      Net.Server.prototype.close.call(server)
    }),
    closeIdle: Effect.fnUntraced(function*(within) {
      const now = performance.now()
      const quiet = (socket: Net.Socket, { read }: Connection) => socket.bytesRead === read
      closeIdle((socket, connection) => quiet(socket, connection) && now - connection.since > busyFor)
      if (!Duration.isZero(within)) yield* Effect.timeoutOption(ended.await, within)
      yield* turn
      closeIdle(quiet)
    }),
    closeUnfinished: () => closeIdle(() => true),
    ended: ended.await,
    destroy: () => {
      for (const socket of connections.keys()) socket.destroy()
    }
  }
}

/** The soft limit of open files, where the system tells (proc_pid_limits(5)). */
export const maxDescriptors = (): number => {
  try {
    const [, limit] = /^Max open files\s+(\d+)/m.exec(NodeFs.readFileSync("/proc/self/limits", "utf8")) ?? []
    return limit === undefined ? Infinity : Number(limit)
  } catch {
    return Infinity
  }
}
