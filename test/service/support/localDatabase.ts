import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { chmodSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeProcessSpawner from "../../../src/process/NodeProcessSpawner.ts"
import { ProcessSpawner } from "../../../src/process/ProcessSpawner.ts"
import * as NodeLocalProvisioner from "../../../src/service/NodeLocalProvisioner.ts"
import { Provisioner } from "../../../src/service/Provisioner.ts"

export const isRoot = process.getuid?.() === 0

/** A state directory that a server of another user may pass through; gone with the scope. */
export const stateDirectory = Effect.acquireRelease(
  Effect.sync(() => {
    const path = mkdtempSync(join(tmpdir(), "service-state-"))
    chmodSync(path, 0o711)
    return path
  }),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** Live processes whose working directory is below a path, as that of each process of a server is. */
export const processesBelow = (path: string): ReadonlyArray<number> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      return readlinkSync(`/proc/${pid}/cwd`).startsWith(path) &&
        !/^\d+ \(.*\) Z /s.test(readFileSync(`/proc/${pid}/stat`, "latin1"))
    } catch {
      return false
    }
  })

/** Waits until it holds; after 15 seconds the test fails. */
export const eventually = (holds: () => boolean): Effect.Effect<void> =>
  Effect.suspend(() => holds() ? Effect.void : Effect.fail("not yet")).pipe(
    Effect.retry(Schedule.spaced("20 millis")),
    Effect.timeout("15 seconds"),
    Effect.orDie
  )

export type Options = Partial<NodeLocalProvisioner.LocalProvisionerOptions> & { readonly stateDirectory: string }

/** A provisioner as a service has one, for as long as the scope is open. */
export const provisioner = (options: Options) =>
  Effect.map(
    Layer.build(
      NodeLocalProvisioner.layer({ cwd: options.stateDirectory, projectName: "notes", ...options }).pipe(
        Layer.provide(NodeProcessSpawner.layer)
      )
    ),
    (context) => Context.get(context, Provisioner)
  )

/** Asks for a database and gives its connection string. */
export const ask = (from: Provisioner["Service"], database: string | null = null) =>
  Effect.map(
    from.request({
      name: "db",
      type: "database::shared::postgres",
      config: { local_uri: null, db_name: database }
    }),
    ({ output, state }) => {
      if (typeof output !== "string" || state !== "ready") throw new Error(`${state}: no connection string`)
      return output
    }
  )

/** The database of a service that is started for this. */
export const provide = (options: Options, database: string | null = null) =>
  Effect.flatMap(provisioner(options), (from) => ask(from, database))

/** A client with a pool of its own, for as long as the scope is open. */
export const connect = (url: string) =>
  Effect.map(
    Layer.build(PgClient.layer({ url: Redacted.make(url) })),
    (context) => Context.get(context, PgClient.PgClient)
  )

/** The fixture in a process of its own, with the database that it has got, or why it has none. */
export const inProcess = (
  state: string,
  kind: "postgres" | "pglite",
  options: { readonly prefix?: ReadonlyArray<string>; readonly nodeArgs?: ReadonlyArray<string> } = {}
) =>
  Effect.gen(function*() {
    const fixture = new URL("../fixtures/localDatabase.ts", import.meta.url).pathname
    const [program, ...args] = [
      ...(options.prefix ?? []),
      process.execPath,
      ...(options.nodeArgs ?? []),
      "--conditions=@effect-microvm-runtime/source",
      fixture,
      state,
      kind
    ]
    const spawner = yield* ProcessSpawner
    const child = yield* spawner.spawn(ChildProcess.make(program, args, { cwd: "/" }))
    const said = yield* child.stdout.pipe(
      Stream.decodeText,
      Stream.splitLines,
      Stream.map((line): unknown => JSON.parse(line)),
      Stream.filter((line): line is { readonly url?: string; readonly error?: string } =>
        typeof line === "object" && line !== null
      ),
      Stream.runHead,
      Effect.timeout("30 seconds"),
      Effect.orDie
    )
    if (said._tag === "None") throw new Error(`it said nothing: ${JSON.stringify(yield* child.tail)}`)
    return { child, url: said.value.url ?? "", error: said.value.error ?? "" }
  })

/** A table with one row more for each run. */
export const addRow = Effect.fnUntraced(function*(url: string) {
  const sql = yield* connect(url)
  yield* sql`CREATE TABLE IF NOT EXISTS runs (id SERIAL PRIMARY KEY)`
  yield* sql`INSERT INTO runs DEFAULT VALUES`
  const [row] = yield* sql<{ readonly n: number }>`SELECT count(*)::int AS n FROM runs`
  return row?.n
}, Effect.scoped)
