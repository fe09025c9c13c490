/** The vsock device: a socket on the host whose clients are led to ports of the guest. */
import * as Net from "node:net"
import { Duplex } from "node:stream"
import { bindError, leaveSocket, type World } from "./fakeFirecrackerWorld.ts"

const maxConnections = 1023
const firstHostPort = 2 ** 30

/** A guest's end of what the host has connected to one of its ports. Gives `false` when nobody listens there. */
export type Listen = (port: number, connection: Duplex) => boolean

export interface Vsock {
  readonly cid: number
  readonly path: string
  /** Starts looking at connections, which until then wait for it: the guest's driver is there, or goes on. */
  readonly activate: () => void
  /** Stands still: nothing is taken, nothing is brought. */
  readonly freeze: () => void
  /**
   * The guest forgets all connections, as it does when it goes on after a snapshot. The host is not told: an old connection
   * ends once something is sent on it.
   */
  readonly reset: () => void
  /** The guest connects to a port of the host. `undefined` when nobody listens on `path_PORT`. */
  readonly dial: (port: number) => Promise<Duplex | undefined>
  /** Ends everything; the file of the socket stays. */
  readonly close: (how: "leave" | "remove") => void
}

/**
 * What is asked for on a connection, and how many bytes of it are that: all that is there at the first look counts. `undefined` for
 * what makes it be dropped.
 */
const readPort = (bytes: Buffer): { readonly port: number; readonly length: number } | undefined => {
  if (bytes.length < 10) return undefined
  let length = 10
  while (bytes[length - 1] !== 0x0a && length < 32) {
    if (length >= bytes.length) return undefined
    length++
  }
  const [keyword = "", port = ""] = bytes.subarray(0, length).toString("utf8").trim().split(/\s+/)
  return keyword.toLowerCase() === "connect" && /^\+?\d{1,10}$/.test(port) && Number(port) < 2 ** 32
    ? { port: Number(port), length }
    : undefined
}

interface GuestEnd {
  readonly duplex: Duplex
  /** Leaves the host without an answer until it says something. */
  readonly forget: () => void
}

/** A stream to the host that can be made to stand still. */
const guestEnd = (socket: Net.Socket, frozen: () => boolean, waiting: Set<() => void>): GuestEnd => {
  let forgotten = false
  const whenGoing = (then: () => void) => {
    if (frozen()) waiting.add(() => whenGoing(then))
    else then()
  }
  const duplex = new Duplex({
    allowHalfOpen: true,
    read: () => {
      if (!frozen()) socket.resume()
    },
    write: (bytes: Buffer, _encoding, done) => whenGoing(() => socket.write(bytes, () => done())),
    final: (done) => whenGoing(() => socket.end(() => done())),
    destroy: (_error, done) => {
      if (!forgotten) socket.destroy()
      done(null)
    }
  })
  socket.on("data", (bytes: Buffer) => {
    if (forgotten) socket.destroy()
    else if (!duplex.push(bytes)) socket.pause()
  })
  socket.on("end", () => {
    if (forgotten) socket.destroy()
    else duplex.push(null)
  })
  socket.on("close", () => duplex.destroy())
  duplex.on("error", () => {})
  const forget = () => {
    forgotten = true
    duplex.destroy()
  }
  return { duplex, forget }
}

export const make = (
  options: {
    readonly cid: number
    readonly path: string
    readonly world: World
    readonly listen: Listen
    readonly onCount: (name: "conns_added" | "conns_removed" | "rx_bytes_count" | "tx_bytes_count") => void
  }
): Promise<Vsock> => {
  /** All there are, of which those that have said nothing yet are not open. */
  const sockets = new Set<Net.Socket>()
  const open = new Map<Net.Socket, GuestEnd>()
  const waiting = new Set<() => void>()
  let active = false
  let hostPort = firstHostPort - 1
  const whenActive = (then: () => void) => {
    if (active) then()
    else waiting.add(then)
  }
  const keep = (socket: Net.Socket): void => {
    sockets.add(socket)
    socket.once("close", () => sockets.delete(socket))
  }
  const adopt = (socket: Net.Socket): Duplex => {
    options.onCount("conns_added")
    const end = guestEnd(socket, () => !active, waiting)
    open.set(socket, end)
    socket.once("close", () => {
      open.delete(socket)
      options.onCount("conns_removed")
    })
    return end.duplex
  }
  const accept = (socket: Net.Socket) => {
    if (sockets.size >= maxConnections) {
      socket.destroy()
      return
    }
    keep(socket)
    // What is there at once is all that is looked at, whole or not.
    socket.once("readable", () =>
      whenActive(() => {
        const bytes: unknown = socket.read()
        const found = Buffer.isBuffer(bytes) ? readPort(bytes) : undefined
        if (found === undefined || !Buffer.isBuffer(bytes)) {
          socket.destroy()
          return
        }
        const port = ++hostPort
        if (bytes.length > found.length) socket.unshift(bytes.subarray(found.length))
        const duplex = adopt(socket)
        socket.cork()
        socket.write(`OK ${port}\n`)
        if (options.listen(found.port, duplex)) process.nextTick(() => socket.uncork())
        else socket.destroy()
      }))
  }
  const server = Net.createServer({ allowHalfOpen: true }, (socket) => {
    socket.on("error", () => socket.destroy())
    accept(socket)
  })

  return new Promise((resolve, reject) => {
    const bound = options.world.socketPath(options.path)
    server.once("error", (error) => reject(bindError(error, bound)))
    server.listen(bound, () =>
      resolve({
        cid: options.cid,
        path: options.path,
        activate: () => {
          active = true
          const ready = [...waiting]
          waiting.clear()
          for (const then of ready) then()
          for (const socket of open.keys()) socket.resume()
        },
        freeze: () => {
          active = false
          for (const socket of open.keys()) socket.pause()
        },
        reset: () => {
          for (const { forget } of open.values()) forget()
        },
        dial: (port) =>
          new Promise((found) => {
            const socket = Net.connect({
              path: options.world.socketPath(`${options.path}_${port}`),
              allowHalfOpen: true
            })
            keep(socket)
            socket.on("error", () => {})
            socket.once("close", () => found(undefined))
            socket.once("connect", () => found(adopt(socket)))
          }),
        close: (how) => {
          for (const socket of sockets) socket.destroy()
          if (how === "remove") server.close()
          else leaveSocket(server, bound)
        }
      }))
  })
}
