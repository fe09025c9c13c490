import { describe, expect, it } from "@effect/vitest"
import { FaultMessage } from "effect-microvm-runtime/firecracker"
import * as Schema from "effect/Schema"

const classify = (message: string, status = 400) =>
  FaultMessage.classify({ status, body: JSON.stringify({ fault_message: message }) })

// As Firecracker writes them, from 1.7 to 1.17.
const texts: ReadonlyArray<readonly [string, string]> = [
  ["The requested operation is not supported before starting the microVM.", "NotSupportedBeforeStart"],
  ["The requested operation is not supported after starting the microVM.", "NotSupportedAfterStart"],
  ["Invalid request method and/or path: PUT serial.", "UnknownRoute"],
  ["Unrecognized PATCH request path `hinting`.", "UnknownRoute"],
  ["Invalid HTTP Method: Unsupported HTTP method.", "UnknownRoute"],
  [
    "An error occurred when deserializing the json body of a request: unknown field `foo`, expected one of `a`, `b` at line 1 column 6.",
    "BadBody"
  ],
  ["Empty PUT request.", "EmptyBody"],
  ["Empty PATCH request.", "EmptyBody"],
  ["The id from the path does not match the id from the body!", "BadId"],
  ["The id from the path [a] does not match the id from the body [b]!", "BadId"],
  ["The ID cannot be empty.", "BadId"],
  ["API Resource IDs can only contain alphanumeric characters and underscores.", "BadId"],
  ["Start microvm error: Cannot start microvm without kernel configuration.", "NoKernel"],
  [
    "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.",
    "NotFresh"
  ],
  ["Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: x", "RestoreFailed"],
  ["Load snapshot error: Failed to resume microVM: x", "RestoreFailed"],
  [
    "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running",
    "NotPaused"
  ],
  [
    "Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.",
    "AlreadyConfigured"
  ],
  ["Network config error: The MAC address is already in use: 02:00:00:00:00:01", "InUse"],
  ["Drive config error: A root block device already exists!", "InUse"],
  ["Pmem config error: A root pmem device already exist", "InUse"],
  ["Network config error: Cannot open/create the tap device: Resource busy (os error 16)", "InUse"],
  [
    "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: Address in use (os error 98)",
    "InUse"
  ],
  ["Device ID in use", "InUse"],
  ["Device not found", "DeviceNotFound"],
  ["Balloon config error: No balloon device found.", "DeviceNotFound"],
  ["PCI is not enabled", "NoPci"],
  ["MMDS error: The MMDS data store is not initialized.", "MmdsNotInitialized"],
  ["The MMDS data store is not initialized.", "MmdsNotInitialized"],
  ["MMDS limit exceeded error: The MMDS patch request doesn't fit.", "MmdsTooLarge"],
  ["Internal VMM error: I8042 error: Keyboard interrupt disabled by guest driver.", "KeyboardUnavailable"],
  ["Internal VMM error: I8042 error: i8042 internal buffer full.", "KeyboardUnavailable"],
  ["SendCtrlAltDel does not supported on aarch64.", "KeyboardUnavailable"],
  ["Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)", "Other"],
  ["Cannot unplug root device", "Other"]
]

describe("FaultMessage", () => {
  it.each(texts)("%s", (message, kind) => {
    expect(classify(message)).toEqual({ kind, message })
  })

  it("the HTTP server's own shape, with a line break inside of its JSON string", () => {
    const tail = "All previous unanswered requests will be dropped."
    const body =
      `{ "error": "Request payload with size 60000 is larger than the limit of 51200 allowed by server.\n${tail}" }`
    expect(() => void JSON.parse(body)).toThrow(SyntaxError)
    expect(FaultMessage.classify({ status: 400, body })).toEqual({
      kind: "TooLarge",
      message: "Request payload with size 60000 is larger than the limit of 51200 allowed by server."
    })
  })

  it("503 is no kind of its own; 413 always is about the data store", () => {
    const busy = { status: 503, body: `{ "error": "Too many open connections" }` }
    expect(FaultMessage.classify(busy)).toEqual({ kind: "Other", message: "Too many open connections" })
    expect(classify("a text of tomorrow", 413).kind).toBe("MmdsTooLarge")
  })

  it("a text that the caller chose does not make a kind", () => {
    const path = "/x/PCI is not enabled: Device not found/The ID cannot be empty."
    expect(classify(`Boot source error: The kernel file cannot be opened: ${path}`).kind).toBe("Other")
  })

  it("what is no JSON, or another one, is taken as text", () => {
    for (
      const [body, message] of [["", ""], ["<html>", "<html>"], ["[1]", "[1]"], [
        `{"fault_message":1}`,
        `{"fault_message":1}`
      ]] as const
    ) {
      expect(FaultMessage.classify({ status: 400, body })).toEqual({ kind: "Other", message })
    }
  })

  it("a long text is cut", () => {
    const { message } = classify("x".repeat(100_000))
    expect(message.length).toBe(4096)
    expect(message.endsWith("…")).toBe(true)
  })

  it.prop("any answer has a kind and a bounded text", [Schema.String, Schema.Int], ([body, status]) => {
    expect(FaultMessage.classify({ status, body }).message.length).toBeLessThanOrEqual(4096)
  })

  it("a hostile text does not take long", () => {
    const bodies = [
      `{ "error": "${"a\\".repeat(500_000)}`,
      `{"error":${" ".repeat(1_000_000)}x`,
      "[".repeat(100_000),
      `Vsock config error: ${"a".repeat(1_000_000)}`
    ]
    for (const body of bodies) expect(FaultMessage.classify({ status: 400, body }).kind).toBe("Other")
  }, 3000)
})
