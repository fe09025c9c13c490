import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { existsSync, readFileSync } from "node:fs"
import * as LifecycleConformance from "../../src/testing/LifecycleConformance.ts"
import * as LifecycleProbe from "../../src/testing/LifecycleProbe.ts"

/** A service of our own that keeps every promise but, where one is named, that one. */
const service = (fault?: string): LifecycleProbe.Subject => ({
  name: fault ?? "good",
  command: process.execPath,
  args: [new URL("./fixtures/service.ts", import.meta.url).pathname],
  env: (ports) => ({
    PORT: String(ports.service),
    PROBES_PORT: String(ports.probes),
    STOP_BUDGET: "1400",
    DRAIN_DELAY: "200",
    ...(fault === undefined ? {} : { FAULT: fault })
  }),
  probes: { ready: "/readyz", live: "/livez", startup: "/startupz" },
  endpoints: {
    fast: "/fast",
    slow: (millis) => `/slow?ms=${millis}`,
    hang: "/hang",
    block: "/block",
    fail: "/fail",
    websocket: "/websocket"
  },
  budget: "1400 millis",
  drainDelay: "200 millis",
  startWithin: "5 seconds",
  slowStart: (millis) => ({ START_DELAY: String(millis) }),
  expect: { stopped: 10, forced: 11, portTaken: 1, probePortTaken: 201, failed: 1 }
})

const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn("skipped: pid-1, for only root can make PID namespaces")

const names = LifecycleConformance.rows.map(({ name }) => name).filter((name) => isRoot || name !== "pid-1")

const run = (subject: LifecycleProbe.Subject, only: ReadonlyArray<LifecycleConformance.RowName>) =>
  LifecycleConformance.run(subject, { only, tolerance: "400 millis", startStep: "20 millis" })

describe("LifecycleConformance", () => {
  describe("a good service", () => {
    for (const name of names) {
      it.live(`${name}: held`, () =>
        Effect.gen(function*() {
          const [row] = (yield* run(service(), [name])).rows
          expect(row).toMatchObject({ name, verdict: "held" })
        }))
    }
  })

  describe("one that breaks the promise", () => {
    for (const name of names) {
      it.live(`${name}: not held`, () =>
        Effect.gen(function*() {
          const report = yield* run(service(name), [name])
          const [row] = report.rows
          expect(row).toMatchObject({ name, verdict: "not held" })
          expect(row?.why).toBeTruthy()
          expect(LifecycleConformance.conforms(report)).toBe(false)
        }))
    }
  })

  it.live("what a service does not have is not applicable", () =>
    Effect.gen(function*() {
      const only = ["not-ready-first", "in-flight", "websocket", "drain-serves", "balancer", "hung", "blocked"] as const
      const { drainDelay: _, probes: __, ...rest } = service()
      const report = yield* run({ ...rest, endpoints: { fast: "/fast" } }, only)
      expect(report.rows.map(({ verdict }) => verdict)).toEqual(only.map(() => "not applicable"))
      expect(report.rows.every(({ why }) => why !== undefined && why !== "")).toBe(true)
      expect(LifecycleConformance.conforms(report)).toBe(false)
    }))

  it.live("a command that there is not holds nothing, and says so", () =>
    Effect.gen(function*() {
      const { rows } = yield* run({ ...service(), command: "/no/such/command" }, ["starts", "hung", "port-taken"])
      for (const { verdict, why } of rows) {
        expect(verdict).toBe("not held")
        expect(why).toBe("/no/such/command could not be started: ENOENT")
      }
    }))

  it.effect("a subject that makes no sense: all faults, and nothing is started", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(LifecycleConformance.run({
        ...service(),
        command: "",
        endpoints: { fast: "fast", hang: "/hang" },
        ports: { service: 70_000 },
        budget: Number.NaN,
        startWithin: -1
      }, { startStep: 0 }))
      expect(error.faults.map((fault) => fault.split(":")[0])).toEqual([
        "budget is null",
        "startWithin is -1",
        "startStep is 0",
        "command is empty",
        "the path of fast is \"fast\"",
        "ports.service is 70000"
      ])
      const late = yield* Effect.flip(LifecycleConformance.run({ ...service(), drainDelay: "1 minute" }))
      expect(late.faults).toHaveLength(1)
      expect(late.message).toContain("drainDelay is not shorter than budget")
    }))

  it.live("nothing is left of a service that leaves its group and ignores signals", () =>
    Effect.gen(function*() {
      const pids = yield* Effect.scoped(Effect.gen(function*() {
        const stubborn = "trap '' TERM INT HUP; setsid sleep 1000 & echo up; while :; do sleep 0.1; done"
        const started = yield* LifecycleProbe.start({ ...service(), command: "sh", args: ["-c", stubborn] })
        yield* started.output.pipe(Effect.repeat({
          while: (output) => !output.includes("up"),
          schedule: Schedule.spaced("5 millis")
        }))
        yield* started.signal("SIGTERM")
        yield* Effect.sleep("100 millis")
        expect(started.poll()).toBeUndefined()
        return started.alive()
      }))
      expect(pids.length).toBeGreaterThan(1)
      expect(
        pids.filter((pid) => existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`).length > 0)
      )
        .toEqual([])
    }))

  it.live("a run that is interrupted leaves nothing behind", () =>
    Effect.gen(function*() {
      let port = 0
      const watched = service()
      const fiber = yield* Effect.forkChild(run({
        ...watched,
        env: (ports) => {
          port = ports.service
          return watched.env(ports)
        }
      }, ["hung"]))
      while (!LifecycleProbe.listens(port)) yield* Effect.sleep("5 millis")
      yield* Fiber.interrupt(fiber)
      expect(LifecycleProbe.listens(port)).toBe(false)
    }))

  it("the tables", () => {
    const [first, second] = LifecycleConformance.rows
    const report: LifecycleConformance.Report = {
      subject: "mine",
      rows: [
        { name: "starts", promise: first?.promise ?? "", verdict: "held", took: Duration.millis(12.4) },
        { name: "not-ready-first", promise: second?.promise ?? "", verdict: "not held", why: "a | b\nc" }
      ]
    }
    const other: LifecycleConformance.Report = {
      subject: "other",
      rows: [{ name: "starts", promise: "", verdict: "not applicable", why: "no port" }]
    }
    expect(LifecycleConformance.format(report)).toBe([
      "| row | verdict | took | what was seen |",
      "| --- | --- | --- | --- |",
      "| starts | held | 12 ms |  |",
      "| not-ready-first | not held |  | a \\| b c |"
    ].join("\n"))
    expect(LifecycleConformance.compare([report, other])).toBe([
      "| row | mine | other |",
      "| --- | --- | --- |",
      "| starts | ✓ 12 ms | – |",
      "| not-ready-first | ✗ |  |",
      "| held | 1 of 2 | 0 of 0 |"
    ].join("\n"))
  })
})
