/**
 * The HTTP server of Firecracker's API as its clients meet it: one thread that reads 1024 bytes at a time from at most ten
 * connections and does one request after the other.
 */
import * as Net from "node:net"
import { bindError, leaveSocket } from "./fakeFirecrackerWorld.ts"

const maxConnections = 10
const bufferSize = 1024
const tooMany = "{ \"error\": \"Too many open connections\" }"

export type Method = "GET" | "PUT" | "PATCH" | "DELETE"

export interface Request {
  /** Which connection it came on, the first being 1. */
  readonly connection: number
  readonly method: Method
  readonly uri: string
  readonly body: Buffer | undefined
}

export interface Answer {
  readonly status: number
  readonly body?: string | undefined
  readonly deprecated?: boolean | undefined
}

/** The bytes of an answer, and what becomes of the connection. */
export interface Delivery {
  readonly bytes: Buffer
  /** Pieces of so many bytes, each written by itself. */
  readonly pieces?: number | undefined
  readonly close?: boolean | undefined
  /** What is done once it is out. */
  readonly after?: (() => void) | undefined
}

export interface Options {
  readonly methods: ReadonlyArray<Method>
  readonly payloadLimit: () => number
  readonly handle: (request: Request) => Promise<Delivery | "nothing">
  /** Told of each connection that is accepted or turned away, with how many are open. */
  readonly onConnection?: ((open: number, accepted: boolean) => void) | undefined
}

/** The whole of an answer. There is no reason after the status, but the space before it. */
export const encode = ({ body, deprecated, status }: Answer, version = "HTTP/1.1"): Buffer =>
  Buffer.from(
    [
      `${version} ${status} `,
      "Server: Firecracker API",
      "Connection: keep-alive",
      ...(deprecated === true ? ["Deprecation: true"] : []),
      ...(status === 204 || status === 100
        ? []
        : ["Content-Type: application/json", `Content-Length: ${Buffer.byteLength(body ?? "")}`]),
      "",
      body ?? ""
    ].join("\r\n")
  )

class Malformed extends Error {}

/** What is kept of a connection between two reads. */
class Parser {
  private readonly buffer = Buffer.alloc(bufferSize)
  private kept = 0
  private state: "line" | "headers" | "body" = "line"
  private pending: { method: Method; uri: string; version: string; body: Buffer | undefined } | undefined
  private body: Array<Buffer> = []
  private missing = 0
  private length = 0
  private expects = false
  private readonly options: Options

  constructor(options: Options) {
    this.options = options
  }

  /** How many bytes a read takes. */
  get room(): number {
    return bufferSize - this.kept
  }

  /** The requests that are complete with these bytes, at most `room` of them. `onContinue` is asked for the body. */
  read(bytes: Buffer, onContinue: (version: string) => void): ReadonlyArray<Omit<Request, "connection">> {
    if (this.kept >= bufferSize) throw new Malformed("Overflow occurred when parsing a request.")
    bytes.copy(this.buffer, this.kept)
    const end = this.kept + bytes.length
    const requests: Array<Omit<Request, "connection">> = []
    let at = 0
    const finish = () => {
      if (this.pending !== undefined) requests.push(this.pending)
      this.state = "line"
    }
    while (true) {
      if (this.state === "body") {
        const taken = Math.min(this.missing, end - at)
        this.body.push(Buffer.from(this.buffer.subarray(at, at + taken)))
        this.missing -= taken
        at += taken
        if (this.missing > 0) {
          this.kept = 0
          return requests
        }
        if (this.pending !== undefined) this.pending.body = Buffer.concat(this.body)
        this.body = []
        finish()
        continue
      }
      const found = this.buffer.subarray(0, end).indexOf("\r\n", at, "latin1")
      if (found < 0) {
        if (at === 0 && end === bufferSize) {
          throw new Malformed(
            this.state === "line"
              ? "Invalid request."
              : `Invalid header. Reason: Invalid content length. Header: ${this.buffer.toString("utf8")}`
          )
        }
        this.buffer.copyWithin(0, at, end)
        this.kept = end - at
        return requests
      }
      const line = this.buffer.subarray(at, found)
      at = found + 2
      if (this.state === "line") {
        this.pending = this.requestLine(line)
        this.length = 0
        this.expects = false
        this.state = "headers"
      } else if (line.length > 0) this.header(line)
      else if (this.length === 0) finish()
      else {
        const limit = this.options.payloadLimit()
        if (this.length > limit) {
          throw new Malformed(
            `Request payload with size ${this.length} is larger than the limit of ${limit} allowed by server.`
          )
        }
        if (this.expects && this.pending !== undefined) onContinue(this.pending.version)
        this.missing = this.length
        this.state = "body"
      }
    }
  }

  private requestLine(line: Buffer) {
    const text = line.toString("latin1")
    const first = text.indexOf(" ")
    const second = text.indexOf(" ", first + 1)
    if (first < 0 || second < 0) throw new Malformed("Invalid request.")
    const method = this.options.methods.find((one) => one === text.slice(0, first))
    if (method === undefined) throw new Malformed("Invalid HTTP Method: Unsupported HTTP method.")
    const uri = line.subarray(first + 1, second)
    if (uri.length === 0) throw new Malformed("Invalid URI: Empty URI not allowed.")
    if (!isUtf8(uri)) throw new Malformed("Invalid URI: Cannot parse URI as UTF-8.")
    const version = text.slice(second + 1)
    if (version !== "HTTP/1.0" && version !== "HTTP/1.1") {
      throw new Malformed("Invalid HTTP Version: Unsupported HTTP version.")
    }
    return { method, uri: uri.toString("utf8"), version, body: undefined }
  }

  private header(line: Buffer): void {
    const bad = (reason: string) => new Malformed(`Invalid header. Reason: ${reason}`)
    if (!isUtf8(line)) throw bad("Header contains invalid characters. Key: incomplete utf-8 byte sequence from index 0")
    const text = line.toString("utf8")
    const colon = text.indexOf(":")
    if (colon < 0) throw bad(`Header is incorrectly formatted. Key: ${text}`)
    const name = text.slice(0, colon)
    const value = text.slice(colon + 1)
    switch (name.trim().toLowerCase()) {
      case "content-length":
        if (!/^\+?\d+$/.test(value.trim()) || Number(value) >= 2 ** 32) {
          throw bad(`Invalid value. Key:${name}; Value:${value}`)
        }
        this.length = Number(value)
        return
      case "expect":
        this.expects ||= value.trim() === "100-continue"
        return
      case "accept-encoding":
        if (value.trim() === "") throw new Malformed("Invalid request.")
        for (const encoding of value.trim().split(",")) {
          if (encoding.trim() === "identity;q=0" || (encoding.trim() === "*;q=0" && !value.includes("identity"))) {
            throw bad(`Invalid value. Key:Accept-Encoding; Value:${encoding}`)
          }
        }
        return
      default:
        // Chunks are not known, and no other header matters.
        return
    }
  }
}

const isUtf8 = (bytes: Buffer): boolean => Buffer.from(bytes.toString("utf8")).equals(bytes)

interface Connection {
  readonly number: number
  readonly socket: Net.Socket
  readonly parser: Parser
  /** The client has said that it sends no more: whatever was still to be told it is dropped. */
  closed: boolean
}

export interface Server {
  readonly listen: (path: string) => Promise<void>
  /** Ends all connections once what was written to them is out, and takes no more. The socket's file stays. */
  readonly close: () => Promise<void>
}

export const make = (options: Options): Server => {
  /** All there are, of which those that wait for their turn are not open. */
  const sockets = new Set<Net.Socket>()
  const open = new Set<Connection>()
  const events: Array<() => Promise<void> | void> = []
  let connections = 0
  let running = false
  let ended = false
  let bound = ""

  const run = async (): Promise<void> => {
    const next = events.shift()
    if (next === undefined || ended) {
      running = false
      return
    }
    await next()
    return run()
  }
  // Looked at after a further turn of the loop: the end of what a client sends comes with what it has sent.
  const enqueue = (event: () => Promise<void> | void) => {
    events.push(event)
    if (running) return
    running = true
    setImmediate(() => setImmediate(() => void run()))
  }

  const write = (connection: Connection, bytes: Buffer): Promise<void> =>
    connection.closed || connection.socket.destroyed
      ? Promise.resolve()
      : new Promise((resolve) => connection.socket.write(bytes, () => resolve()))

  const deliver = async (connection: Connection, { bytes, close, pieces }: Delivery): Promise<void> => {
    const size = Math.max(1, pieces ?? bytes.length)
    // Who has said meanwhile that it sends no more is not answered.
    await new Promise((resolve) => setImmediate(resolve))
    await write(connection, bytes.subarray(0, size))
    if (bytes.length > size) return deliver(connection, { bytes: bytes.subarray(size), close, pieces })
    if (close === true) {
      open.delete(connection)
      connection.socket.destroy()
    }
  }

  const read = async (connection: Connection, bytes: Buffer): Promise<void> => {
    if (connection.closed || bytes.length === 0) return
    const taken = bytes.subarray(0, Math.max(1, connection.parser.room))
    let requests: ReadonlyArray<Omit<Request, "connection">> = []
    const before: Array<Buffer> = []
    try {
      requests = connection.parser.read(taken, (version) => before.push(encode({ status: 100 }, version)))
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      const body = `{ "error": "${error.message}\nAll previous unanswered requests will be dropped." }`
      before.push(encode({ status: 400, body }))
    }
    await write(connection, Buffer.concat(before))
    await requests.reduce<Promise<void>>(async (done, request) => {
      await done
      const delivery = await options.handle({ ...request, connection: connection.number })
      if (delivery === "nothing") return
      await deliver(connection, delivery)
      delivery.after?.()
    }, Promise.resolve())
    return read(connection, bytes.subarray(taken.length))
  }

  const accept = (socket: Net.Socket): void => {
    socket.on("error", () => {})
    if (open.size >= maxConnections) {
      options.onConnection?.(open.size, false)
      const head = `HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: ${tooMany.length}`
      socket.end(`${head}\r\n\r\n${tooMany}`, () => socket.destroy())
      return
    }
    const connection: Connection = {
      number: ++connections,
      socket,
      parser: new Parser(options),
      closed: false
    }
    open.add(connection)
    options.onConnection?.(open.size, true)
    socket.on("data", (bytes: Buffer) => enqueue(() => read(connection, bytes)))
    for (const event of ["end", "close"]) {
      socket.on(event, () => {
        connection.closed = true
        enqueue(() => {
          open.delete(connection)
          socket.destroy()
        })
      })
    }
    socket.resume()
  }

  const server = Net.createServer(
    { allowHalfOpen: true, pauseOnConnect: true },
    (socket) => {
      sockets.add(socket)
      socket.once("close", () => sockets.delete(socket))
      enqueue(() => accept(socket))
    }
  )

  return {
    listen: (path) =>
      new Promise((resolve, reject) => {
        server.once("error", (error) => reject(bindError(error, path)))
        // As the real one's, whose mode is what the process's umask leaves of 777.
        server.listen(path, () => {
          bound = path
          resolve()
        })
      }),
    close: async () => {
      ended = true
      await Promise.all(
        Array.from(open, ({ socket }) =>
          new Promise<void>((resolve) => {
            if (socket.destroyed) resolve()
            else socket.end(() => resolve())
            socket.once("close", () => resolve())
          }))
      )
      for (const socket of sockets) socket.destroy()
      leaveSocket(server, bound)
    }
  }
}
