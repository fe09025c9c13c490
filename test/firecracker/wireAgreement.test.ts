import { describe, expect, it } from "@effect/vitest"
import { Capabilities, FirecrackerApi, FirecrackerVersion, NodeApiTransport } from "effect-microvm-runtime/firecracker"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as FakeFirecracker from "../../src/testing/FakeFirecracker.ts"
import { bodies } from "./bodies.ts"

const architecture = "x86_64"
const releases = [
  "1.7.0",
  "1.8.0",
  "1.9.1",
  "1.10.1",
  "1.11.0",
  "1.12.1",
  "1.13.2",
  "1.14.4",
  "1.15.1",
  "1.16.1",
  "1.17.0"
]

const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "wire-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/** Every endpoint with its least body, with each field that there is, and with each value that is a feature of its own. */
const calls: ReadonlyArray<Capabilities.Call> = Object.values<Capabilities.Endpoint>(Capabilities.endpoints).flatMap(
  ({ body: name, id, method, path }) => {
    // Metrics is the one body of these in which Firecracker overlooks what it does not know, so it does not tell.
    if (name === "Metrics") return []
    if (name === undefined) return [{ method, path: path.replace("{id}", "x") }]
    const { full, least } = bodies[name]
    const single = Object.entries(full).flatMap(([field, value]) => [{ ...least, [field]: value }])
    const valued = Capabilities.features.flatMap(({ architecture: only, body, field, value }) =>
      body === name && value !== undefined && (only ?? architecture) === architecture
        ? [{ ...least, [field]: value }]
        : []
    )
    return [least, ...single, ...valued].map((body: Readonly<Record<string, unknown>>) => ({
      method,
      path: path.replace("{id}", id === undefined ? "" : String(body[id])),
      body
    }))
  }
)

describe("the capability table and the fake, which know nothing of each other, agree", () => {
  it.live.each(releases)("on %s", (release) =>
    Effect.gen(function*() {
      const directory = yield* temporary
      const socketPath = join(directory, "api.sock")
      yield* FakeFirecracker.serve({ socketPath, cwd: directory, version: release, architecture })
      const transport = yield* NodeApiTransport.make({ socketPath })
      const version = FirecrackerVersion.parse(release)
      if (version === undefined) throw new Error(release)
      expect(yield* FirecrackerApi.readVersion(transport)).toEqual(version)
      const target: Capabilities.Target = { version, architecture }
      const api = FirecrackerApi.make(transport, target)
      for (const call of calls) {
        const text = `${call.method} ${call.path} ${JSON.stringify(call.body)}`
        const refused = yield* api.request(call.method, call.path, call.body).pipe(
          Effect.as("understood"),
          Effect.catchReason("FirecrackerError", "ApiFault", ({ kind, message }) =>
            Effect.succeed(
              kind === "BadBody" || kind === "UnknownRoute" || kind === "EmptyBody" ? message : "understood"
            ))
        )
        const known = Capabilities.check(target, call)
        const same = Result.isSuccess(known) && JSON.stringify(known.success) === JSON.stringify(call.body)
        expect([text, refused === "understood" ? true : refused]).toEqual([text, same ? true : expect.any(String)])
      }
    }).pipe(Effect.scoped), 10_000)
})
