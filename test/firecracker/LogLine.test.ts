import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as LogLine from "../../src/firecracker/LogLine.ts"

const time = "2026-08-21T10:00:00.123456789"

describe("a line", () => {
  it.each([
    [`${time} [anonymous-instance:main] Running`, "anonymous-instance", "main", undefined, undefined],
    [`${time} [vm-1:fc_api:INFO] Running`, "vm-1", "fc_api", "INFO", undefined],
    [
      `${time} [vm-1:fc_vcpu 0:src/vmm/src/lib.rs:693] Running`,
      "vm-1",
      "fc_vcpu 0",
      undefined,
      "src/vmm/src/lib.rs:693"
    ],
    [`${time} [vm-1:-:WARN:?:?] Running`, "vm-1", "-", "WARN", "?:?"]
  ])("%s", (text, id, thread, level, origin) => {
    assert.deepStrictEqual(LogLine.parse(text), { time, id, thread, level, origin, message: "Running" })
  })

  it("an empty message, and one with brackets", () => {
    assert.strictEqual(LogLine.parse(`${time} [a:main] `)?.message, "")
    assert.strictEqual(LogLine.parse(`${time} [a:main:INFO] [DevPreview] x: y] z:1`)?.message, "[DevPreview] x: y] z:1")
  })

  it.each([
    "",
    "login: ",
    "[    0.000000] Linux version 6.1.141",
    `${time} no brackets`,
    `${time} [main] one name`,
    "2026-08-21T10:00:00 [a:main] no fraction",
    "thread 'main' panicked at src/main.rs:1:2"
  ])("of another form: %j", (text) => {
    assert.isUndefined(LogLine.parse(text))
  })

  it.prop("anything can be read", [Schema.String], ([text]) => {
    LogLine.parse(text)
    LogLine.parse(`${time} [${text}] ${text}`)
    LogLine.anchor(text)
    LogLine.withoutBodies(text)
  })

  it("a long one takes no time", () => {
    const started = performance.now()
    LogLine.parse(`${time} [${"a:1".repeat(50_000)}`)
    LogLine.parse(`${time} [a:main:${":1".repeat(50_000)}`)
    LogLine.anchor(`Guest-boot-time = ${" ".repeat(100_000)}`)
    LogLine.withoutBodies("The API server received a Put request on \"".repeat(5_000))
    assert.isBelow(performance.now() - started, 1000)
  })
})

describe("an anchor", () => {
  it.each<readonly [message: string, expected: LogLine.Anchor]>([
    ["Running Firecracker v1.16.1", LogLine.Anchor.Running({ version: { major: 1, minor: 16, patch: 1 } })],
    ["Running Firecracker vunknown", LogLine.Anchor.Running({ version: undefined })],
    ["Listening on API socket (\"/run/a (1).sock\").", LogLine.Anchor.Listening({ socket: "/run/a (1).sock" })],
    ["API server started.", LogLine.Anchor.ApiServerStarted()],
    ["The API server received a Get request on \"/\".", LogLine.Anchor.Request({ method: "GET", path: "/" })],
    [
      "The API server received a Put request on \"/actions\" with body \"{\\\"action_type\\\": \\\"InstanceStart\\\"}\".",
      LogLine.Anchor.Request({ method: "PUT", path: "/actions" })
    ],
    [
      "The API server received a Put request on \"/cpu-config\". To view the CPU template received by the API, configure log-level to DEBUG.",
      LogLine.Anchor.Request({ method: "PUT", path: "/cpu-config" })
    ],
    [
      "Successfully started microvm that was configured from one single json",
      LogLine.Anchor.StartedFromFile()
    ],
    [
      "Guest-boot-time =   4321 us 4 ms,    210 CPU us 0 CPU ms",
      LogLine.Anchor.GuestBooted({ wallUs: 4321, cpuUs: 210 })
    ],
    ["'load snapshot' VMM action took 1234 us.", LogLine.Anchor.ActionTook({ action: "load snapshot", us: 1234 })],
    ["7 messages were suppressed due to rate limiting", LogLine.Anchor.Suppressed({ messages: 7 })],
    [
      "Shutting down VM after intercepting signal 7, code -6.",
      LogLine.Anchor.Intercepted({ signal: 7, code: -6 })
    ],
    ["Shutting down VM after intercepting a bad syscall (41).", LogLine.Anchor.BadSyscall({ syscall: 41 })],
    ["Vmm is stopping.", LogLine.Anchor.Stopping()],
    ["Firecracker exiting successfully. exit_code=0", LogLine.Anchor.Exiting({ code: 0 })],
    ["Firecracker exiting with error. exit_code=148", LogLine.Anchor.Exiting({ code: 148 })]
  ])("%s", (message, expected) => {
    assert.deepStrictEqual(LogLine.anchor(message), expected)
  })

  it.each(["", "Vmm is stopping. Not.", "said: API server started."])("none: %j", (message) => {
    assert.isUndefined(LogLine.anchor(message))
  })
})

describe("without bodies", () => {
  it("no secret is left, and nothing else is lost", () => {
    const request = (path: string) => `${time} [a:fc_api] The API server received a Put request on "${path}" with body `
    const log = [
      `${time} [a:main] Running Firecracker v1.16.1`,
      `${request("/boot-source")}"{\\"boot_args\\": \\"token=\\\\\\"s3cret\\"}".`,
      `${time} [a:fc_api] The API server received a Put request on "/mmds".`,
      `${request("/metrics")}"s3cret, cut off`
    ]
    assert.strictEqual(
      LogLine.withoutBodies(log.join("\n")),
      [log[0], `${request("/boot-source")}…`, log[2], `${request("/metrics")}…`].join("\n")
    )
  })
})
