import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Container from "../../src/service/Container.ts"
import * as Custom from "../../src/service/Custom.ts"
import * as Postgres from "../../src/service/Postgres.ts"
import type { LoadContext } from "../../src/service/Resource.ts"

const context: LoadContext = {
  environment: "local",
  projectId: "p1",
  projectName: "My Notes",
  secrets: new Map(),
  stateDirectory: "/nowhere"
}
const decode = Schema.decodeUnknownEffect(Postgres.Output)
const long = {
  engine: "postgres",
  role_name: "app",
  role_password: "p@s/s:%",
  database_name: "no tes",
  port: "5433",
  hostname: "db.example.org",
  instance_name: null
}

describe("the answer", () => {
  it.effect("as an object: its parts, and a connection string that clients can read", () =>
    Effect.gen(function*() {
      const info = yield* decode(long)
      expect(info).toMatchObject({ host: "db.example.org", port: 5433, database: "no tes", username: "app" })
      expect(Redacted.value(info.password)).toBe("p@s/s:%")
      expect(Redacted.value(info.url)).toBe("postgresql://app:p%40s%2Fs%3A%25@db.example.org:5433/no%20tes")
      const again = Result.getOrThrow(Postgres.fromUrl(Redacted.value(info.url)))
      expect({ ...again, password: Redacted.value(again.password) }).toEqual({ ...info, password: "p@s/s:%" })
    }))

  it.effect.each(
    [
      ["postgres://app:pw@h/d", "h", 5432, "d", "app", "pw"],
      ["postgresql://app:p%zz@[::1]:6000/d?sslmode=require", "::1", 6000, "d", "app", "p%zz"],
      ["postgres://app@h", "h", 5432, "app", "app", ""],
      ["postgres://u:p@q@h/d", "h", 5432, "d", "u", "p@q"]
    ] as const
  )("as a connection string: %s", ([url, host, port, database, username, password]) =>
    Effect.gen(function*() {
      const info = yield* decode(url)
      expect(info).toMatchObject({ host, port, database, username })
      expect(Redacted.value(info.password)).toBe(password)
      expect(Redacted.value(info.url)).toBe(url)
    }))

  it.effect.each(
    [
      "",
      "planted",
      "mysql://planted@h/d",
      "postgres://u:planted@h:99999/d",
      { ...long, engine: "mysql", role_password: "planted" },
      { ...long, port: "0", role_password: "planted" },
      { ...long, port: "5432x", role_password: "planted" },
      { ...long, hostname: undefined, role_password: "planted" },
      null,
      5
    ].map((answer) => [answer])
  )("that is none is refused without showing it: %j", ([answer]) =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(decode(answer))
      expect(error.message).not.toContain("planted")
    }))

  it.effect("a port may be a number too, and other fields may come", () =>
    Effect.gen(function*() {
      const { instance_name: _, ...short } = long
      expect(yield* decode({ ...short, port: 5433, extra: true })).toMatchObject({ port: 5433 })
    }))

  it.each([".", "..", "a/b", "?", "#", "%2e"])("a database %j survives the connection string", (database) => {
    const parts = { host: "db", port: 5432, database, username: "u", password: Redacted.make("p") }
    const read = Result.getOrThrow(Postgres.fromUrl(Redacted.value(Postgres.fromParts(parts).url)))
    expect(read.database).toBe(database)
  })

  it.effect.prop(
    "any name and password survives the connection string",
    { username: Schema.NonEmptyString, password: Schema.String, database: Schema.NonEmptyString },
    ({ database, password, username }) =>
      Effect.sync(() => {
        if (![database, password, username].every((text) => text.isWellFormed())) return
        const info = Postgres.fromParts({ host: "::1", port: 1, database, username, password: Redacted.make(password) })
        const read = Result.getOrThrow(Postgres.fromUrl(Redacted.value(info.url)))
        expect(read).toMatchObject({ host: "::1", port: 1, database, username })
        expect(Redacted.value(read.password)).toBe(password)
      })
  )
})

describe("the request", () => {
  const load = (resource: ReturnType<typeof Postgres.make>, environment: LoadContext["environment"] = "local") =>
    Effect.flatMap(resource.load({ ...context, environment }), Schema.encodeUnknownEffect(resource.input))

  it.effect("is the one of the API", () =>
    Effect.gen(function*() {
      expect(Postgres.make("db").type).toBe("database::shared::postgres")
      expect(Postgres.make("db", { plan: "dedicated" }).type).toBe("database::aws_rds::postgres")
      expect(yield* load(Postgres.make("db"))).toEqual({ local_uri: null, db_name: null })
      const own = Postgres.make("db", { database: "x", localUrl: Redacted.make("postgres://h/d") })
      expect(yield* load(own)).toEqual({ local_uri: "postgres://h/d", db_name: "x" })
      expect(yield* load(own, "production")).toEqual({ local_uri: null, db_name: "x" })
    }))

  it.effect.each(["", "a\0b", "template1", "x".repeat(64), "ü".repeat(32)].map((name) => [name]))(
    "no database can be called %j",
    ([database]) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(load(Postgres.make("db", { database })))
        expect(String(error)).toMatch(/leave it out|choose/)
      })
  )
})

describe("a container", () => {
  it.effect("request and answer", () =>
    Effect.gen(function*() {
      const resource = Container.make("q", { image: "qdrant:1", port: 6334, env: { A: "1", B: Redacted.make("x=y") } })
      const input = yield* Effect.flatMap(resource.load(context), Schema.encodeUnknownEffect(resource.input))
      expect(input).toEqual({
        project_name: "My Notes",
        container_name: "service_My-Notes_q",
        image: "qdrant:1",
        port: "6334/tcp",
        env: ["A=1", "B=x=y"]
      })
      const answer = Schema.decodeUnknownEffect(resource.output)
      expect(yield* answer({ host_port: "32768" })).toEqual({ host: "127.0.0.1", port: 32768 })
      for (const wrong of [{ host_port: 32768 }, { host_port: "x" }, { host_port: "0" }, {}]) {
        yield* Effect.flip(answer(wrong))
      }
    }))

  it.effect("nothing that the engine could take for an option", () =>
    Effect.gen(function*() {
      const bad = Container.make("q", { image: "--privileged", port: 6334 })
      yield* Effect.flip(Effect.flatMap(bad.load(context), Schema.encodeUnknownEffect(bad.input)))
    }))
})

describe("a custom resource", () => {
  const resource = Custom.make("bucket", {
    schema: Schema.Struct({ type: Schema.String, config: Schema.FiniteFromString }),
    load: ({ projectName }) => Effect.succeed({ type: projectName, config: "7" })
  })

  it.effect("is never a request, whatever it looks like: its input is decoded to its output", () =>
    Effect.gen(function*() {
      expect(resource.kind).toBe("custom")
      const input = yield* Effect.flatMap(resource.load(context), Schema.encodeUnknownEffect(resource.input))
      expect(input).toEqual({ type: "My Notes", config: "7" })
      const output = yield* Schema.decodeUnknownEffect(resource.output)(input)
      expect(output).toEqual({ type: "My Notes", config: 7 })
    }))
})
