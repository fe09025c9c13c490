import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { TestConsole } from "effect/testing"
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inspect } from "node:util"
import * as NodeProcessSpawner from "../../src/process/NodeProcessSpawner.ts"
import * as NodeLocalProvisioner from "../../src/service/NodeLocalProvisioner.ts"
import * as NodeLocalSecrets from "../../src/service/NodeLocalSecrets.ts"
import { Provisioner } from "../../src/service/Provisioner.ts"

const directory = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "local-secrets-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)

/** A directory with these files, each with mode 0600. */
const having = (files: Readonly<Record<string, string | Uint8Array>>) =>
  Effect.tap(directory, (cwd) =>
    Effect.sync(() => {
      for (const [name, text] of Object.entries(files)) writeFileSync(join(cwd, name), text, { mode: 0o600 })
    }))

const values = (cwd: string, file?: string) =>
  Effect.map(
    NodeLocalSecrets.load({ cwd, file }),
    ({ secrets }) => Array.from(secrets, ([name, value]) => [name, Redacted.value(value)])
  )

const faults = (cwd: string, file?: string) =>
  Effect.map(Effect.flip(NodeLocalSecrets.load({ cwd, file })), (error) => {
    expect(inspect(error, { depth: 9, showHidden: true })).not.toContain("planted")
    return error.message
  })

describe("which file", () => {
  it.effect("the first that is there, alone; a directory of the name is none", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ "Secrets.toml": "A = \"toml\"", ".env": "A=env\nB=env" })
      expect(yield* values(cwd)).toEqual([["A", "toml"]])
      mkdirSync(join(cwd, "Secrets.dev.toml"))
      expect(yield* values(cwd)).toEqual([["A", "toml"]])
      rmSync(join(cwd, "Secrets.toml"))
      expect(yield* values(cwd)).toEqual([["A", "env"], ["B", "env"]])
      rmSync(join(cwd, "Secrets.dev.toml"), { recursive: true })
      writeFileSync(join(cwd, "Secrets.dev.toml"), "", { mode: 0o600 })
      expect(yield* values(cwd)).toEqual([])
    }))

  it.effect("none is no fault, unless it was named", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ other: "A=1" })
      expect(yield* values(cwd)).toEqual([])
      expect(yield* values(cwd, "other")).toEqual([["A", "1"]])
      expect(yield* faults(cwd, "absent.toml")).toContain("absent.toml: there is no such file")
    }))

  it.effect("others may read it: a warning; everybody may write it: refused", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": "A=planted" })
      expect((yield* NodeLocalSecrets.load({ cwd })).warnings).toEqual([])
      chmodSync(join(cwd, ".env"), 0o664)
      expect((yield* NodeLocalSecrets.load({ cwd })).warnings.join()).toMatch(/\.env: .*mode 0664.*chmod 600/)
      chmodSync(join(cwd, ".env"), 0o606)
      expect(yield* faults(cwd)).toMatch(/everybody may write it \(mode 0606\): chmod 600/)
    }))

  it.effect("not UTF-8, or a file that is far too large", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": Uint8Array.of(65, 61, 255) })
      expect(yield* faults(cwd)).toContain("is not UTF-8")
      writeFileSync(join(cwd, ".env"), Buffer.alloc(17 * 1024 * 1024, 65))
      expect(yield* faults(cwd)).toContain("is larger than 16777216 bytes")
    }))
})

describe("TOML", () => {
  it.effect("odd names and values of a megabyte, in ascending order", () =>
    Effect.gen(function*() {
      const big = "x".repeat(1_000_000)
      const cwd = yield* having({
        "Secrets.toml": `\uFEFFB = "${big}"\r\n"__proto__" = "p"\r\n"a b" = ''' '"# '''\r\n"" = ""\r\nÜ = "ü"`
          .replace("Ü", "\"Ü\"")
      })
      expect(yield* values(cwd)).toEqual([["", ""], ["B", big], ["__proto__", "p"], ["a b", " '\"# "], ["Ü", "ü"]])
    }))

  it.effect("each value that is no string is named, with its kind, and not shown", () =>
    Effect.gen(function*() {
      const cwd = yield* having({
        "Secrets.toml": "A = 4711\nOK = \"planted\"\nC = true\nD = [\"planted\"]\n[E]\nf = \"planted\"\n"
      })
      const message = yield* faults(cwd)
      expect(message).toMatch(/Secrets\.toml: "A" is a number.*"C" is a boolean.*"D" is an array.*"E" is a table/)
      expect(message).not.toMatch(/4711|"OK"/)
    }))

  it.effect.each(
    [
      ["A = planted", "line 1, column"],
      ["A = \"x\"\nB = \"planted", "line 2, column"],
      ["A = \"x\"\nA = \"planted\"", "line 2, column"],
      ["A = \"planted\\q\"", "line 1, column"],
      ["planted", "line 1, column"]
    ] as const
  )("a fault is told by its place, the text is not shown: %j", ([text, place]) =>
    Effect.gen(function*() {
      const cwd = yield* having({ "Secrets.toml": text })
      expect(yield* faults(cwd)).toContain(place)
    }))
})

describe(".env", () => {
  it.effect.each(
    [
      ["A=1", "1"],
      ["  export A = 1  \r\n", "1"],
      ["A=a b # comment", "a b"],
      ["A=a#b", "a#b"],
      ["A=", ""],
      ["A= # nothing", ""],
      ["A=\"a\\nb\\\\ \\\" # \" # comment", "a\nb\\ \" # "],
      ["A='a\\n\nb'", "a\\n\nb"],
      ["A=`it's`", "it's"],
      ["A=it's", "it's"],
      ["# c\n\nA=1\nA=2", "2"],
      ["\uFEFFA=1", "1"]
    ] as const
  )("%j", ([text, value]) =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": text })
      expect(yield* values(cwd)).toEqual([["A", value]])
    }))

  it.effect("a value of a megabyte", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": `A="${"x\\n".repeat(350_000)}"` })
      const [found] = yield* values(cwd)
      expect(found?.[1] === "x\n".repeat(350_000)).toBe(true)
    }))

  it.effect("odd names", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": "__proto__=p\na.b-c=1\n1=2\nexport=3" })
      expect(yield* values(cwd)).toEqual([["1", "2"], ["__proto__", "p"], ["a.b-c", "1"], ["export", "3"]])
    }))

  it.effect("all faults at once, by line, without a value", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": "planted\nOK=1\nA=\"planted\" planted\n=planted\nB='planted" })
      const message = yield* faults(cwd)
      expect(message).toMatch(/line 1: .*line 3: .*A.*line 4: .*line 5: .*B=/s)
    }))
})

describe("the local provisioner", () => {
  const withProvisioner = <A, E>(
    options: Partial<NodeLocalProvisioner.LocalProvisionerOptions> & { readonly cwd: string },
    use: (provisioner: Provisioner["Service"]) => Effect.Effect<A, E>
  ) =>
    Effect.provide(
      Provisioner.use(use),
      NodeLocalProvisioner.layer({ stateDirectory: join(options.cwd, "state"), projectName: "notes", ...options }).pipe(
        Layer.provide(NodeProcessSpawner.layer)
      )
    )

  it.effect("gives the secrets; names and warnings are logged, values are not", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ ".env": "KEY=planted" })
      chmodSync(join(cwd, ".env"), 0o644)
      const secrets = yield* withProvisioner({ cwd }, (provisioner) => provisioner.secrets)
      expect(secrets.get("KEY")).toBeDefined()
      const log = inspect(yield* TestConsole.logLines, { depth: 9 })
      expect(log).toContain("secrets: KEY of ")
      expect(log).toContain("chmod 600")
      expect(log).not.toContain("planted")
    }))

  it.effect("a file that cannot be used is the provisioner's error", () =>
    Effect.gen(function*() {
      const cwd = yield* having({ "Secrets.toml": "A = 1" })
      const error = yield* Effect.flip(withProvisioner({ cwd }, (provisioner) => provisioner.secrets))
      expect(error).toMatchObject({ _tag: "ProvisionerError" })
      expect(error.message).toContain("\"A\" is a number")
    }))

  it.effect("a database that is there already is given back, and nothing is started", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      const config = { local_uri: "postgres://h/d", db_name: null }
      const request = { name: "db", type: "database::shared::postgres", config }
      const answer = yield* withProvisioner({ cwd }, (provisioner) => Effect.scoped(provisioner.request(request)))
      expect(answer).toEqual({ type: request.type, state: "ready", output: "postgres://h/d" })
    }))

  it.effect("what it cannot make or read, it says", () =>
    Effect.gen(function*() {
      const cwd = yield* directory
      const fail = (type: string, config: unknown) =>
        Effect.flip(
          withProvisioner({ cwd }, (provisioner) => Effect.scoped(provisioner.request({ name: "x", type, config })))
        )
      expect((yield* fail("database::aws_rds::mysql", {})).message).toMatch(
        /^nothing on this machine makes a resource of type "database::aws_rds::mysql" .*custom resource/
      )
      const unread = yield* fail("database::shared::postgres", { local_uri: 5, db_name: { planted: "planted" } })
      expect(unread.message).toContain("the request cannot be read")
      expect(unread.message).not.toContain("planted")
    }))

  describe("containers", () => {
    const config = {
      project_name: "notes",
      container_name: "service_notes_q",
      image: "qdrant:1",
      port: "6334/tcp",
      env: ["KEY=planted"]
    }

    /** Runs with these programs first on PATH; `docker` and `podman` that the machine may have are hidden. */
    const withPrograms = <A, E, R>(
      programs: Readonly<Record<string, string>>,
      use: (cwd: string) => Effect.Effect<A, E, R>
    ) =>
      Effect.gen(function*() {
        const cwd = yield* directory
        const bin = join(cwd, "bin")
        mkdirSync(bin)
        for (const [name, script] of Object.entries(programs)) writeFileSync(join(bin, name), script, { mode: 0o755 })
        const path = process.env["PATH"]
        yield* Effect.acquireRelease(
          Effect.sync(() => (process.env["PATH"] = `${bin}:/usr/bin:/bin`)),
          () => Effect.sync(() => (process.env["PATH"] = path))
        )
        return yield* use(cwd)
      })

    const request = (cwd: string) =>
      withProvisioner(
        { cwd },
        (provisioner) => Effect.scoped(provisioner.request({ name: "q", type: "container", config }))
      )

    it.live("without an engine that works: what to do", () =>
      withPrograms(
        { docker: "#!/bin/sh\necho 'no daemon here' >&2; exit 1\n", podman: "#!/bin/sh\nexit 125\n" },
        Effect.fnUntraced(function*(cwd) {
          const error = yield* Effect.flip(request(cwd))
          expect(error.message).toMatch(/needs docker or podman.*install and start.*no daemon here/)
        })
      ).pipe(Effect.scoped))

    // A stand-in that keeps to the command line of docker(1), as no engine can be counted on: it "runs" a server.
    const docker = `#!${process.execPath}
const { appendFileSync, writeFileSync, readFileSync } = require("node:fs")
const args = process.argv.slice(2), home = __dirname + "/../"
appendFileSync(home + "calls", JSON.stringify({ args, key: process.env.KEY }) + "\\n")
if (args[0] === "port") try { console.log("127.0.0.1:" + readFileSync(home + "port")) } catch { process.exit(1) }
if (args[0] === "run") {
  const server = require("node:net").createServer().listen(0, "127.0.0.1", () => writeFileSync(home + "port", String(server.address().port)))
  process.on("SIGTERM", () => { appendFileSync(home + "calls", '"stopped"\\n'); process.exit(0) })
}
`
    it.live("runs it in the foreground, finds its port, stops and removes it", () =>
      withPrograms(
        { docker },
        Effect.fnUntraced(function*(cwd) {
          const answer = yield* request(cwd)
          const calls = readFileSync(join(cwd, "calls"), "utf8").trim().split("\n").map((line): unknown =>
            JSON.parse(line)
          )
          expect(answer.output).toEqual({ host_port: readFileSync(join(cwd, "port"), "utf8") })
          expect(calls).toContainEqual({
            args: [
              "run",
              "--rm",
              "--name=service_notes_q",
              "--publish=127.0.0.1::6334/tcp",
              "--env=KEY",
              "--",
              "qdrant:1"
            ],
            key: "planted"
          })
          const stopped = calls.indexOf("stopped")
          expect(stopped).toBeGreaterThan(0)
          expect(calls.slice(stopped)).toContainEqual({ args: ["rm", "--force", "service_notes_q"] })
        })
      ).pipe(Effect.scoped))
  })
})
