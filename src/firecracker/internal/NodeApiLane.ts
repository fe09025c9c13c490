import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import * as Net from "node:net"
import * as HttpAnswer from "./httpAnswer.ts"
import * as NodeSocketPath from "./NodeSocketPath.ts"

export type Failure =
  | { readonly _tag: "Violation"; readonly detail: string }
  | {
    readonly _tag: "Broken"
    readonly phase: "connect" | "request" | "response"
    readonly cause: unknown
    /** A connection that was kept from an earlier answer, and ended before anything of this one came. */
    readonly isStale: boolean
  }

/** Connections to one socket. How many there are is up to the callers: one each while a call is under way. */
export interface Lane {
  /** Sends a request and waits for its answer; `fresh` takes no kept connection. Interruption closes the connection. */
  readonly exchange: (
    request: string,
    options: { readonly fresh: boolean }
  ) => Effect.Effect<HttpAnswer.Answer, Failure>
  readonly close: () => void
}

interface Task {
  readonly reader: HttpAnswer.Reader
  readonly isKept: boolean
  isSent: boolean
  readonly resume: (answer: Effect.Effect<HttpAnswer.Answer, Failure>) => void
}

interface Connection {
  readonly socket: Net.Socket
  /** What is under way. A connection without one is idle, or over. */
  task: Task | undefined
}

export const make = (options: { readonly socketPath: string; readonly maxBodyBytes: number }): Lane => {
  const connections = new Set<Connection>()
  const idle: Array<Connection> = []
  let isClosed = false

  const take = (connection: Connection): Task | undefined => {
    const { task } = connection
    connection.task = undefined
    return task
  }

  const onData = (connection: Connection, chunk: Uint8Array): void => {
    const { socket } = connection
    const step = connection.task?.reader.push(chunk)
    if (step?._tag === "More") return
    const task = take(connection)
    // What comes when nothing was asked for would be taken for the next answer.
    if (step === undefined || task === undefined) return void socket.destroy()
    if (step._tag === "Violation") {
      socket.destroy()
      return task.resume(Effect.fail(step))
    }
    const { keepAlive, status } = step.answer
    // After some errors Firecracker's parser stands in the middle of a request, so none that failed is used again.
    if (keepAlive && status < 300 && task.isSent && socket.writableLength === 0) idle.push(connection)
    else socket.destroy()
    task.resume(Effect.succeed(step.answer))
  }

  const dial = (): Connection => {
    const alias = NodeSocketPath.open(options.socketPath)
    const socket = Net.createConnection({ path: alias.path })
    const connection: Connection = { socket, task: undefined }
    connections.add(connection)
    let error: unknown
    socket.once("connect", alias.close)
    socket.on("data", (chunk) => onData(connection, chunk))
    socket.on("end", () => socket.destroy())
    socket.on("error", (cause) => {
      error = cause
    })
    socket.once("close", () => {
      alias.close()
      connections.delete(connection)
      const at = idle.indexOf(connection)
      if (at !== -1) idle.splice(at, 1)
      const task = take(connection)
      if (task === undefined) return
      const progress = task.reader.progress()
      // A write that fails leaves a request of which the end is missing: it was not done.
      const mayBeDone = task.isSent && !(hasProperty(error, "code") && error.code === "EPIPE")
      task.resume(Effect.fail({
        _tag: "Broken",
        phase: progress !== "nothing" ? "response" : mayBeDone ? "request" : "connect",
        cause: error ?? new Error(`closed after ${progress} of the answer`),
        isStale: task.isKept && progress === "nothing"
      }))
    })
    return connection
  }

  return {
    exchange: (request, { fresh }) =>
      Effect.callback((resume) => {
        const broken = (cause: unknown) =>
          resume(Effect.fail({ _tag: "Broken", phase: "connect", cause, isStale: false }))
        if (isClosed) return broken(new Error("the transport is closed"))
        let kept = fresh ? undefined : idle.pop()
        // One that has just been given up is there until its last event.
        while (kept?.socket.destroyed === true) kept = idle.pop()
        let connection: Connection
        try {
          connection = kept ?? dial()
        } catch (cause) {
          return broken(cause)
        }
        const task: Task = {
          reader: HttpAnswer.make(options.maxBodyBytes),
          isKept: kept !== undefined,
          isSent: false,
          resume
        }
        connection.task = task
        const send = () => {
          if (connection.task !== task) return
          task.isSent = true
          connection.socket.write(request)
        }
        // One turn of the event loop later: Firecracker tells who is one too many without being asked, and hangs up. Writing
        // to it then would be an error that hides what it has said.
        if (kept === undefined) connection.socket.once("connect", () => setImmediate(() => setImmediate(send)))
        else send()
        return Effect.sync(() => {
          if (connection.task === task) connection.socket.destroy()
        })
      }),
    close: () => {
      isClosed = true
      // An error costs more than all else here, so only those who wait are told why.
      for (const { socket, task } of connections) {
        socket.destroy(task === undefined ? undefined : new Error("the transport was closed"))
      }
    }
  }
}
