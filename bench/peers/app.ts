/**
 * What all servers of the benchmarks and the conformance table serve, on plain `node:http`, and what they are told in
 * their environment: PORT, PROBES_PORT, and in milliseconds STOP_BUDGET, DRAIN_DELAY, START_DELAY; CHILD, when a child process
 * and a task in the background go with the server.
 */
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { createServer, type RequestListener, type Server } from "node:http"
import { setTimeout as sleep } from "node:timers/promises"

const number = (name: string): number => Number(process.env[name] ?? 0)

export const port = number("PORT")
export const probesPort = number("PROBES_PORT")
export const stopBudget = number("STOP_BUDGET")
export const drainDelay = number("DRAIN_DELAY")

/** What the service would have to do before it can serve. */
export const prepare = (): Promise<void> => sleep(number("START_DELAY"))

export const hasChild = process.env["CHILD"] === "1"

/** That of the servers without Effect, if there is to be one. A task of theirs would be a promise, which costs nothing. */
export const startChild = (): void => {
  if (hasChild) spawn("sleep", ["1000"])
}

export const block = (): never => {
  while (true) { /* busy */ }
}

export const answer: RequestListener = (request, response) => {
  const url = new URL(request.url ?? "/", "http://localhost")
  switch (url.pathname) {
    case "/fast":
      process.stdout.write(`GET ${url.pathname}\n`)
      return void response.end("fast")
    case "/slow":
      return void setTimeout(() => response.end("slow"), Number(url.searchParams.get("ms")))
    case "/hang":
      return
    case "/block":
      return block()
    case "/fail":
      // A promise that nobody waits for.
      void sleep(1).then(() => Promise.reject(new Error("background work failed")))
      return void response.end("soon")
    default:
      return void response.writeHead(404).end()
  }
}

/** A server that also upgrades to a WebSocket, which is then silent (RFC 6455, 4.2.2). */
export const makeServer = (listener: RequestListener = answer): Server =>
  createServer(listener).on("upgrade", (request, socket) => {
    const accept = createHash("sha1").update(
      `${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
    )
    socket.on("error", () => socket.destroy())
    socket.resume()
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${
        accept.digest("base64")
      }\r\n\r\n`
    )
  })
