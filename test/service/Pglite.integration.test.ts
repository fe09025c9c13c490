import { describe, expect, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs"
import { connect as connectSocket } from "node:net"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { inspect } from "node:util"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodePglite from "../../src/service/NodePglite.ts"
import { addRow, ask, connect, inProcess, provide, provisioner, stateDirectory } from "./support/localDatabase.ts"

const pglite = "pglite" as const
const directoryOf = (state: string) => join(state, "pglite", "db-notes")

/** Bytes to a port; waits until the other side ends the connection, or for half a second. */
const throwAt = (port: number, bytes: Uint8Array) =>
  Effect.callback<void>((resume) => {
    const socket = connectSocket(port, "127.0.0.1", () => socket.write(bytes))
    const done = () => {
      socket.destroy()
      resume(Effect.void)
    }
    socket.resume().on("close", done).on("error", done).setTimeout(500, done)
  })

describe("the embedded PostgreSQL", () => {
  it.live("runs SQL; a restart keeps data, port and password; others may not look at them", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const run = Effect.scoped(Effect.gen(function*() {
        const url = yield* provide({ stateDirectory: state, database: pglite })
        const n = yield* addRow(url)
        const sql = yield* connect(url)
        return { url, n, who: yield* sql`SELECT current_database() AS db, current_user AS name` }
      }))
      const first = yield* run
      expect(first).toMatchObject({ n: 1, who: [{ db: "notes", name: "postgres" }] })
      expect(yield* run).toEqual({ ...first, n: 2 })
      expect(readdirSync(directoryOf(state)).toSorted()).toEqual(["data", "password", "port"])
      expect(statSync(join(directoryOf(state), "data")).mode & 0o777).toBe(0o700)
      expect(statSync(join(directoryOf(state), "password")).mode & 0o777).toBe(0o600)
    }).pipe(Effect.scoped))

  it.live("each database has data of its own, whatever its name", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const from = yield* provisioner({ stateDirectory: state, database: pglite })
      for (const name of ["postgres", "..", "Two \"2\" ü%/?"]) {
        const url = yield* ask(from, name)
        expect(yield* addRow(url)).toBe(1)
        const sql = yield* connect(url)
        expect(yield* sql`SELECT current_database() AS db`).toEqual([{ db: name }])
      }
      expect(existsSync(join(state, "data"))).toBe(false)
    }).pipe(Effect.scoped))

  it.live("a second instance is refused and told who the first is", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const { child, url } = yield* inProcess(state, pglite)
      expect(yield* addRow(url)).toBe(1)
      const refused = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database: pglite })))
      expect(refused.message).toMatch(new RegExp(`db-notes is in use by notes \\(pid ${child.pid}\\): stop it`))
      expect(yield* addRow(url)).toBe(2)
    }).pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer)))

  it.live("its process was killed: the next one finds what was committed", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const { child, url } = yield* inProcess(state, pglite)
      expect(yield* addRow(url)).toBe(1)
      yield* child.signal("SIGKILL")
      yield* child.exit
      expect(readdirSync(directoryOf(state)).some((name) => name.startsWith("claim-"))).toBe(true)
      expect(yield* Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: pglite }), addRow))).toBe(2)
      expect(readdirSync(directoryOf(state)).some((name) => name.startsWith("claim-"))).toBe(false)
    }).pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer)))

  it.live("the package is not there: what to install", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const hooks = `import { registerHooks } from "node:module"
        registerHooks({ resolve: (specifier, context, next) => specifier.startsWith("@electric-sql/")
          ? next("./gone.js", { ...context, parentURL: ${JSON.stringify(pathToFileURL(`${state}/x`).href)} })
          : next(specifier, context) })`
      const nodeArgs = [`--import=data:text/javascript,${encodeURIComponent(hooks)}`]
      const { error } = yield* inProcess(state, pglite, { nodeArgs })
      expect(error).toBe("the embedded PostgreSQL is not installed: npm install @electric-sql/pglite")
      expect(readdirSync(state)).toEqual([])
    }).pipe(Effect.scoped, Effect.provide(NodeProcessSpawner.layer)))

  it.live("directly, without a provisioner", () =>
    Effect.gen(function*() {
      yield* NodePglite.available
      const state = yield* stateDirectory
      const { description, info } = yield* NodePglite.start({
        stateDirectory: state,
        database: "notes",
        holder: "a test"
      })
      expect(description).toContain("PGlite on 127.0.0.1:")
      expect(Redacted.value(info.password)).toBe(readFileSync(join(directoryOf(state), "password"), "utf8"))
      expect(yield* addRow(Redacted.value(info.url))).toBe(1)
    }).pipe(Effect.scoped))
})

/** One that several tests have, one after the other: to make its files takes seconds. */
class Shared extends Context.Service<Shared, { readonly url: string; readonly lost: ReadonlyArray<unknown> }>()(
  "test/service/Pglite/Shared"
) {
  static readonly layer = Layer.effect(
    Shared,
    Effect.gen(function*() {
      const lost: Array<unknown> = []
      const onLost = (what: unknown) => Effect.sync(() => void lost.push(what))
      const url = yield* provide({ stateDirectory: yield* stateDirectory, database: pglite, onLost })
      return { url, lost }
    })
  )
}

layer(Shared.layer, { excludeTestServices: true, timeout: "2 minutes" })("one embedded PostgreSQL", (test) => {
  test.effect("many clients at once get their own answers, transactions and errors", () =>
    Effect.gen(function*() {
      const { url } = yield* Shared
      const pools = yield* Effect.all([connect(url), connect(url), connect(url)])
      const [first] = pools
      yield* first`CREATE TABLE many (id INT PRIMARY KEY)`
      const one = Effect.fnUntraced(function*(i: number) {
        const sql = pools[i % pools.length] ?? first
        switch (i % 4) {
          case 0:
            return yield* sql.withTransaction(Effect.gen(function*() {
              yield* sql`INSERT INTO many VALUES (${i})`
              // Others come in between if they can.
              yield* Effect.sleep("1 millis")
              const rows = yield* sql<{ readonly id: number }>`SELECT id FROM many WHERE id = ${i}`
              return rows[0]?.id
            }))
          case 1:
            return (yield* sql<{ readonly n: number }>`SELECT ${i}::int AS n`)[0]?.n
          case 2:
            return (yield* sql.unsafe<Record<string, number>>(`SELECT ${i}::int AS c${i}, repeat('x', 5000)`))[0]
              ?.[`c${i}`]
          default:
            return inspect(yield* Effect.flip(sql.unsafe(`SELEKT ${i}`)), { depth: 9 }).includes("SELEKT")
              ? i
              : undefined
        }
      })
      const all = Array.from({ length: 240 }, (_, i) => i)
      expect(yield* Effect.forEach(all, one, { concurrency: 24 })).toEqual(all)
      expect(yield* first`SELECT count(*)::int AS n FROM many`).toEqual([{ n: 60 }])
    }).pipe(Effect.scoped))

  test.effect("large values in both directions", () =>
    Effect.gen(function*() {
      const sql = yield* connect((yield* Shared).url)
      const [row] = yield* sql<{ readonly n: number; readonly back: string }>`
        SELECT length(${"z".repeat(2_000_000)}) AS n, repeat('y', 3000000) AS back`
      expect([row?.n, row?.back.length]).toEqual([2_000_000, 3_000_000])
    }).pipe(Effect.scoped))

  test.effect("a client that breaks off in a transaction leaves neither rows nor statements nor a lock", () =>
    Effect.gen(function*() {
      const { url } = yield* Shared
      const sql = yield* connect(url)
      yield* sql`CREATE TABLE rude (id INT)`
      const life = yield* Scope.make()
      const rude = yield* Scope.provide(connect(url), life)
      const reserved = yield* Scope.provide(rude.reserve, life)
      yield* reserved.executeRaw("BEGIN", [])
      yield* reserved.executeRaw("INSERT INTO rude VALUES ($1)", [1])
      yield* Scope.close(life, Exit.void)
      expect(yield* sql`SELECT count(*)::int AS n FROM rude`).toEqual([{ n: 0 }])
      const mine = yield* sql<{ readonly name: string }>`SELECT name FROM pg_prepared_statements`
      expect(new Set(mine.map(({ name }) => name.split(".")[0])).size).toBe(1)
    }).pipe(Effect.scoped))

  test.effect("a wrong password, COPY FROM STDIN and garbage are refused, and it goes on", () =>
    Effect.gen(function*() {
      const { lost, url } = yield* Shared
      const wrong = yield* connect(url.replace(new URL(url).password, "wrong"))
      expect(inspect(yield* Effect.flip(wrong`SELECT 1`), { depth: 9 })).toContain("password authentication failed")

      const sql = yield* connect(url)
      yield* sql`CREATE TABLE t (id INT)`
      const copies = [
        "COPY t FROM STDIN",
        "SELECT 1; copy t\nfrom stdin",
        "-- x\nCOPY t FROM STDIN",
        "/* a */ COPY t FROM/**/STDIN",
        "COPY t (\"id\") FROM STDIN"
      ]
      for (const text of copies) {
        expect(inspect(yield* Effect.flip(sql.unsafe(text)), { depth: 9 })).toMatch(
          /no COPY FROM STDIN|multiple commands/
        )
      }

      const startup = Buffer.from("\0\0\0\x17\0\x03\0\0user\0postgres\0\0", "latin1")
      const port = Number(new URL(url).port)
      const rubbish: ReadonlyArray<Uint8Array> = [
        Buffer.from("GET / HTTP/1.1\r\n\r\n"),
        Buffer.alloc(3),
        Buffer.alloc(64),
        Buffer.from([255, 255, 255, 255, 0, 3, 0, 0]),
        Buffer.from([0, 0, 0, 8, 4, 210, 22, 46]),
        startup,
        Buffer.concat([startup, Buffer.from([112, 255, 255, 255, 255])]),
        Buffer.concat([startup, Buffer.from("Q\0\0\0\x0dSELECT 1\0", "latin1")])
      ]
      yield* Effect.forEach(rubbish, (bytes) => throwAt(port, bytes), { concurrency: rubbish.length })
      expect(yield* addRow(url)).toBe(1)
      expect(lost).toEqual([])
    }).pipe(Effect.scoped))
})
