/**
 * A PostgreSQL database, as a resource.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Custom from "./Custom.ts"
import type { Resource } from "./Resource.ts"

/**
 * How to reach a database. All of it is in `url` too, with what else the connection string had (`?sslmode=…`).
 *
 * @category models
 * @since 0.1.0
 */
export interface PostgresInfo {
  /** A host name or an address; empty when `url` names a unix socket. */
  readonly host: string
  readonly port: number
  readonly database: string
  readonly username: string
  /** Empty when there is none. */
  readonly password: Redacted.Redacted
  readonly url: Redacted.Redacted
}

/**
 * `shared`: a database on a server that others use too. `dedicated`: a server of its own (AWS RDS, where Shuttle's API is
 * spoken). Locally there is no difference.
 *
 * @category options
 * @since 0.1.0
 */
export type Plan = "shared" | "dedicated"

/**
 * What the API calls the two plans.
 *
 * @category constants
 * @since 0.1.0
 */
export const types = {
  shared: "database::shared::postgres",
  dedicated: "database::aws_rds::postgres"
} as const satisfies Record<Plan, string>

/** What PostgreSQL cuts a name down to, silently (NAMEDATALEN - 1). */
const longestName = 63

const DatabaseName = Schema.String.check(
  Schema.makeFilter((name: string) =>
    name === ""
      ? "is empty: leave it out to take the name of the project"
      : name.includes("\0")
      ? "has a NUL in it: choose another name"
      : name === "template0" || name === "template1"
      ? "is a template of PostgreSQL's own: choose another name"
      : new TextEncoder().encode(name).length > longestName
      ? `is longer than ${longestName} bytes: choose a shorter name`
      : undefined
  )
)

/**
 * What is asked of the provisioner. `local_uri` is the connection string of a database that is there already.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Input = Schema.Struct({
  local_uri: Schema.NullOr(Schema.String),
  db_name: Schema.NullOr(DatabaseName)
})

/**
 * The longer of the two forms in which a provisioner answers; the shorter one is a connection string. `port` is a string of
 * digits; a number is taken too.
 *
 * @category schemas
 * @since 0.1.0
 */
export const DatabaseInfo = Schema.Struct({
  engine: Schema.Literals(["postgres", "postgresql"]),
  role_name: Schema.String,
  role_password: Schema.String,
  database_name: Schema.String,
  port: Schema.Union([Schema.String, Schema.Int]),
  hostname: Schema.String,
  instance_name: Schema.optionalKey(Schema.NullOr(Schema.String))
})

const decodePart = (part: string): string => {
  try {
    return decodeURIComponent(part)
  } catch {
    // A lone percent sign is taken for itself, as most clients do.
    return part
  }
}

/**
 * Reads a connection string, `postgres://user:password@host:port/database`. What cannot be read is described without its
 * value, which may hold a password.
 *
 * ```ts import.meta.vitest
 * import { Postgres } from "effect-microvm-runtime/service"
 * import * as Result from "effect/Result"
 * const info = Result.getOrThrow(Postgres.fromUrl("postgres://app:p%40ss@db.example.org/notes"))
 * const { host, port, database, username } = info
 * ;[host, port, database, username] // => ["db.example.org", 5432, "notes", "app"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromUrl = (text: string): Result.Result<PostgresInfo, string> => {
  const url = URL.parse(text)
  if (url === null || !/^postgres(ql)?:$/.test(url.protocol)) {
    return Result.fail(
      "is no connection string of PostgreSQL: write postgres://user:password@host:port/database, with other characters " +
        "than letters and digits percent-encoded"
    )
  }
  const username = decodePart(url.username)
  // Not `pathname`: to a URL, "." and ".." are steps on the way, and here they are names.
  const [, path = ""] = /^[^/]*\/\/[^/?#]*\/([^?#]*)/.exec(text) ?? []
  return Result.succeed({
    host: decodePart(url.hostname.replace(/^\[(.*)\]$/, "$1")),
    port: url.port === "" ? 5432 : Number(url.port),
    // As libpq does: a database that is not named has the name of the user.
    database: decodePart(path) || username,
    username,
    password: Redacted.make(decodePart(url.password)),
    url: Redacted.make(text)
  })
}

/**
 * The connection string of its parts, percent-encoded where it must be.
 *
 * ```ts import.meta.vitest
 * import { Postgres } from "effect-microvm-runtime/service"
 * import * as Redacted from "effect/Redacted"
 * const info = Postgres.fromParts({
 *   host: "::1",
 *   port: 5433,
 *   database: "notes",
 *   username: "app",
 *   password: Redacted.make("a/b")
 * })
 * Redacted.value(info.url) // => "postgresql://app:a%2Fb@[::1]:5433/notes"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromParts = (parts: Omit<PostgresInfo, "url">): PostgresInfo => {
  const host = parts.host.includes(":") ? `[${parts.host}]` : encodeURIComponent(parts.host)
  const user = `${encodeURIComponent(parts.username)}:${encodeURIComponent(Redacted.value(parts.password))}`
  const url = `postgresql://${user}@${host}:${parts.port}/${encodeURIComponent(parts.database)}`
  return { ...parts, url: Redacted.make(url) }
}

const fromAnswer = (answer: string | typeof DatabaseInfo.Type): Result.Result<PostgresInfo, string> => {
  if (typeof answer === "string") return fromUrl(answer)
  const port = Number(answer.port)
  if (!/^\d+$/.test(String(answer.port)) || port < 1 || port > 65_535) {
    return Result.fail("has a port that is no number from 1 to 65535")
  }
  return Result.succeed(fromParts({
    host: answer.hostname,
    port,
    database: answer.database_name,
    username: answer.role_name,
    password: Redacted.make(answer.role_password)
  }))
}

/**
 * What the provisioner answers, as the service sees it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Output: Schema.Codec<PostgresInfo, string | typeof DatabaseInfo.Encoded> = Schema.Union([
  Schema.String,
  DatabaseInfo
]).pipe(
  Schema.decodeTo(
    Schema.Struct({
      host: Schema.String,
      port: Schema.Int,
      database: Schema.String,
      username: Schema.String,
      password: Schema.Redacted(Schema.String),
      url: Schema.Redacted(Schema.String)
    }),
    SchemaTransformation.transformEffect({
      decode: (answer, options) =>
        Result.match(fromAnswer(answer), {
          onSuccess: Effect.succeed,
          onFailure: (message) => Effect.fail(new SchemaIssue.InvalidValue({ message }, undefined, options))
        }),
      encode: (info) => Effect.succeed(Redacted.value(info.url))
    })
  )
)

/**
 * A database. With no options it is one of the project's name, wherever the service runs; locally on a server of this
 * machine.
 *
 * **Gotchas**
 *
 * - The service connects by itself, with the client that it likes: a server that is `ready` may still refuse it.
 *
 * ```ts import.meta.vitest
 * import { Postgres } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 *
 * const db = Postgres.make("db", { database: "notes" })
 * // PgClient.layer({ url }) of @effect/sql-pg takes it as it is.
 * const url = Effect.map(db.get, (info) => info.url)
 * db.type // => "database::shared::postgres"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const Name extends string>(name: Name, options: {
  /** Default `"shared"`. */
  readonly plan?: Plan | undefined
  /** The name of the database, 1 to 63 bytes. Default: that of the project. */
  readonly database?: string | undefined
  /** Locally, the connection string of a database to use instead of making one. It is not looked at in production. */
  readonly localUrl?: string | Redacted.Redacted | undefined
} = {}): Resource<Name, PostgresInfo> =>
  Custom.provisioned(name, {
    type: types[options.plan ?? "shared"],
    input: Input,
    output: Output,
    load: ({ environment }) => {
      const url = environment === "local" ? options.localUrl : undefined
      return Effect.succeed({
        local_uri: Redacted.isRedacted(url) ? Redacted.value(url) : url ?? null,
        db_name: options.database ?? null
      })
    }
  })
