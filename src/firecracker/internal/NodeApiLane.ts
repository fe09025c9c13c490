import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import * as Net from "node:net"
import type { ApiResponse } from "../ApiTransport.ts"
import type { FirecrackerError } from "../FirecrackerError.ts"
import type { Deadlines } from "./deadlines.ts"
import * as HttpAnswer from "./httpAnswer.ts"
import * as NodeSocketPath from "./NodeSocketPath.ts"

export type Failure =
  | { readonly _tag: "Violation"; readonly detail: string }
  | { readonly _tag: "Broken"; readonly phase: "connect" | "request" | "response"; readonly cause: unknown }
  | { readonly _tag: "Late" }

export interface ExchangeOptions {
  /** From now until the last byte of the answer. */
  readonly within: Duration.Duration
  /** Is it sent once more, on a new connection, when a kept one ended before anything of the answer came? */
  readonly isRepeatable: boolean
  /** What a failure is to the caller. */
  readonly failed: (failure: Failure) => Effect.Effect<never, FirecrackerError>
}

/** Connections to one socket: one each while a call is under way. */
export interface Lane {
  /**
   * Sends a request when it is its turn, and waits for its answer. When it is late or interrupted its connection is closed,
   * and the turn is the next one's.
   */
  readonly exchange: (request: string, options: ExchangeOptions) => Effect.Effect<ApiResponse, FirecrackerError>
  readonly close: () => void
}

interface Task {
  readonly request: string
  readonly isRepeatable: boolean
  readonly reader: HttpAnswer.Reader
  readonly answered: (answer: ApiResponse) => void
  readonly failed: (failure: Failure) => void
  /** Sees to it that it is late in time, from the first time on that it is called. */
  readonly watch: () => void
  /** Where it is under way. */
  connection: Connection | undefined
  /** Is the connection one that was kept from an earlier answer? */
  isKept: boolean
  isSent: boolean
  /** How many new connections were closed while it was being written. */
  refusals: number
}

interface Connection {
  readonly socket: Net.Socket
  /** What is under way. A connection without one is idle, or over. */
  task: Task | undefined
}

const broken = (phase: "connect" | "request" | "response", cause: unknown): Failure => ({
  _tag: "Broken",
  phase,
  cause
})

/** So often a new connection may be closed before it took its request. What was said there is lost, so another one is made. */
const mostRefusals = 3

/** What has just come, on whichever connection: it is looked at before anything else is read. */
const taken = new Uint8Array(64 * 1024)

/** At most `most` calls are under way at a time; the others wait, and have their turn in the order of the calls. */
export const make = (options: {
  readonly socketPath: string
  readonly maxBodyBytes: number
  readonly most: number
  readonly deadlines: Deadlines
}): Lane => {
  const connections = new Set<Connection>()
  const idle: Array<Connection> = []
  const waiting = new Set<Task>()
  let underWay = 0
  let isClosed = false

  /** Lets go of what is under way, and lets the next ones begin. */
  const release = (connection: Connection): void => {
    connection.task = undefined
    underWay--
    advance()
  }

  const onData = (connection: Connection, chunk: Uint8Array): void => {
    const { socket, task } = connection
    // What comes when nothing was asked for would be taken for the next answer.
    if (task === undefined) return void socket.destroy()
    const step = task.reader.push(chunk)
    if (step._tag === "More") return
    if (step._tag === "Violation") {
      socket.destroy()
      release(connection)
      return task.failed(step)
    }
    const { body, deprecated, keepAlive, status } = step.answer
    // After some errors Firecracker's parser stands in the middle of a request, so none that failed is used again.
    if (keepAlive && status < 300 && task.isSent && socket.writableLength === 0) idle.push(connection)
    else socket.destroy()
    release(connection)
    task.answered({ status, body, deprecated })
  }

  const onClose = (connection: Connection, error: unknown): void => {
    connections.delete(connection)
    const at = idle.indexOf(connection)
    if (at !== -1) idle.splice(at, 1)
    const { task } = connection
    if (task === undefined) return
    const progress = task.reader.progress()
    // A write that fails leaves a request of which the end is missing: it was not done.
    const isCut = task.isSent && hasProperty(error, "code") && error.code === "EPIPE"
    const isWorthAnother = task.isKept ? task.isRepeatable : isCut && ++task.refusals < mostRefusals
    if (progress === "nothing" && isWorthAnother && !isClosed) {
      connection.task = undefined
      underWay--
      begin(task, undefined)
      // If that could not even dial, the turn is the next one's.
      return advance()
    }
    release(connection)
    task.failed(broken(
      progress !== "nothing" ? "response" : task.isSent && !isCut ? "request" : "connect",
      error ?? new Error(`closed after ${progress} of the answer`)
    ))
  }

  const dial = (): Connection => {
    const alias = NodeSocketPath.open(options.socketPath)
    const socket: Net.Socket = Net.createConnection({
      path: alias.path,
      onread: {
        buffer: taken,
        callback: (length) => {
          onData(connection, taken.subarray(0, length))
          return true
        }
      }
    })
    const connection: Connection = { socket, task: undefined }
    connections.add(connection)
    let error: unknown
    socket.once("connect", alias.close)
    socket.on("end", () => socket.destroy())
    socket.on("error", (cause) => {
      error = cause
    })
    socket.once("close", () => {
      alias.close()
      onClose(connection, error)
    })
    return connection
  }

  const keptOne = (): Connection | undefined => {
    let kept = idle.pop()
    // One that has just been given up is there until its last event.
    while (kept?.socket.destroyed === true) kept = idle.pop()
    return kept
  }

  const begin = (task: Task, kept: Connection | undefined): void => {
    let connection: Connection
    try {
      connection = kept ?? dial()
    } catch (cause) {
      return task.failed(broken("connect", cause))
    }
    underWay++
    connection.task = task
    task.connection = connection
    task.isKept = kept !== undefined
    task.isSent = false
    const send = () => {
      if (connection.task !== task) return
      task.isSent = true
      connection.socket.write(task.request)
      // Only now, so that Firecracker is at work meanwhile. Before, nothing waits: a unix socket is connected at once, or
      // not at all.
      task.watch()
    }
    // One turn of the event loop later: Firecracker tells who is one too many without being asked, and hangs up. Writing
    // to it then is an error that hides what it has said; where that happens all the same, the next one listens for longer.
    let turns = 2 + task.refusals
    const listen = (): void => turns-- > 0 ? void setImmediate(listen) : send()
    if (kept === undefined) connection.socket.once("connect", listen)
    else send()
  }

  const advance = (): void => {
    for (const task of waiting) {
      if (underWay >= options.most) return
      waiting.delete(task)
      begin(task, keptOne())
    }
  }

  const giveUp = (task: Task): void => {
    waiting.delete(task)
    const { connection } = task
    if (connection?.task !== task) return
    connection.socket.destroy()
    release(connection)
  }

  return {
    exchange: (request, { failed, isRepeatable, within }) =>
      Effect.callback((resume) => {
        if (isClosed) return resume(failed(broken("connect", new Error("the transport is closed"))))
        let isSettled = false
        const late = options.deadlines.after(within)
        let isInTime: (() => unknown) | undefined
        const settle = (result: Effect.Effect<ApiResponse, FirecrackerError>): void => {
          isSettled = true
          isInTime?.()
          resume(result)
        }
        const task: Task = {
          request,
          isRepeatable,
          reader: HttpAnswer.make(options.maxBodyBytes),
          answered: (answer) => settle(Effect.succeed(answer)),
          failed: (failure) => settle(failed(failure)),
          watch: () => {
            isInTime ??= options.deadlines.add(late, () => {
              giveUp(task)
              resume(failed({ _tag: "Late" }))
            })
          },
          connection: undefined,
          isKept: false,
          isSent: false,
          refusals: 0
        }
        waiting.add(task)
        advance()
        if (isSettled) return
        // What was begun is watched once it is sent.
        if (task.connection === undefined) task.watch()
        return Effect.sync(() => {
          isInTime?.()
          giveUp(task)
        })
      }),
    close: () => {
      isClosed = true
      for (const task of waiting) {
        waiting.delete(task)
        task.failed(broken("connect", new Error("the transport is closed")))
      }
      // An error costs more than all else here, so only those who wait are told why.
      for (const { socket, task } of connections) {
        socket.destroy(task === undefined ? undefined : new Error("the transport was closed"))
      }
    }
  }
}
