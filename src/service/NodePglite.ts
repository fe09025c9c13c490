/**
 * The embedded PostgreSQL, for machines without a server: PGlite, in our own process, behind a port of the loopback address.
 *
 * ```
 *   <state directory>/pglite/<database>/
 *     claim-…    who uses it now; a second one is refused
 *     data/
 *     password   of the role `postgres`
 *     port       of the last run; taken again if it is free
 * ```
 *
 * It needs the package `@electric-sql/pglite`, which is an optional peer dependency.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as LocalState from "./internal/NodeLocalState.ts"
import * as Postgres from "./Postgres.ts"
import { ProvisionerError } from "./Provisioner.ts"

/**
 * A database that takes connections.
 *
 * @category models
 * @since 0.1.0
 */
export interface LocalPglite {
  readonly info: Postgres.PostgresInfo
  /** For people: `"PGlite on 127.0.0.1:36011, data in /…"`. */
  readonly description: string
  /** Waits until it has broken down, and tells why. */
  readonly lost: Effect.Effect<string>
}

/** It has nothing to wait for: what takes longer hangs. */
const closeTime = "5 seconds"

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

const load = Effect.tryPromise({
  // Handled at this place, since bundlers take it for an error else that it is not installed.
  try: () =>
    import("@electric-sql/pglite").catch((cause: unknown) => {
      throw cause
    }),
  catch: (cause) =>
    new ProvisionerError({
      message: LocalState.codeOf(cause) === "ERR_MODULE_NOT_FOUND"
        ? "the embedded PostgreSQL is not installed: npm install @electric-sql/pglite"
        : `@electric-sql/pglite cannot be loaded: ${messageOf(cause)}`,
      cause
    })
})

/**
 * Can PGlite be loaded? Fails with what is missing.
 *
 * @category constructors
 * @since 0.1.0
 */
export const available: Effect.Effect<void, ProvisionerError> = Effect.asVoid(load)

/**
 * Opens a database below the state directory, made if it is not there, and serves it until the scope closes. Its data are
 * kept. It has the same roles as a server: user `postgres`, a password that is kept for later runs.
 *
 * **Gotchas**
 *
 * - There is one session for all connections. One transaction runs at a time, and the others wait for it; prepared statements
 *   are kept apart, but settings, temporary tables and advisory locks are shared. Do not open a second connection inside a
 *   transaction and wait for it.
 * - `LISTEN` gives no notifications, and `COPY … FROM STDIN` is refused.
 * - It works in our thread: a long statement holds up all else.
 *
 * @category constructors
 * @since 0.1.0
 */
export const start = Effect.fn("NodePglite.start")(function*(options: {
  readonly stateDirectory: string
  readonly database: string
  /** Who we are, for others that want the same state directory. */
  readonly holder: string
}): Effect.fn.Return<LocalPglite, ProvisionerError, Scope.Scope> {
  const { PGlite } = yield* load
  // `.` and `..` are names of databases, too.
  const directory = NodePath.resolve(options.stateDirectory, "pglite", `db-${encodeURIComponent(options.database)}`)
  const data = NodePath.join(directory, "data")
  const fresh = `${data}.new`
  yield* LocalState.claim(directory, options.holder)

  const open = (dataDir: string, database: string) =>
    Effect.acquireRelease(
      Effect.tryPromise({
        try: () => PGlite.create({ dataDir, database }),
        catch: (cause) => new ProvisionerError({ message: `PGlite: ${dataDir}: ${messageOf(cause)}`, cause })
      }),
      (session) =>
        Effect.tryPromise(() => session.close()).pipe(
          Effect.timeoutOption(closeTime),
          Effect.catch((error) => Effect.logWarning(`PGlite did not close: ${messageOf(error.cause)}`))
        )
    )

  // Made under another name until it is whole.
  if (!NodeFs.existsSync(data)) {
    yield* LocalState.onState(fresh, () => {
      NodeFs.rmSync(fresh, { recursive: true, force: true })
      NodeFs.mkdirSync(fresh, { mode: 0o700 })
    })
    const create = Effect.gen(function*() {
      const session = yield* open(fresh, "postgres")
      if (options.database === "postgres") return
      yield* Effect.tryPromise({
        try: () => session.exec(`CREATE DATABASE "${options.database.replaceAll("\"", "\"\"")}"`),
        catch: (cause) => new ProvisionerError({ message: `PGlite: CREATE DATABASE: ${messageOf(cause)}`, cause })
      })
    })
    yield* Effect.scoped(create)
    yield* LocalState.onState(data, () => NodeFs.renameSync(fresh, data))
  }
  const session = yield* open(data, options.database)
  const password: Redacted.Redacted = yield* LocalState.password(directory)
  const { serve } = yield* Effect.promise(() => import("./internal/NodePgliteServer.ts"))
  // Somebody may take the port before it is bound.
  const { lost, port } = yield* Effect.retry(
    Effect.flatMap(LocalState.port(directory), (wanted) => serve(session, { port: wanted, password })),
    { times: 3 }
  )
  return {
    info: Postgres.fromParts({ host: "127.0.0.1", port, database: options.database, username: "postgres", password }),
    description: `PGlite on 127.0.0.1:${port}, data in ${data}`,
    lost: Effect.map(lost, messageOf)
  }
})
