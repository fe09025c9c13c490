import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { mkdirSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname } from "node:path"
import { createInterface } from "node:readline"
import { reason, using, withDirectory } from "./support.ts"

const supervisor = new URL("fixtures/supervisor.ts", import.meta.url).pathname
const command = ["--conditions=@effect-microvm-runtime/source", supervisor]

/** Started, and killed when the test is over. */
const start = (...args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => spawn(process.execPath, [...command, ...args], { stdio: ["ignore", "pipe", "inherit"] })),
    (child) => Effect.promise(() => kill(child))
  )

const kill = async (child: ChildProcess) => {
  if (child.exitCode !== null || child.signalCode !== null) return
  const closed = once(child, "close")
  child.kill("SIGKILL")
  await closed
}

const firstLine = (child: ChildProcess) =>
  Effect.promise(async () => {
    if (child.stdout === null) return ""
    for await (const line of createInterface(child.stdout)) return line
    return ""
  })

const free = (directory: string) => using(directory, (journal) => journal.entries)

it.live("another process is told who has it, and has it as soon as that one is killed", () =>
  withDirectory((directory) =>
    Effect.scoped(Effect.gen(function*() {
      const child = yield* start("hold", directory)
      expect(yield* firstLine(child)).toBe("ready 0")
      const held = yield* reason(free(directory))
      expect(held).toMatchObject({ _tag: "LeaseHeld", directory, holder: { pid: child.pid } })
      yield* Effect.promise(() => kill(child))
      const entries = yield* free(directory)
      expect(entries.map(({ id }) => id)).toEqual(["web-1"])
    }))
  ))

it.live("a child of it does not inherit it", () =>
  withDirectory((directory) =>
    Effect.scoped(Effect.gen(function*() {
      const child = yield* start("hold", directory, "sleep", "120")
      const [, pid = ""] = (yield* firstLine(child)).split(" ")
      yield* Effect.addFinalizer(() => Effect.sync(() => process.kill(Number(pid), "SIGKILL")))
      yield* Effect.sync(() => child.kill("SIGKILL"))
      yield* Effect.promise(() => once(child, "exit"))
      expect(process.kill(Number(pid), 0)).toBe(true)
      yield* free(directory)
    }))
  ))

it.live("what was acknowledged before a SIGKILL is there, whenever that comes", () =>
  withDirectory((directory) =>
    Effect.gen(function*() {
      const counts: Record<string, number> = { a: 0, b: 0, c: 0 }
      for (let round = 0; round < 8; round++) {
        yield* Effect.scoped(Effect.gen(function*() {
          const child = yield* start("write", directory)
          let text = ""
          child.stdout?.on("data", (chunk: Buffer) => {
            text += chunk.toString()
          })
          const begun = once(child.stdout ?? child, "data")
          yield* Effect.promise(() => begun)
          yield* Effect.sleep(`${Math.round(Math.random() * 40)} millis`)
          yield* Effect.promise(() => kill(child))
          for (const line of text.split("\n").slice(0, -1)) {
            const [id = "", last] = line.split(" ")
            counts[id] = Number(last) + 1
          }
        }))
        yield* using(directory, (journal) =>
          Effect.gen(function*() {
            expect(yield* journal.quarantined).toEqual([])
            for (const entry of yield* journal.entries) {
              const { claims } = yield* entry.record
              expect(claims.map(({ data }) => data)).toEqual(claims.map((_, index) => index))
              const acknowledged = counts[entry.id] ?? 0
              expect([acknowledged, acknowledged + 1]).toContain(claims.length)
              counts[entry.id] = claims.length
            }
          }))
      }
      expect(Object.values(counts).reduce((sum, count) => sum + count, 0)).toBeGreaterThanOrEqual(8)
    })
  ))

const mountable = spawnSync("unshare", ["--mount", "true"]).status === 0
if (!mountable) console.warn("skipped: tests with mounts, for there can be no mount namespace here")

/** Runs a script where a tmpfs of 256 KiB is at `$1/small`, and `supervisor` is the program. */
const mounted = (directory: string, script: string): ReadonlyArray<string> => {
  mkdirSync(`${directory}/small`, { recursive: true })
  mkdirSync(`${directory}/other`)
  const prelude =
    `set -e; mount -t tmpfs -o size=256k tmpfs "$1/small"; supervisor() { "$node" "$conditions" "$program" "$@"; }`
  const [conditions = "", program = ""] = command
  const { stderr, stdout } = spawnSync("unshare", ["--mount", "sh", "-c", `${prelude}; ${script}`, "sh", directory], {
    env: { ...process.env, node: process.execPath, conditions, program },
    encoding: "utf8"
  })
  // Nothing is said of experimental features either.
  expect(stderr).toBe("")
  return stdout.trim().split("\n")
}

it.live.skipIf(!mountable)(
  "it is the same directory by a bind mount, on tmpfs and on a disk",
  () =>
    withDirectory((directory) =>
      Effect.sync(() => {
        const [tmpfs = "", disk = ""] = mounted(
          dirname(directory),
          [
            "mkdir -m 700 \"$1/small/state\" \"$1/other/state\" \"$1/bind\" \"$1/bind2\"",
            "mount --bind \"$1/small/state\" \"$1/bind\"",
            "mount --bind \"$1/other/state\" \"$1/bind2\"",
            "supervisor both \"$1/small/state\" \"$1/bind\"",
            "supervisor both \"$1/other/state\" \"$1/bind2\"",
            "supervisor try \"$1/bind\""
          ].join("; ")
        )
        expect(tmpfs).toMatch(/^LeaseHeld: process \d+@\d+ has had/)
        expect(disk).toMatch(/^LeaseHeld: process \d+@\d+ has had/)
      }), tmpdir())
)

it.live.skipIf(!mountable)(
  "a file system that can only be read from",
  () =>
    withDirectory((directory) =>
      Effect.sync(() => {
        const lines = mounted(
          dirname(directory),
          [
            "supervisor try \"$1/other/state\"",
            "mount --bind \"$1/other\" \"$1/other\"",
            "mount -o remount,ro,bind \"$1/other\"",
            "supervisor try \"$1/other/state\"",
            "supervisor try \"$1/other/new\""
          ].join("; ")
        )
        expect(lines).toEqual([
          "taken",
          expect.stringMatching(/^DirectoryUnusable: .*use a directory on a file system that can be written to/),
          expect.stringMatching(/^DirectoryUnusable: .*use a directory on a file system that can be written to/)
        ])
      }), tmpdir())
)

it.live.skipIf(!mountable)(
  "a full disk: what is there stays, and can be removed",
  () =>
    withDirectory((directory) =>
      Effect.sync(() => {
        const lines = mounted(
          dirname(directory),
          "supervisor fill \"$1/small/state\"; cat \"$1\"/small/state/machines/*; ls \"$1/small/state/tmp\""
        )
        expect(lines.slice(0, 5)).toEqual([
          expect.stringMatching(/^WriteFailed: .*machine web-1 .*disk is full/),
          expect.stringMatching(/^WriteFailed: .*machine web-2 .*disk is full/),
          JSON.stringify([{ kind: "tap", data: "t0" }]),
          "done",
          "done"
        ])
        expect(JSON.parse(lines.slice(5).join("\n"))).toMatchObject({ id: "web-3" })
      })
    )
)
