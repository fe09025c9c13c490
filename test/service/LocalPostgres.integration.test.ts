import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import { execFileSync } from "node:child_process"
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { join } from "node:path"
import { inspect } from "node:util"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeLocalPostgres from "../../src/service/NodeLocalPostgres.ts"
import {
  addRow,
  ask,
  connect,
  eventually,
  inProcess,
  isRoot,
  processesBelow,
  provide,
  provisioner,
  stateDirectory
} from "./support/localDatabase.ts"
import { canBeNobody } from "./support/nobody.ts"

const spawner = NodeProcessSpawner.layer
const server = await Effect.runPromise(
  Effect.result(NodeLocalPostgres.available({ stateDirectory: "/tmp" })).pipe(Effect.provide(spawner))
)
const why = server._tag === "Failure" ? `skipped: ${server.failure.message}` : ""
if (why !== "") console.warn(`A PostgreSQL server of one's own is ${why}`)
if (!isRoot) console.warn("Skipped: what root's server may not do, because that needs root")

/** Messages of log lines, oldest first. */
const capture = () => {
  const lines: Array<string> = []
  const layer = Logger.layer([Logger.make(({ message }) => void lines.push(inspect(message)))])
  return { lines, layer }
}

const postmaster = (state: string): number =>
  Number(readFileSync(join(state, "postgres", "data", "postmaster.pid"), "utf8").split("\n")[0])

const kill = (pid: number) => Effect.sync(() => process.kill(pid, "SIGKILL"))

const postgres = "postgres" as const

describe.skipIf(why !== "")(`a PostgreSQL server of one's own ${why}`, () => {
  it.live("runs SQL; a restart keeps data, port and password, and leaves no process", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const run = Effect.gen(function*() {
        const url = yield* provide({ stateDirectory: state, database: postgres })
        const n = yield* addRow(url)
        const sql = yield* connect(url)
        const [who] = yield* sql`SELECT current_database() AS db, current_user AS name`
        return { url, n, who }
      }).pipe(Effect.scoped)
      const first = yield* run
      expect(first).toMatchObject({ n: 1, who: { db: "notes", name: "postgres" } })
      expect(processesBelow(state)).toEqual([])
      expect(existsSync(join(state, "postgres", "data", "postmaster.pid"))).toBe(false)
      expect(readdirSync(join(state, "postgres")).toSorted()).toEqual(["data", "password", "port", "run"])
      expect(yield* run).toEqual({ ...first, n: 2 })
      expect(processesBelow(state)).toEqual([])
    }).pipe(Effect.scoped))

  it.live("several resources share one server, which ends with the last of them", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const { layer, lines } = capture()
      yield* Effect.gen(function*() {
        const from = yield* provisioner({ stateDirectory: state, database: postgres })
        const names = ["one", "Two \"2\" ü%/?", "postgres", "one"]
        const pids = yield* Effect.scoped(Effect.gen(function*() {
          yield* Effect.scoped(ask(from, "brief"))
          const urls = yield* Effect.forEach(names, (name) => ask(from, name), { concurrency: 4 })
          for (const [index, url] of urls.entries()) {
            const sql = yield* connect(url)
            expect(yield* sql`SELECT current_database() AS db`).toEqual([{ db: names[index] }])
          }
          const own = processesBelow(join(state, "postgres", "data"))
          expect(own).toContain(postmaster(state))
          return own
        }))
        expect(pids.length).toBeGreaterThan(0)
        expect(processesBelow(state)).toEqual([])
      }).pipe(Effect.scoped, Effect.provide(layer))
      expect(lines.filter((line) => line.includes("database: PostgreSQL")).length).toBe(2)
    }).pipe(Effect.scoped))

  it.live("is as private as it can be: own user, no password on a command line, nothing of our environment", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      process.env["PLANTED_SECRET"] = "planted"
      yield* Effect.addFinalizer(() => Effect.sync(() => delete process.env["PLANTED_SECRET"]))
      const { layer, lines } = capture()
      const url = yield* Effect.provide(provide({ stateDirectory: state, database: postgres }), layer)
      const password = readFileSync(join(state, "postgres", "password"), "utf8")
      expect(url).toContain(password)
      expect(lines.join("\n")).not.toContain(password)
      const pid = postmaster(state)
      expect(readFileSync(`/proc/${pid}/cmdline`, "utf8")).not.toContain(password)
      expect(readFileSync(`/proc/${pid}/environ`, "utf8")).not.toContain("planted")
      expect(statSync(`/proc/${pid}`).uid).not.toBe(0)
      expect(statSync(join(state, "postgres", "data")).mode & 0o777).toBe(0o700)
      expect(statSync(join(state, "postgres", "password")).mode & 0o777).toBe(0o600)
      const sql = yield* connect(url.replace(password, "wrong"))
      expect(inspect(yield* Effect.flip(sql`SELECT 1`), { depth: 9 })).toContain("password authentication failed")
    }).pipe(Effect.scoped))

  it.live("a second instance is refused and told who the first is; after it, the directory is free", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const holder = yield* inProcess(state, postgres)
      const url = holder.url
      expect(yield* addRow(url)).toBe(1)
      const refused = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database: postgres })))
      expect(refused._tag).toBe("ProvisionerError")
      expect(refused.message).toMatch(new RegExp(`postgres is in use by notes \\(pid ${holder.child.pid}\\): stop it`))
      // In our own process, too, and without harm to the first.
      expect(yield* addRow(url)).toBe(2)
      yield* holder.child.shutdown()
      expect(yield* Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: postgres }), addRow))).toBe(
        3
      )
    }).pipe(Effect.scoped, Effect.provide(spawner)))

  it.live("of two that start at the same moment at most one gets it", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const start = Effect.result(provide({ stateDirectory: state, database: postgres }))
      const results = yield* Effect.all([start, start, start], { concurrency: 3 })
      expect(results.filter((result) => result._tag === "Success").length).toBeLessThanOrEqual(1)
      for (const result of results) {
        if (result._tag === "Failure") expect(result.failure.message).toContain("in use by notes (pid ")
      }
    }).pipe(Effect.scoped))

  it.live("that the server was killed is noticed; the next one removes its lock and recovers its data", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const lost: Array<unknown> = []
      const { layer, lines } = capture()
      yield* Effect.gen(function*() {
        const onLost = (what: unknown) => Effect.sync(() => void lost.push(what))
        const url = yield* provide({ stateDirectory: state, database: postgres, onLost })
        expect(yield* addRow(url)).toBe(1)
        yield* kill(postmaster(state))
        yield* eventually(() => lost.length > 0)
        expect(lost).toEqual([{ resource: "PostgreSQL", why: "killed by SIGKILL" }])
      }).pipe(Effect.scoped, Effect.provide(layer))
      expect(lines.join("\n")).toContain("PostgreSQL is lost: killed by SIGKILL")
      expect(existsSync(join(state, "postgres", "data", "postmaster.pid"))).toBe(true)
      const again = Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: postgres }), addRow))
      expect(yield* Effect.provide(again, layer)).toBe(2)
      expect(lines.join("\n")).toContain("removed the lock of a server that did not end in order")
      // An orderly end is no loss.
      expect(lost.length).toBe(1)
    }).pipe(Effect.scoped))

  it.live("a lock whose pid belongs to somebody else by now is no hindrance", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const run = Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: postgres }), addRow))
      expect(yield* run).toBe(1)
      const lock = join(state, "postgres", "data", "postmaster.pid")
      writeFileSync(lock, `${process.pid}\n${state}/postgres/data\n1\n5432\n\n\n\nready   \n`)
      chmodSync(lock, 0o600)
      expect(yield* run).toBe(2)
    }).pipe(Effect.scoped))

  it.live("its supervisor was killed: the server goes with it, and the next one starts on the same data", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const { child, url } = yield* inProcess(state, postgres)
      expect(yield* addRow(url)).toBe(1)
      const claims = () => readdirSync(join(state, "postgres")).filter((name) => name.startsWith("claim-"))
      expect(claims().length).toBe(1)
      yield* kill(child.pid)
      yield* child.exit
      expect(yield* Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: postgres }), addRow))).toBe(
        2
      )
      expect(claims()).toEqual([])
      expect(processesBelow(state)).toEqual([])
    }).pipe(Effect.scoped, Effect.provide(spawner)))

  it.live("a client that stays connected does not keep the server from ending in order", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const life = yield* Scope.make()
      const url = yield* Scope.provide(provide({ stateDirectory: state, database: postgres }), life)
      const sql = yield* connect(url)
      yield* sql`SELECT 1`
      yield* Scope.close(life, Exit.void)
      expect(processesBelow(state)).toEqual([])
      expect(existsSync(join(state, "postgres", "data", "postmaster.pid"))).toBe(false)
    }).pipe(Effect.scoped))

  it.live("a lost password file, a half-made database, a port that is taken: it helps itself", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const directory = join(state, "postgres")
      mkdirSync(join(directory, "data.new", "base"), { recursive: true, mode: 0o711 })
      chmodSync(directory, 0o711)
      writeFileSync(join(directory, "data.new", "base", "junk"), "")
      const run = Effect.scoped(Effect.gen(function*() {
        const url = yield* provide({ stateDirectory: state, database: postgres })
        return { url, n: yield* addRow(url) }
      }))
      const first = yield* run
      rmSync(join(directory, "password"))
      const port = Number(readFileSync(join(directory, "port"), "utf8"))
      const squatter = createServer()
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => {
          squatter.listen(port, "127.0.0.1", () => resume(Effect.void))
        }),
        () => Effect.callback<void>((resume) => void squatter.close(() => resume(Effect.void)))
      )
      const second = yield* run
      expect([first.n, second.n]).toEqual([1, 2])
      expect(new URL(second.url).port).not.toBe(String(port))
      expect(new URL(second.url).password).not.toBe(new URL(first.url).password)
      // One that was lost in the writing is as good as none.
      writeFileSync(join(directory, "password"), "")
      expect((yield* run).n).toBe(3)
    }).pipe(Effect.scoped))

  it.live("in a directory whose path is too long for a unix socket", () =>
    Effect.gen(function*() {
      const state = join(yield* stateDirectory, "long".repeat(30))
      mkdirSync(state, { mode: 0o711 })
      expect(yield* Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database: postgres }), addRow))).toBe(
        1
      )
    }).pipe(Effect.scoped))

  it.live("data of another version: what to do, and nothing is touched", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const data = join(state, "postgres", "data")
      mkdirSync(data, { recursive: true, mode: 0o711 })
      chmodSync(join(state, "postgres"), 0o711)
      writeFileSync(join(data, "PG_VERSION"), "9.6\n")
      const error = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database: postgres })))
      expect(error.message).toMatch(/has version \d+.*was made by version 9\.6: install that one/)
      expect(readdirSync(data)).toEqual(["PG_VERSION"])
    }).pipe(Effect.scoped))

  // Without root, every other test here does that.
  it.live.skipIf(!canBeNobody)(
    "without root, as ourselves",
    () =>
      Effect.gen(function*() {
        const state = yield* stateDirectory
        const home = join(state, "nobody")
        mkdirSync(home)
        execFileSync("chown", ["65534:65534", home])
        const prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        const { child, error, url } = yield* inProcess(home, postgres, { prefix })
        expect(error).toBe("")
        expect(yield* addRow(url)).toBe(1)
        expect(statSync(join(home, "postgres", "data")).uid).toBe(65_534)
        yield* child.shutdown()
        yield* eventually(() => processesBelow(state).length === 0)
      }).pipe(Effect.scoped, Effect.provide(spawner))
  )

  it.live.skipIf(!isRoot)(
    `root's server cannot pass through the path: said so, and "auto" takes PGlite${
      isRoot ? "" : " (skipped: not root)"
    }`,
    () =>
      Effect.gen(function*() {
        const state = yield* stateDirectory
        chmodSync(state, 0o700)
        const error = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database: postgres })))
        expect(error.message).toMatch(/would be user \d+, who cannot enter .*service-state-.*choose a state directory/)
        const { layer, lines } = capture()
        const run = Effect.flatMap(provide({ stateDirectory: state, database: "auto" }), addRow)
        expect(yield* Effect.provide(Effect.scoped(run), layer)).toBe(1)
        expect(lines.join("\n")).toMatch(/embedded PGlite, for no PostgreSQL server can be used: .*cannot enter/s)
        expect(lines.join("\n")).toContain("database: PGlite on 127.0.0.1:")
      }).pipe(Effect.scoped)
  )

  it.live("\"auto\" takes the server where there is one", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const { layer, lines } = capture()
      const run = Effect.flatMap(provide({ stateDirectory: state }), addRow)
      expect(yield* Effect.provide(Effect.scoped(run), layer)).toBe(1)
      expect(lines.join("\n")).toContain("database: PostgreSQL ")
    }).pipe(Effect.scoped))

  it.live("\"auto\" stays with the data that are there: those of PGlite, also where there is a server now", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const add = (database: "auto" | "pglite") =>
        Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database }), addRow))
      expect(yield* add("pglite")).toBe(1)
      const { layer, lines } = capture()
      expect(yield* Effect.provide(add("auto"), layer)).toBe(2)
      expect(lines.join("\n")).toMatch(/embedded PGlite, as earlier runs have left its data in /)
    }).pipe(Effect.scoped))

  it.live("\"auto\" does not begin with an empty PGlite beside data that no server here can read", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const data = join(state, "postgres", "data")
      mkdirSync(data, { recursive: true })
      writeFileSync(join(data, "PG_VERSION"), "8.4\n")
      const error = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database: "auto" })))
      expect(error.message).toMatch(
        /data of earlier runs in .* cannot be used: .* was made by version 8\.4: install that one/
      )
      expect(existsSync(join(state, "pglite"))).toBe(false)
    }).pipe(Effect.scoped))

  it.live("\"auto\" goes on with PGlite's data, and says so, beside data that no server here can read", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const add = (database: "auto" | "pglite") =>
        Effect.scoped(Effect.flatMap(provide({ stateDirectory: state, database }), addRow))
      expect(yield* add("pglite")).toBe(1)
      const data = join(state, "postgres", "data")
      mkdirSync(data, { recursive: true })
      writeFileSync(join(data, "PG_VERSION"), "8.4\n")
      const { layer, lines } = capture()
      expect(yield* Effect.provide(add("auto"), layer)).toBe(2)
      expect(lines.join("\n")).toMatch(
        /data of a PostgreSQL server stay in .*postgres\/data, unseen: .* was made by version 8\.4/
      )
    }).pipe(Effect.scoped))
})

describe("a state directory that cannot be used", () => {
  it.live.each(["postgres", "pglite"] as const)("read-only: %s says so", (database) =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      if (isRoot) {
        execFileSync("mount", ["-t", "tmpfs", "-o", "ro", "none", state])
        yield* Effect.addFinalizer(() => Effect.sync(() => execFileSync("umount", [state])))
      } else chmodSync(state, 0o500)
      const error = yield* Effect.flip(Effect.scoped(provide({ stateDirectory: state, database })))
      expect(error._tag).toBe("ProvisionerError")
      expect(error.message).toMatch(/service-state-.*(read-only file system|permission denied): give a state directory/)
    }).pipe(Effect.scoped))

  it.live("a file", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      writeFileSync(join(state, "file"), "")
      const within = provide({ stateDirectory: join(state, "file"), database: "pglite" })
      expect((yield* Effect.flip(Effect.scoped(within))).message).toMatch(/is a file|a file of that name/)
    }).pipe(Effect.scoped))
})

describe("no PostgreSQL server on the machine", () => {
  it.live("says what to install", () =>
    Effect.gen(function*() {
      const state = yield* stateDirectory
      const path = process.env["PATH"]
      // Where packages put it is looked at as well, so an empty PATH is not enough everywhere.
      process.env["PATH"] = state
      yield* Effect.addFinalizer(() => Effect.sync(() => (process.env["PATH"] = path)))
      const found = yield* Effect.result(NodeLocalPostgres.available({ stateDirectory: state }))
      if (found._tag === "Failure") expect(found.failure.message).toMatch(/install|not found/)
      else expect(found.success.bin).not.toBe(state)
    }).pipe(Effect.scoped, Effect.provide(Layer.fresh(spawner))))
})
