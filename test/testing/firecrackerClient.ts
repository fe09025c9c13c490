import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { createConnection } from "node:net"

export interface Connection {
  readonly send: (bytes: string | Uint8Array) => Effect.Effect<void>
  /** The other side is told that nothing more will come. */
  readonly halfClose: Effect.Effect<void>
  /** One answer of HTTP, whole; or, where it ends before that, what there is. */
  readonly answer: Effect.Effect<string>
  /** A line, with its end. */
  readonly line: Effect.Effect<string>
  /** What comes until the connection ends. */
  readonly rest: Effect.Effect<string>
  /** What comes until it ends (then `<end>` is last) or nothing has come for so many milliseconds. */
  readonly until: (quiet: number) => Effect.Effect<string>
  readonly closed: () => boolean
}

/** How long the answer at the start of this text is, if it is whole. */
const answerLength = (text: string): number => {
  const head = text.indexOf("\r\n\r\n")
  if (head < 0) return -1
  const length = /content-length: *(\d+)/i.exec(text.slice(0, head))?.[1]
  const end = head + 4 + Number(length ?? 0)
  return text.length < end ? -1 : end
}

/** Bytes as they are, each a character of Latin-1. */
export const connect = (path: string): Effect.Effect<Connection, Error, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Connection & { readonly close: () => void }, Error>((resume) => {
      const socket = createConnection({ path, allowHalfOpen: true })
      let text = ""
      let ended = false
      const waiting = new Set<() => void>()
      const news = () => {
        for (const wake of waiting) wake()
      }
      socket.setEncoding("latin1")
      socket.on("data", (more) => {
        text += String(more)
        news()
      })
      const end = () => {
        ended = true
        news()
      }
      socket.on("end", end)
      socket.on("close", end)
      socket.on("error", (error) => {
        resume(Effect.fail(error))
        end()
      })
      const take = (length: number): string => {
        const taken = text.slice(0, length)
        text = text.slice(length)
        return taken
      }
      const when = (lengthOf: () => number): Effect.Effect<string> =>
        Effect.callback<string>((done) => {
          const look = () => {
            const length = lengthOf()
            if (length < 0 && !ended) return
            waiting.delete(look)
            done(Effect.succeed(take(length < 0 ? text.length : length)))
          }
          waiting.add(look)
          look()
          return Effect.sync(() => waiting.delete(look))
        })
      const quietFor = (millis: number) =>
        Effect.callback<void>((done) => {
          const over = () => {
            waiting.delete(again)
            clearTimeout(timer)
            done(Effect.void)
          }
          let timer = setTimeout(over, millis)
          const again = () => {
            clearTimeout(timer)
            if (ended) over()
            else timer = setTimeout(over, millis)
          }
          waiting.add(again)
          if (ended) over()
        })
      socket.on("connect", () =>
        resume(Effect.succeed({
          send: (bytes) => Effect.callback<void>((done) => void socket.write(bytes, () => done(Effect.void))),
          halfClose: Effect.callback<void>((done) => void socket.end(() => done(Effect.void))),
          answer: when(() => answerLength(text)),
          line: when(() => text.indexOf("\n") + 1 || -1),
          rest: when(() => -1),
          until: (quiet) => Effect.map(quietFor(quiet), () => `${take(text.length)}${ended ? "<end>" : ""}`),
          closed: () => ended,
          close: () => socket.destroy()
        })))
    }),
    ({ close }) => Effect.sync(close)
  )

export const request = (method: string, path: string, body?: string): string => {
  const length = body === undefined ? "" : `Content-Length: ${Buffer.byteLength(body)}\r\n`
  const text = `${method} ${path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n${length}\r\n${body ?? ""}`
  return Buffer.from(text, "utf8").toString("latin1")
}

/** What most answers begin with. */
const heads =
  /HTTP\/1\.1 (\d{3}) \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n(Deprecation: true\r\n)?(?:Content-Type: application\/json\r\nContent-Length: (\d+)\r\n)?\r\n/g

/** Answers with the usual heads in short. */
export const shortHeads = (text: string): string =>
  text.replace(
    heads,
    (_, status: string, deprecated?: string, length?: string) =>
      `<${[status, deprecated === undefined ? "" : "deprecated", length ?? ""].join(" ").trim()}>`
  )

const unread = "An error occurred when deserializing the json body of a request: "

/** An answer in short, or as it is where its head is not what it should be. */
export const short = (answer: string): string => {
  const head = answer.matchAll(heads).next().value
  if (head?.index !== 0) return answer
  const text = Buffer.from(answer.slice(head[0].length), "latin1").toString("utf8")
  const fault = /^\{"fault_message":("(?:[^"\\]|\\.)*")\}$/s.exec(text)?.[1]
  const body = fault === undefined ? text : String(JSON.parse(fault)).replace(unread, "<JSON> ")
  return `${head[1]}${head[2] === undefined ? "" : " deprecated"}${body === "" ? "" : ` ${body}`}`
}

/** One request on a connection of its own, and its answer in short. */
export const ask = (socketPath: string, method: string, path: string, body?: string): Effect.Effect<string, Error> =>
  Effect.scoped(Effect.gen(function*() {
    const connection = yield* connect(socketPath)
    yield* connection.send(Buffer.from(request(method, path, body), "latin1"))
    return short(yield* connection.answer)
  }))
