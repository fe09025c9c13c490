import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { describe, expect, it } from "@effect/vitest"
import { OwnedFiles, OwnerLock, ProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import { execFileSync } from "node:child_process"

/** A process table of these pids, each with its start time; `self` is one of them. */
const host = (self: number, alive: Readonly<Record<number, number>>) =>
  Layer.mock(ProcessHost.ProcessHost, {
    bootId: "this-boot",
    self,
    cgroupRoot: Option.none(),
    cgroup: () => {
      throw new Error("no cgroups are expected")
    },
    inspect: (pid) =>
      Effect.succeed(Option.map(Option.fromUndefinedOr(alive[pid]), (startTime): ProcessHost.ProcessInfo => ({
        pid,
        startTime,
        parent: 1,
        group: pid,
        session: pid,
        state: "S",
        command: "node",
        mark: undefined
      })))
  })

const files = Layer.merge(NodeFileSystem.layer, NodePath.layer)
const alive = Object.fromEntries(Array.from({ length: 20 }, (_, index) => [100 + index, 7]))
const text = (pid: number, startTime = 7, bootId = "this-boot") => JSON.stringify({ bootId, pid, startTime })

const withDirectory = <A, E>(
  use: (directory: string) => Effect.Effect<A, E, FileSystem.FileSystem>
) =>
  Effect.scoped(Effect.flatMap(
    FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped({ prefix: "owner-lock-" })),
    use
  )).pipe(Effect.provide(files))

/** As process `pid`, with the lock. */
const locked = <A, E, R>(directory: string, pid: number, use: Effect.Effect<A, E, R>, patience = 60_000) =>
  Effect.scoped(Effect.gen(function*() {
    const own = yield* OwnedFiles.temporaryDirectory(`${directory}/tmp`)
    yield* OwnerLock.acquire({ file: `${directory}/lock`, own, patience })
    return yield* use
  })).pipe(Effect.provide([files, host(pid, alive)]))

const prepared = Effect.fnUntraced(function*(directory: string, lock: Readonly<Record<string, string>>) {
  const fs = yield* FileSystem.FileSystem
  yield* fs.makeDirectory(`${directory}/tmp`)
  for (const [name, content] of Object.entries(lock)) yield* fs.writeFileString(`${directory}/${name}`, content)
})

const leftovers = (directory: string) =>
  FileSystem.FileSystem.use((fs) =>
    Effect.map(fs.readDirectory(directory, { recursive: true }), (all) => all.toSorted())
  )

describe("OwnerLock", () => {
  const dead = text(50)
  const found: Readonly<Record<string, Readonly<Record<string, string>>>> = {
    "no lock": {},
    "the lock of a dead process": { lock: dead },
    "the lock of a pid that is another's now": { lock: text(101, 6) },
    "the lock of another boot": { lock: text(101, 7, "another-boot") },
    "an empty lock": { lock: "" },
    "the lock of a dead process, that died when it took over another's": { lock: dead, "lock.takeover": text(51) },
    "three of them": { lock: dead, "lock.takeover": text(51), "lock.takeover.takeover": text(52) },
    "what one leaves that died when it had taken over": {
      "lock.takeover": text(51),
      "lock.takeover.takeover": text(52)
    }
  }
  for (const [what, lock] of Object.entries(found)) {
    it.live(`of twenty processes that find ${what}, one at a time has it`, () =>
      withDirectory(Effect.fnUntraced(function*(directory) {
        yield* prepared(directory, lock)
        let inside = 0
        let passed = 0
        const work = Effect.gen(function*() {
          expect(++inside).toBe(1)
          yield* Effect.sleep("1 millis")
          expect(inside).toBe(1)
          inside--
          passed++
        })
        yield* Effect.forEach(Object.keys(alive), (pid) => locked(directory, Number(pid), work), {
          concurrency: "unbounded"
        })
        expect(passed).toBe(20)
        expect(yield* leftovers(directory)).toEqual(["tmp"])
      })))
  }

  it.effect("a live owner's lock is waited for, as long as the patience", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, { lock: text(101) })
      const fiber = yield* Effect.forkChild(Effect.flip(locked(directory, 100, Effect.void, 1000)))
      // Each look at the lock is real input, so virtual time has to be given again and again.
      const error = yield* Effect.raceFirst(
        Fiber.join(fiber),
        Effect.forever(Effect.andThen(TestClock.adjust("200 millis"), TestClock.withLive(Effect.sleep("5 millis"))))
      )
      expect(error).toMatchObject({ _tag: "LockHeld", pid: 101, path: `${directory}/lock` })
      expect(error.message).toContain("process 101")
      expect(yield* leftovers(directory)).toEqual(["lock", "tmp"])
    })))

  it.live("an interruption while it waits, or while it has it, leaves nothing", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, {})
      const owner = yield* Effect.forkChild(locked(directory, 100, Effect.never))
      const isThere = FileSystem.FileSystem.use((fs) => fs.exists(`${directory}/lock`))
      while (!(yield* isThere)) yield* Effect.sleep("1 millis")
      const waiting = yield* Effect.forkChild(locked(directory, 101, Effect.never))
      yield* Effect.sleep("20 millis")
      yield* Fiber.interrupt(waiting)
      expect(yield* isThere).toBe(true)
      yield* Fiber.interrupt(owner)
      expect(yield* leftovers(directory)).toEqual(["tmp"])
    })))

  it.live("a lock that cannot be read is told, and not looked at for ever", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, {})
      yield* FileSystem.FileSystem.use((fs) => fs.makeDirectory(`${directory}/lock`))
      expect((yield* Effect.flip(locked(directory, 100, Effect.void)))._tag).toBe("PlatformError")
    })))
})

describe("what is in the way of a lock", () => {
  it.live("and is a pipe names nobody, and is not waited for", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, {})
      execFileSync("mkfifo", [`${directory}/lock`])
      yield* locked(directory, 100, Effect.void)
      expect(yield* leftovers(directory)).toEqual(["tmp"])
    })))

  it.live("and cannot be read is an error, and not waited for", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, {})
      yield* FileSystem.FileSystem.use((fs) => fs.symlink(`${directory}/nowhere`, `${directory}/lock`))
      expect((yield* Effect.flip(locked(directory, 100, Effect.void)))._tag).toBe("PlatformError")
    })))
})

describe("OwnedFiles", () => {
  it.live("sweeps what dead processes have left, and nothing that somebody else has put there", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      yield* prepared(directory, {})
      const fs = yield* FileSystem.FileSystem
      const names = ["this-boot.50.7.abc", "this-boot.101.6.abc", "other.101.7.abc", "stray", "this-boot.101.7.abc"]
      for (const name of names) yield* fs.makeDirectory(`${directory}/tmp/${name}/below`, { recursive: true })
      yield* OwnedFiles.sweep(`${directory}/tmp`).pipe(Effect.provide([files, host(100, alive)]))
      expect(yield* fs.readDirectory(`${directory}/tmp`)).toEqual(["stray", "this-boot.101.7.abc"])
    })))

  it.live("writes a file anew, whatever was there", () =>
    withDirectory(Effect.fnUntraced(function*(directory) {
      const fs = yield* FileSystem.FileSystem
      yield* fs.writeFileString(`${directory}/file`, "something longer")
      yield* OwnedFiles.writeDurably(`${directory}/file`, new TextEncoder().encode("short"))
      expect(yield* fs.readFileString(`${directory}/file`)).toBe("short")
    })))
})
