/**
 * A service as its platform and its clients see it: a process with ports, signals and an end, requests, connections.
 *
 * What `LifecycleConformance` is made of, for scenarios of one's own. Times are of the real clock, and waits follow that
 * of the fiber: run it with the live one (`it.live`). Processes that left their group are found where there is a /proc (Linux).
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { readdirSync, readFileSync } from "node:fs"
import * as Http from "node:http"
import * as Net from "node:net"
import { performance } from "node:perf_hooks"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as Signal from "../lifecycle/Signal.ts"

/**
 * Two free ports of the loopback interface: for what the service serves, and for its probes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ports {
  readonly service: number
  readonly probes: number
}

/**
 * A command that serves HTTP, and what it says of itself.
 *
 * @category models
 * @since 0.1.0
 */
export interface Subject {
  readonly name: string
  readonly command: string
  readonly args?: ReadonlyArray<string> | undefined
  readonly cwd?: string | undefined
  /** How the service is told its ports, and whatever else it needs; added to the environment of this process. */
  readonly env: (ports: Ports) => Readonly<Record<string, string>>
  /** For a service that cannot be told its ports. Default: free ones, others for each start. */
  readonly ports?: Partial<Ports> | undefined
  /** Paths of its probes, as many as it has. They are asked for at `ports.probes` unless `on` says otherwise. */
  readonly probes?: {
    readonly ready?: string | undefined
    readonly live?: string | undefined
    readonly startup?: string | undefined
    readonly on?: "probes" | "service" | undefined
  } | undefined
  readonly endpoints: {
    /** Answers 2xx at once. To be put through `stdout-closed` it writes a line to stdout for each request. */
    readonly fast: string
    /** Answers 2xx after so many milliseconds. */
    readonly slow?: ((millis: number) => string) | undefined
    /** Never answers. */
    readonly hang?: string | undefined
    /** Never answers, and keeps the program's event loop, or all its threads, busy for good. */
    readonly block?: string | undefined
    /** Answers, or not, and has something in the background of the service fail that the service cannot do without. */
    readonly fail?: string | undefined
    /** Becomes a WebSocket that the service keeps open. */
    readonly websocket?: string | undefined
  }
  /** From the signal to the end of the process, the drain delay included: what the service promises never to exceed. */
  readonly budget: Duration.Input
  /** How long the service goes on as before after the signal, while it says that it is not ready. Default: none. */
  readonly drainDelay?: Duration.Input | undefined
  /** Until it answers. Default 10 seconds. */
  readonly startWithin?: Duration.Input | undefined
  /** An environment that makes the start take that much longer, with the probes up. */
  readonly slowStart?: ((millis: number) => Readonly<Record<string, string>>) | undefined
  /** How it says by its end what has happened; a number is an exit code. What is left out is not judged. */
  readonly expect?: {
    /** It has stopped in order, asked by a signal. Default 0. */
    readonly stopped?: number | Signal.Signal | undefined
    /** The budget has passed and something was cut off. */
    readonly forced?: number | undefined
    /** It could not start, for the port of the service is taken. */
    readonly portTaken?: number | undefined
    /** It could not start, for the port of the probes is taken. */
    readonly probePortTaken?: number | undefined
    /** Something in the background failed. */
    readonly failed?: number | undefined
  } | undefined
}

/**
 * Why there is no answer: the code of the system (`ECONNREFUSED`), or `ETIMEDOUT` when it took too long.
 *
 * @category errors
 * @since 0.1.0
 */
export class NoAnswer extends Data.TaggedError("NoAnswer")<{ readonly path: string; readonly code: string }> {
  override get message(): string {
    return `${this.path}: ${this.code}`
  }
}

/**
 * The command could not be started.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotStarted extends Data.TaggedError("NotStarted")<{ readonly command: string; readonly code: string }> {
  override get message(): string {
    return `${this.command} could not be started: ${this.code}`
  }
}

/**
 * The end of a process, and when (`now`) it was told.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ended {
  readonly status: ExitStatus.ExitStatus
  readonly at: number
}

/**
 * A service that has been started.
 *
 * @category models
 * @since 0.1.0
 */
export interface Service {
  readonly pid: number
  readonly ports: Ports
  /** That it has ended is no error. */
  readonly signal: (signal: Signal.Signal) => Effect.Effect<void>
  readonly exit: Effect.Effect<Ended>
  readonly poll: () => Ended | undefined
  /** The last 16 KiB of stdout and stderr, as they came; once it has ended, all that was in the pipes. */
  readonly output: Effect.Effect<string>
  /** Closes the end of stdout that reads: the service's next write fails with EPIPE. */
  readonly closeStdout: Effect.Effect<void>
  /** Pids of processes that it has started and that are alive, itself included. */
  readonly alive: () => ReadonlyArray<number>
}

/** @internal */
export const host = "127.0.0.1"

const kept = 16_384

/**
 * The real clock that all times of a probe are of, in milliseconds.
 *
 * @category clock
 * @since 0.1.0
 */
export const now = (): number => performance.now()

const attempt = <A>(f: () => A, otherwise: A): A => {
  try {
    return f()
  } catch {
    return otherwise
  }
}

const codeOf = (error: unknown): string =>
  error instanceof Error ? "code" in error && typeof error.code === "string" ? error.code : error.message : "unknown"

const kill = (pid: number, signal: Signal.Signal): void => {
  attempt(() => process.kill(pid, signal), false)
}

/**
 * Takes a port until the scope closes. Each connection is closed at once.
 *
 * @category sockets
 * @since 0.1.0
 */
export const occupy = (port: number): Effect.Effect<number, NoAnswer, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Net.Server, NoAnswer>((resume) => {
      const server = Net.createServer((socket) => socket.destroy())
      server.once("error", (error) => resume(Effect.fail(new NoAnswer({ path: `port ${port}`, code: codeOf(error) }))))
      server.listen(port, "0.0.0.0", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  ).pipe(Effect.as(port))

let turn = Math.floor(Math.random() * 10_000)

/**
 * A port that nobody listens on. From below those that the system gives to outgoing connections (32768 and up on Linux),
 * and never the same twice in a row, so that no client takes it before the service does.
 *
 * @category sockets
 * @since 0.1.0
 */
export const freePort: Effect.Effect<number> = Effect.suspend(() => {
  turn = (turn + 1) % 10_000
  return Effect.scoped(occupy(20_000 + turn))
}).pipe(Effect.retry({ times: 1000 }), Effect.orDie)

/**
 * Ports for one start of a subject: its own, or free ones.
 *
 * @category constructors
 * @since 0.1.0
 */
export const allocate = (subject: Subject): Effect.Effect<Ports> =>
  Effect.all({
    service: subject.ports?.service === undefined ? freePort : Effect.succeed(subject.ports.service),
    probes: subject.ports?.probes === undefined ? freePort : Effect.succeed(subject.ports.probes)
  })

const variable = "LIFECYCLE_PROBE"
let serial = 0

/** Processes that have this entry in their environment and are no zombies. */
const marked = (entry: string): ReadonlyArray<number> =>
  attempt(() => readdirSync("/proc"), []).filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) =>
    attempt(() => readFileSync(`/proc/${pid}/environ`, "latin1"), "").split("\0").includes(entry) &&
    !/^\d+ \(.*\) Z /s.test(attempt(() => readFileSync(`/proc/${pid}/stat`, "latin1"), ""))
  )

/** The only child of a process, as soon as there is one. */
const childOf = (pid: number): number | undefined => {
  const text = attempt(() => readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8"), "").trim()
  return /^\d+$/.test(text) ? Number(text) : undefined
}

const launch = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd?: string | undefined; readonly env: Readonly<Record<string, string>> }
): Effect.Effect<ChildProcess, NotStarted> =>
  Effect.callback((resume) => {
    // As a container engine starts it: nothing between us and the command, and a group of its own.
    const child = spawn(command, [...args], {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      detached: true,
      stdio: ["ignore", "pipe", "pipe"]
    })
    child.once("spawn", () => resume(Effect.succeed(child)))
    child.once("error", (error) => resume(Effect.fail(new NotStarted({ command, code: codeOf(error) }))))
  })

/**
 * Starts the command of a subject, once. Closing the scope kills it, and all that it has started, by SIGKILL.
 *
 * ```ts import.meta.vitest
 * import { ExitStatus } from "effect-microvm-runtime/lifecycle"
 * import { LifecycleProbe } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const service = yield* LifecycleProbe.start({
 *     name: "one line",
 *     command: process.execPath,
 *     args: ["-e", "require('http').createServer((_, response) => response.end('hello')).listen(process.env.PORT)"],
 *     env: (ports) => ({ PORT: String(ports.service) }),
 *     endpoints: { fast: "/" },
 *     budget: "1 second"
 *   })
 *   const ask = LifecycleProbe.request(service.ports.service, "/")
 *   const answer = yield* LifecycleProbe.until(ask, (one) => "body" in one, "10 seconds")
 *   yield* service.signal("SIGTERM")
 *   const { status } = yield* service.exit
 *   return [answer !== undefined && "body" in answer ? answer.body : "", ExitStatus.format(status)]
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => ["hello", "killed by SIGTERM"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const start = Effect.fn("LifecycleProbe.start")(function*(
  subject: Subject,
  options: {
    /** More environment. */
    readonly env?: Readonly<Record<string, string>> | undefined
    readonly ports?: Ports | undefined
    /** Has it run as PID 1 of a PID namespace of its own; takes unshare(1) and root. */
    readonly asInit?: boolean | undefined
  } = {}
) {
  const ports = options.ports ?? (yield* allocate(subject))
  const mark = `${process.pid}-${++serial}-${Math.random().toString(36).slice(2)}`
  const entry = `${variable}=${mark}`
  const command = [subject.command, ...subject.args ?? []]
  const [program = "", ...args] = options.asInit === true
    ? ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--", ...command]
    : command
  const env = { ...subject.env(ports), ...options.env, [variable]: mark }
  const child = yield* Effect.acquireRelease(
    launch(program, args, { cwd: subject.cwd, env }),
    (started) =>
      Effect.gen(function*() {
        // Nobody has waited for it yet, so its pid and its group are still its own.
        if (started.exitCode === null && started.signalCode === null) {
          kill(-(started.pid ?? 0), "SIGKILL")
          yield* Effect.promise(() => once(started, "exit"))
        }
        for (let left = marked(entry); left.length > 0; left = marked(entry)) {
          for (const pid of left) kill(pid, "SIGKILL")
          yield* Effect.sleep(5)
        }
        started.stdout?.destroy()
        started.stderr?.destroy()
      }).pipe(Effect.timeoutOption("5 seconds"))
  )
  let output = ""
  let end: Ended | undefined
  const keep = (chunk: Buffer): void => {
    output = (output + chunk.toString()).slice(-kept)
  }
  child.stdout?.on("data", keep)
  child.stderr?.on("data", keep)
  const exit = new Promise<Ended>((resolve) =>
    child.once("exit", (code, name) => {
      const signal = name === null ? undefined : Signal.fromString(name)
      const status = code !== null
        ? ExitStatus.exited(code)
        : signal === undefined
        ? ExitStatus.lost("no code and no signal", "wait")
        : ExitStatus.signaled(signal)
      end = { status, at: now() }
      resolve(end)
    })
  )
  const closed = once(child, "close")
  const pid = child.pid ?? 0
  const service: Service = {
    pid,
    ports,
    signal: (signal) =>
      Effect.sync(() => {
        if (end !== undefined) return
        const target = options.asInit === true ? childOf(pid) : pid
        if (target !== undefined) kill(target, signal)
      }),
    exit: Effect.promise(() => exit),
    poll: () => end,
    output: Effect.suspend(() => end === undefined ? Effect.void : Effect.promise(() => closed)).pipe(
      // A process that outlives the service may hold the pipes open.
      Effect.timeoutOption("500 millis"),
      Effect.map(() => output)
    ),
    closeStdout: Effect.sync(() => void child.stdout?.destroy()),
    alive: () => marked(entry)
  }
  return service
})

/**
 * Does somebody listen on this port? Asks the kernel without connecting; `undefined` where it does not say.
 *
 * @category sockets
 * @since 0.1.0
 */
export const listens = (port: number): boolean | undefined => {
  const tables = ["/proc/net/tcp", "/proc/net/tcp6"].map((path) =>
    attempt(() => readFileSync(path, "latin1"), undefined)
  )
  if (tables.every((table) => table === undefined)) return undefined
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`
  return tables.some((table) =>
    table?.split("\n").some((line) => {
      // Local address, remote address, state; 0A is LISTEN.
      const [, address, , state] = line.trim().split(/\s+/)
      return state === "0A" && address?.endsWith(local) === true
    })
  )
}

/**
 * An answer, with its whole body.
 *
 * @category models
 * @since 0.1.0
 */
export interface Answer {
  readonly status: number
  readonly body: string
  /** The server says that the connection ends here. */
  readonly closes: boolean
}

/**
 * @category models
 * @since 0.1.0
 */
export const isOk = ({ status }: Answer): boolean => status >= 200 && status < 300

/**
 * Connections of a client that keeps them open, at most so many; closed with the scope.
 *
 * @category sockets
 * @since 0.1.0
 */
export const keepAlive = (connections: number): Effect.Effect<Http.Agent, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => new Http.Agent({ keepAlive: true, maxSockets: connections })),
    (agent) => Effect.sync(() => agent.destroy())
  )

/**
 * One GET. On a connection of its own that ends with it, unless there is an agent. A body that breaks off is no answer.
 *
 * @category sockets
 * @since 0.1.0
 */
export const request = (
  port: number,
  path: string,
  options: { readonly agent?: Http.Agent | undefined; readonly within?: Duration.Input | undefined } = {}
): Effect.Effect<Answer, NoAnswer> =>
  Effect.callback<Answer, NoAnswer>((resume) => {
    const fail = (code: string): void => resume(Effect.fail(new NoAnswer({ path, code })))
    const asked = Http.get({ host, port, path, agent: options.agent ?? false }, (response) => {
      let body = ""
      response.on("data", (chunk: Buffer) => {
        body = (body + chunk.toString()).slice(-kept)
      })
      response.on("error", (error) => fail(codeOf(error)))
      response.on("end", () =>
        resume(Effect.succeed({
          status: response.statusCode ?? 0,
          body,
          closes: response.headers.connection?.toLowerCase() === "close"
        })))
    })
    asked.on("error", (error) => fail(codeOf(error)))
    return Effect.sync(() => asked.destroy())
  }).pipe(
    Effect.timeoutOrElse({
      duration: options.within ?? "5 seconds",
      orElse: () => Effect.fail(new NoAnswer({ path, code: "ETIMEDOUT" }))
    })
  )

/**
 * A TCP connection on which these bytes have been sent; it stays open until the scope closes.
 *
 * @category sockets
 * @since 0.1.0
 */
export const connect = (port: number, bytes = ""): Effect.Effect<void, NoAnswer, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<Net.Socket, NoAnswer>((resume) => {
      const socket = Net.connect(port, host, () => {
        if (bytes !== "") socket.write(bytes)
        resume(Effect.succeed(socket))
      })
      socket.on("error", (error) => resume(Effect.fail(new NoAnswer({ path: `port ${port}`, code: codeOf(error) }))))
      socket.resume()
      return Effect.sync(() => socket.destroy())
    }),
    (socket) => Effect.sync(() => socket.destroy()),
    { interruptible: true }
  )

/**
 * An open WebSocket. `closed` waits for its end and gives the code of it (RFC 6455, 7.4.1; 1006: there was no closing
 * handshake).
 *
 * @category sockets
 * @since 0.1.0
 */
export const openWebSocket = (
  port: number,
  path: string
): Effect.Effect<{ readonly closed: Effect.Effect<number> }, NoAnswer, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<{ readonly socket: WebSocket; readonly closing: Promise<number> }, NoAnswer>((resume) => {
      const socket = new WebSocket(`ws://${host}:${port}${path}`)
      const closing = new Promise<number>((resolve) => socket.addEventListener("close", ({ code }) => resolve(code)))
      socket.addEventListener("open", () => resume(Effect.succeed({ socket, closing })))
      socket.addEventListener("error", () => resume(Effect.fail(new NoAnswer({ path, code: "no WebSocket" }))))
      return Effect.sync(() => socket.close())
    }),
    ({ socket }) => Effect.sync(() => socket.close()),
    { interruptible: true }
  ).pipe(Effect.map(({ closing }) => ({ closed: Effect.promise(() => closing) })))

/**
 * Asks every 5 ms until the answer pleases; `undefined` when it did not within that time.
 *
 * @category sockets
 * @since 0.1.0
 */
export const until = <A>(
  ask: Effect.Effect<A, NoAnswer>,
  pleases: (answer: A | NoAnswer) => boolean,
  within: Duration.Input
): Effect.Effect<A | NoAnswer | undefined> => {
  const again: Effect.Effect<A | NoAnswer> = Effect.suspend(() =>
    Effect.flatMap(
      Effect.catch(ask, (error) => Effect.succeed(error)),
      (answer) => pleases(answer) ? Effect.succeed(answer) : Effect.delay(again, "5 millis")
    )
  )
  return Effect.map(Effect.timeoutOption(again, within), Option.getOrUndefined)
}
