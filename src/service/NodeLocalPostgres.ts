/**
 * A PostgreSQL server of one's own, on this machine: a supervised child process whose data are kept between runs.
 *
 * ```
 *   <state directory>/postgres/
 *     claim-…    who uses it now; a second one is refused
 *     data/      of the server, which alone may enter it
 *     password   of the role `postgres`
 *     port       of the last run; taken again if it is free
 *     run/       the unix socket
 * ```
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import type { ExitStatus } from "../lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../lifecycle/ShutdownPolicy.ts"
import type { Signal } from "../lifecycle/Signal.ts"
import type { Process } from "../process/Process.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import * as Readiness from "../process/Readiness.ts"
import * as LocalState from "./internal/NodeLocalState.ts"
import { asUser, find, type Programs, run, type ServerUser } from "./internal/NodePostgresPrograms.ts"
import type { PostgresInfo } from "./Postgres.ts"
import * as Postgres from "./Postgres.ts"
import { ProvisionerError } from "./Provisioner.ts"

/**
 * A server that is ready.
 *
 * @category models
 * @since 0.1.0
 */
export interface LocalPostgres {
  /** Such as `"15.18"`. */
  readonly version: string
  readonly pid: number
  /** Of the server, in English, for people: `"PostgreSQL 15.18 [4711] on 127.0.0.1:36011, data in /…"`. */
  readonly description: string
  /** The database of that name, made if it is not there. Its owner is the superuser `postgres`. */
  readonly database: (name: string) => Effect.Effect<PostgresInfo, ProvisionerError>
  /** How the server ended; while the scope is open, it was not meant to. */
  readonly exit: Effect.Effect<ExitStatus>
}

/**
 * How long the server waits for its clients after a smart shutdown (SIGTERM).
 *
 * @category constants
 * @since 0.1.0
 */
export const smartGrace = Duration.seconds(1)

/**
 * What comes after a smart shutdown that took too long (postgres(1), "Notes"): fast, which ends the clients' sessions,
 * immediate, which leaves recovery to the next start, and SIGKILL.
 *
 * ```ts import.meta.vitest
 * import { NodeLocalPostgres } from "effect-microvm-runtime/service"
 * const stages = NodeLocalPostgres.policy.stages.map((stage) => stage.name)
 * stages // => ["fast", "immediate", "SIGKILL"]
 * ```
 *
 * @category constants
 * @since 0.1.0
 */
export const policy: ShutdownPolicy.ShutdownPolicy<Signal> = ShutdownPolicy.makeUnsafe<Signal>([
  { name: "fast", request: "SIGINT", grace: "5 seconds" },
  { name: "immediate", request: "SIGQUIT", grace: "2 seconds" },
  { name: "SIGKILL", request: "SIGKILL", grace: "2 seconds", force: true }
])

/** A server that went with its service may still be ending when the service starts again. */
const lingering = "10 seconds"

const fail = (message: string, cause?: unknown) => Effect.fail(new ProvisionerError({ message, cause }))

const give = (path: string, user: ServerUser | undefined): void => {
  if (user !== undefined) NodeFs.chownSync(path, user.uid, user.gid)
}

/** Makes the data, under another name until they are whole. */
const initialise = Effect.fnUntraced(function*(directory: string, data: string, programs: Programs) {
  const fresh = `${data}.new`
  const password = NodePath.join(directory, "password")
  yield* LocalState.onState(fresh, () => {
    NodeFs.rmSync(fresh, { recursive: true, force: true })
    NodeFs.mkdirSync(fresh, { mode: 0o700 })
    give(fresh, programs.user)
    give(password, programs.user)
  })
  yield* run(
    "initdb",
    asUser(programs.user, NodePath.join(programs.bin, "initdb"), [
      `--pgdata=${fresh}`,
      "--username=postgres",
      `--pwfile=${password}`,
      "--auth=scram-sha-256",
      "--encoding=UTF8",
      "--no-locale"
    ])
  )
  yield* LocalState.onState(data, () => NodeFs.renameSync(fresh, data))
})

/** Processes of a server whose data these are: each of them has the directory as its own. */
const serversOf = (data: string): ReadonlyArray<number> =>
  NodeFs.readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const isServer = /^post(gres|master)/.test(NodeFs.readFileSync(`/proc/${pid}/comm`, "utf8"))
      return isServer && NodeFs.readlinkSync(`/proc/${pid}/cwd`) === data ? [Number(pid)] : []
    } catch {
      // It has ended, or belongs to somebody else.
      return []
    }
  })

/**
 * Takes away the lock of a server that was killed. The server would do so by itself, unless another process has got its pid
 * by now. We hold the claim on the directory, so no server is being started meanwhile.
 */
const clearLock = Effect.fnUntraced(function*(data: string) {
  const path = NodePath.join(data, "postmaster.pid")
  if (!NodeFs.existsSync(path)) return
  const real = yield* LocalState.onState(data, () => NodeFs.realpathSync(data))
  const gone = Effect.suspend(() => {
    const pids = serversOf(real)
    return pids.length === 0 ? Effect.void : fail(
      `a PostgreSQL server (pid ${pids.join(", ")}) still uses ${data}, although no service holds it: stop it, for ` +
        `example with kill -INT ${pids[0]}`
    )
  })
  yield* Effect.retry(gone, Schedule.max([Schedule.spaced("100 millis"), Schedule.during(lingering)]))
  yield* LocalState.onState(path, () => NodeFs.rmSync(path, { force: true }))
  yield* Effect.logInfo(`removed the lock of a server that did not end in order: ${path}`)
})

/** Sets the password in the data to the one we know, without a server: for when our file was lost. */
const resetPassword = Effect.fnUntraced(function*(data: string, programs: Programs, password: Redacted.Redacted) {
  yield* run(
    "postgres --single",
    asUser(programs.user, "/bin/sh", [
      "-c",
      // From the environment, so that it is on no command line. It has no quote in it.
      `printf "ALTER ROLE postgres PASSWORD '%s'\\n" "$NEW_PASSWORD" | "$1" --single -D "$2" postgres`,
      "sh",
      NodePath.join(programs.bin, "postgres"),
      data
    ], { NEW_PASSWORD: password })
  )
})

/** The port, once the server says in its lock file that it takes connections: that can be no other server. */
const isReady = (data: string, pid: number) =>
  Effect.suspend(() => {
    const lines = LocalState.readText(NodePath.join(data, "postmaster.pid"))?.split("\n") ?? []
    return Number(lines[0]) === pid && lines[7]?.trim() === "ready" ? Effect.void : Effect.fail("not ready" as const)
  })

/** Longest path of a unix socket (unix(7)), less the name that the server gives it. */
const longestSocketDirectory = 107 - "/.s.PGSQL.65535".length

const launch = Effect.fnUntraced(
  function*(options: {
    readonly directory: string
    readonly data: string
    readonly programs: Programs
    readonly startWithin: Duration.Input
  }) {
    const { data, directory, programs } = options
    const sockets = NodePath.join(directory, "run")
    const hasSocket = Buffer.byteLength(sockets) <= longestSocketDirectory
    if (hasSocket) {
      yield* LocalState.onState(sockets, () => {
        NodeFs.rmSync(sockets, { recursive: true, force: true })
        NodeFs.mkdirSync(sockets, { mode: 0o700 })
        give(sockets, programs.user)
      })
    }
    const port = yield* LocalState.port(directory)
    const settings = {
      listen_addresses: "127.0.0.1",
      port: String(port),
      unix_socket_directories: hasSocket ? sockets : "",
      logging_collector: "off",
      log_destination: "stderr",
      // The last output becomes part of error messages: no statements in it.
      log_min_error_statement: "panic"
    }
    const spawner = yield* ProcessSpawner
    const process = yield* spawner.spawn(
      asUser(programs.user, NodePath.join(programs.bin, "postgres"), [
        "-D",
        data,
        ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])
      ]),
      { policy, tailBytes: 4096 }
    )
    yield* Effect.addFinalizer(() => smartShutdown(process))
    yield* Readiness.awaitReady(process, isReady(data, process.pid), { within: options.startWithin })
    return { port, process }
  },
  Effect.catchTag("ProcessError", (cause) => fail(`PostgreSQL: ${cause.message}`, cause)),
  (attempt) =>
    // What a failed attempt started ends before the next one.
    Effect.flatMap(
      Effect.scope,
      Effect.fnUntraced(function*(scope) {
        const own = yield* Scope.fork(scope)
        return yield* Effect.onExit(
          Scope.provide(attempt, own),
          (exit) => Exit.isFailure(exit) ? Scope.close(own, exit) : Effect.void
        )
      })
    )
)

/** Asks the postmaster alone: its policy reaches all of its processes, and would end their sessions. */
const smartShutdown = (process: Process) =>
  process.signal("SIGTERM").pipe(
    Effect.andThen(Effect.timeoutOption(process.exit, smartGrace)),
    Effect.ignore
  )

/** Somebody took the port meanwhile: another try takes another one. */
const isPortTaken = (error: ProvisionerError): boolean => error.message.includes("could not bind")

/**
 * Is there a PostgreSQL server that could run with its data below this state directory? Fails with what is missing, and
 * changes nothing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const available = Effect.fn("NodeLocalPostgres.available")(function*(options: {
  readonly stateDirectory: string
}): Effect.fn.Return<{ readonly version: string; readonly bin: string }, ProvisionerError, ProcessSpawner> {
  return yield* find(NodePath.resolve(options.stateDirectory, "postgres", "data"))
})

/**
 * Starts a server with its data below the state directory, made by initdb if there are none, and waits until it takes
 * connections. When the scope closes it is shut down: smart, fast, immediate, SIGKILL.
 *
 * It listens on a loopback port, and on a unix socket where the path is short enough for one, with a password
 * (scram-sha-256) that is kept for later runs like the port. It never runs as root: root's server belongs to the user
 * `postgres`, or else `nobody`. If a server was killed, its lock is taken away and its data recover. A second service on the
 * same state directory is refused, and told who the first one is.
 *
 * @category constructors
 * @since 0.1.0
 */
export const start = Effect.fn("NodeLocalPostgres.start")(function*(options: {
  readonly stateDirectory: string
  /** Who we are, for others that want the same state directory. */
  readonly holder: string
  /** Default 60 seconds: recovery after a crash takes its time. */
  readonly startWithin?: Duration.Input | undefined
}): Effect.fn.Return<LocalPostgres, ProvisionerError, ProcessSpawner | Scope.Scope> {
  const directory = NodePath.resolve(options.stateDirectory, "postgres")
  const data = NodePath.join(directory, "data")
  yield* LocalState.claim(directory, options.holder)
  const programs = yield* find(data)
  const isNew = !NodeFs.existsSync(data)
  if (!isNew) yield* clearLock(data)
  const password = yield* LocalState.password(
    directory,
    (fresh) => isNew ? Effect.void : resetPassword(data, programs, fresh)
  )
  if (isNew) yield* initialise(directory, data, programs)
  const { port, process } = yield* Effect.retry(
    launch({ directory, data, programs, startWithin: options.startWithin ?? "60 seconds" }),
    { while: isPortTaken, times: 3 }
  )

  const known = new Set(["postgres"])
  const one = yield* Semaphore.make(1)
  const spawner = yield* ProcessSpawner
  const info = (database: string) =>
    Postgres.fromParts({ host: "127.0.0.1", port, database, username: "postgres", password })
  const create = (name: string) =>
    run(
      "createdb",
      asUser(programs.user, NodePath.join(programs.bin, "createdb"), [
        "--host=127.0.0.1",
        `--port=${port}`,
        "--username=postgres",
        "--no-password",
        "--",
        name
      ], { PGPASSWORD: password })
    ).pipe(
      Effect.catchIf((error) => error.message.includes("already exists"), () => Effect.void),
      Effect.andThen(Effect.sync(() => known.add(name))),
      Effect.provideService(ProcessSpawner, spawner)
    )
  return {
    version: programs.version,
    pid: process.pid,
    description: `PostgreSQL ${programs.version} [${process.pid}] on 127.0.0.1:${port}, data in ${data}`,
    database: (name) =>
      Effect.as(one.withPermit(Effect.suspend(() => known.has(name) ? Effect.void : create(name))), info(name)),
    exit: process.exit
  }
})
