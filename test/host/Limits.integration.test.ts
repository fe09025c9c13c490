import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { describe, expect, it } from "@effect/vitest"
import { Limits } from "effect-microvm-runtime/host"
import { NodeProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type ChildProcess, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { existsSync, readFileSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"

const host = Layer.merge(NodeFileSystem.layer, NodeProcessHost.layer)

const owner = () => ({ id: "limits-test", token: randomBytes(8).toString("hex"), bootId: "this-boot" })

const reclaim = (one: ReturnType<typeof owner>, data: Limits.Data) =>
  Effect.map(Limits.kind.reclaim([{ owner: one, data }], { dryRun: false }), ([verdict]) => verdict)

/** With cgroups that have these limits, all of which are needed; skipped, and told why, where the host does not have them. */
const limited = <A, E, R>(
  options: Limits.Options,
  use: (made: Limits.Limited) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function*() {
    const one = owner()
    const plan = yield* Limits.plan(one, options)
    const missing = plan.applied.find((limit) => "unavailable" in limit && limit.limit !== "swap")
    if (missing !== undefined && "unavailable" in missing) {
      console.warn(`skipped: no limit ${missing.limit} here, ${missing.unavailable}`)
      return
    }
    const made = yield* Limits.make(plan)
    yield* Effect.ensuring(
      use(made),
      Effect.gen(function*() {
        expect(yield* reclaim(one, made.data)).toEqual({ _tag: "Released" })
        for (const path of made.enter) expect(existsSync(path)).toBe(false)
        expect(yield* reclaim(one, made.data)).toEqual({ _tag: "Absent" })
      })
    )
  }).pipe(Effect.provide(host))

const start = (made: Limits.Limited, ...command: ReadonlyArray<string>): ChildProcess => {
  const [file = "", ...args] = [...Limits.prefix(made.enter), ...command]
  return spawn(file, args, { stdio: "ignore", detached: true })
}

const ended = (child: ChildProcess) =>
  Effect.promise(async () => {
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit")
    return child.signalCode ?? child.exitCode
  })

const members = (directory: string): ReadonlyArray<number> =>
  readFileSync(`${directory}/cgroup.procs`, "utf8").split("\n").filter((line) => line !== "").map(Number)

/** Until it is so, 10 seconds at most. */
const until = (what: string, isSo: () => boolean) =>
  Effect.promise(async () => {
    for (const deadline = Date.now() + 10_000; !isSo(); await sleep(10)) {
      if (Date.now() > deadline) throw new Error(`not within 10 seconds: ${what}`)
    }
  })

describe("limits that the kernel keeps", () => {
  it.live("who takes more memory than it may is killed, and that is counted", () =>
    limited(
      { memoryMib: 24 },
      Effect.fnUntraced(function*(made) {
        expect((yield* Limits.events(made.data)).oomKills).toBe(0)
        expect(yield* ended(start(made, "tail", "/dev/zero"))).toBe("SIGKILL")
        expect((yield* Limits.events(made.data)).oomKills).toBeGreaterThanOrEqual(1)
        // Who takes less goes on.
        expect(yield* ended(start(made, "true"))).toBe(0)
      })
    ), 180_000)

  it.live("a fork bomb has as many processes as it may, and all of them go", () =>
    limited(
      { pids: 20 },
      Effect.fnUntraced(function*(made) {
        // Each runs itself twice, as soon as it can.
        const bomb = "bomb() { bomb & bomb & wait; }; trap '' TERM HUP; bomb; sleep 60"
        const child = start(made, "sh", "-c", bomb)
        yield* Effect.promise(async () => {
          for (let look = 0; look < 30; look++) {
            await sleep(10)
            for (const directory of made.enter) expect(members(directory).length).toBeLessThanOrEqual(20)
          }
        })
        const refused = Effect.filterOrFail(Limits.events(made.data), ({ pidsRefused = 0 }) => pidsRefused > 0)
        yield* Effect.eventually(Effect.andThen(Effect.sleep("10 millis"), refused))
        child.unref()
      })
    ), 180_000)

  it.live("a spinner has the share of a processor that it may have, its children included", () =>
    limited(
      { cpus: 0.4 },
      Effect.fnUntraced(function*(made) {
        const spin = "while :; do :; done"
        const child = start(made, "sh", "-c", `(${spin}) & (${spin}) & ${spin}`)
        yield* until("three are in it", () => members(made.enter[0] ?? "").length === 3)
        // In hundredths of a second (proc_pid_stat(5)).
        const used = () =>
          members(made.enter[0] ?? "").map((pid) => {
            const fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /, "").split(" ")
            return Number(fields[11]) + Number(fields[12])
          }).reduce((sum, ticks) => sum + ticks, 0) / 100
        const before = used()
        const from = Date.now()
        yield* Effect.promise(() => sleep(2000))
        const share = (used() - before) / ((Date.now() - from) / 1000)
        expect(share).toBeLessThan(0.6)
        expect(share).toBeGreaterThan(0.05)
        child.unref()
      })
    ), 180_000)

  it.live(
    "what a command starts is in all of its cgroups, whatever session it goes to; nothing was ever outside",
    () =>
      limited(
        { memoryMib: 64, cpus: 1, pids: 50 },
        Effect.fnUntraced(function*(made) {
          const child = start(made, "sh", "-c", "setsid sleep 60 & sleep 60 & wait")
          yield* until("three are in all of them", () => made.enter.every((path) => members(path).length === 3))
          const [first, ...others] = made.enter.map((path) => members(path).toSorted((a, b) => a - b))
          for (const other of others) expect(other).toEqual(first)
          expect(first).toContain(child.pid)
        })
      ),
    180_000
  )

  it.live("a command that cannot enter does not run", () =>
    Effect.gen(function*() {
      const file = `/tmp/limits-test-${randomBytes(8).toString("hex")}`
      const args = [...Limits.prefix(["/sys/fs/cgroup/none-of-that-name"]), "touch", file]
      expect(yield* ended(spawn("/usr/bin/env", args, { stdio: "ignore" }))).toBe(125)
      expect(existsSync(file)).toBe(false)
    }))

  it.live("50 machines with processes are gone within a second", () =>
    Effect.gen(function*() {
      const machines = yield* Effect.forEach(Array.from({ length: 50 }, owner), (one) =>
        Effect.gen(function*() {
          const made = yield* Limits.make(yield* Limits.plan(one, { memoryMib: 32, pids: 20 }))
          return { one, made, child: start(made, "sh", "-c", "sleep 60 & sleep 60 & wait") }
        }))
      if (machines.some(({ made }) => made.enter.length === 0)) {
        console.warn("skipped: no cgroup can be made here")
        machines.forEach(({ child }) => child.kill("SIGKILL"))
        return
      }
      const claims = machines.map(({ made, one }) => ({ owner: one, data: made.data }))
      const reclaimAll = Limits.kind.reclaim(claims, { dryRun: false })
      yield* until("all run", () => machines.every(({ made }) => members(made.enter[0] ?? "").length === 3)).pipe(
        Effect.onError(() => reclaimAll)
      )
      const before = performance.now()
      const verdicts = yield* reclaimAll
      const time = performance.now() - before
      expect(verdicts).toEqual(machines.map(() => ({ _tag: "Released" })))
      console.info(`50 machines, ${machines[0]?.made.enter.length} cgroups each: ${time.toFixed(1)} ms`)
      expect(time).toBeLessThan(1000)
    }).pipe(Effect.provide(host)), 60_000)
})
