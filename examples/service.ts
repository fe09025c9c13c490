/**
 * A complete service: an HTTP API over a database, a secret, a background task and a child process. It runs on this machine
 * with nothing prepared: the database is a PostgreSQL that the machine has, else an embedded one.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { NodeHttpPart, Part, Postgres, ProcessPart, Secrets, Service, Task } from "effect-microvm-runtime/service"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"

// What it needs. Where it is deployed, the platform's API provides these; here, this machine does.
const database = Postgres.make("database")
const secrets = Secrets.make("secrets")

const Note = Schema.Struct({ text: Schema.NonEmptyString })

const client = Part.make(
  "sql",
  Layer.unwrap(Effect.map(database.get, ({ url }) => PgClient.layer({ url })))
)

const tables = Part.make(
  "tables",
  Layer.effectDiscard(Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text, at timestamptz DEFAULT now())`
  })),
  { dependsOn: [client] }
)

const Routes = HttpRouter.use(Effect.fnUntraced(function*(router) {
  const sql = yield* SqlClient.SqlClient
  const key = Option.map((yield* secrets.get).get("WRITE_KEY"), Redacted.value)

  yield* router.add(
    "GET",
    "/notes",
    Effect.flatMap(sql`SELECT id, text FROM notes ORDER BY id`, HttpServerResponse.json)
  )
  yield* router.add(
    "POST",
    "/notes",
    Effect.gen(function*() {
      const { headers } = yield* HttpServerRequest.HttpServerRequest
      if (Option.isSome(key) && headers["x-key"] !== key.value) return HttpServerResponse.empty({ status: 401 })
      const { text } = yield* HttpServerRequest.schemaBodyJson(Note)
      const rows = yield* sql`INSERT INTO notes (text) VALUES (${text}) RETURNING id, text`
      return yield* HttpServerResponse.json(rows[0], { status: 201 })
    }).pipe(Effect.catchTag("SchemaError", ({ message }) => HttpServerResponse.json({ message }, { status: 400 })))
  )
  yield* router.add("GET", "/slow", Effect.as(Effect.sleep("600 millis"), HttpServerResponse.text("done\n")))
}))

const api = NodeHttpPart.make("api", Routes, { dependsOn: [client, tables] })

// Old notes go. A failure is tried again, half a minute later at most; the eleventh ends the service.
const sweep = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`DELETE FROM notes WHERE at < now() - interval '1 day'`
}).pipe(Effect.repeat(Schedule.spaced("1 minute")))
const backOff = Schedule.min([Schedule.exponential("1 second"), Schedule.spaced("30 seconds")])
const retry = Schedule.max([backOff, Schedule.recurs(10)])
const sweeper = Task.make("sweeper", sweep, { dependsOn: [client, tables], restart: retry })

// Ends with the service, whatever happens to it, and the service ends when it does.
const ticker = ProcessPart.make("ticker", ChildProcess.make("sh", ["-c", "while :; do date; sleep 60 & wait; done"]))

Service.main(
  Service.make({ name: "notes", version: "1.0.0", resources: [database, secrets], parts: [api, sweeper, ticker] })
)
