import { describe, expect, it } from "@effect/vitest"
import { ExitStatus } from "effect-microvm-runtime/lifecycle"
import { MachineEnd, MicroVmError } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

const tails = { stderrTail: "", consoleTail: "" }

const messages: ReadonlyArray<readonly [MicroVmError.Reason, string]> = [
  [
    new MicroVmError.MachineAlreadyExists({ id: "m" }),
    "A machine with the id \"m\" already exists: choose another id, or destroy that one first"
  ],
  [new MicroVmError.MachineNotFound({ id: "m" }), "No machine has the id \"m\""],
  [
    new MicroVmError.InvalidTransition({ id: "m", from: "created", to: "paused" }),
    "Machine \"m\" is created and cannot become paused; possible there: start, snapshot, destroy, rename"
  ],
  [
    new MicroVmError.InvalidTransition({ id: "m", from: "destroyed", to: "destroyed" }),
    "Machine \"m\" is destroyed and cannot become destroyed; possible there: nothing"
  ],
  [
    new MicroVmError.InvalidTransition({ id: "m", from: "crashed", to: "paused", possible: [] }),
    "Machine \"m\" is crashed and cannot become paused; possible there: nothing: launch another machine"
  ],
  [
    new MicroVmError.SnapshotAlreadyExists({ snapshot: "s" }),
    "A snapshot \"s\" already exists: choose another name, or remove that one first"
  ],
  [new MicroVmError.SnapshotNotFound({ snapshot: "s" }), "There is no snapshot \"s\""],
  [
    new MicroVmError.SnapshotUnusable({ snapshot: "s", why: ["its cpu is max, here it is host", "memory is short"] }),
    "Snapshot \"s\" cannot be used: its cpu is max, here it is host; memory is short. Remove it and make it anew"
  ],
  [
    new MicroVmError.StoreFailed({ path: "/cache", why: "no room", cause: "ENOSPC" }),
    "Snapshots cannot be kept in /cache: no room"
  ],
  [
    new MicroVmError.Unsupported({ operation: "pause", backend: "memory", remedy: "choose another backend" }),
    "The memory backend does not support pause: choose another backend"
  ],
  [
    new MicroVmError.InvalidSpec({
      faults: [
        { field: "vcpus", value: 0, remedy: "give a number" },
        { field: "id", value: "x".repeat(1000), remedy: "give an id" }
      ]
    }),
    `Not possible: vcpus is 0: give a number; id is "${"x".repeat(78)}…: give an id`
  ],
  [
    new MicroVmError.BackendUnavailable({ backend: "qemu", why: "no program", remedy: "install it" }),
    "The qemu backend cannot be used, no program: install it"
  ],
  [
    new MicroVmError.LaunchFailed({ id: "m", stage: "spawn", ...tails, cause: "no room" }),
    "Machine \"m\" could not be launched, spawn failed: no room"
  ],
  [
    new MicroVmError.LaunchFailed({
      id: "m",
      stage: "spawn",
      status: ExitStatus.exited(1),
      stderrTail: "bad option\n",
      consoleTail: "panic\n"
    }),
    "Machine \"m\" could not be launched, spawn failed; the monitor exited with code 1\nstderr: bad option\nconsole: panic"
  ],
  [
    new MicroVmError.OperationFailed({ id: "m", operation: "pause", cause: new TypeError("timeout") }),
    "Machine \"m\": pause failed: timeout"
  ],
  [
    new MicroVmError.OperationFailed({ id: "m", operation: "pause", cause: { code: 7 } }),
    "Machine \"m\": pause failed: {\"code\":7}"
  ],
  [
    new MicroVmError.ChannelUnavailable({ id: "m", channel: "a", known: [] }),
    "Machine \"m\" has no channel \"a\": it has none; name it in the spec's channels"
  ],
  [
    new MicroVmError.ChannelUnavailable({ id: "m", channel: "a", known: ["b", "c"] }),
    "Machine \"m\" has no channel \"a\": it has b, c; name it in the spec's channels"
  ]
]

describe("MicroVmError", () => {
  it.each(messages)("$_tag says what and what to do", (reason, message) => {
    const error = MicroVmError.make(reason)
    expect(error.message).toBe(message)
    expect(error.reason).toBe(reason)
    expect(error.cause).toBe(reason.cause)
  })

  it.effect("one reason can be caught on its own", () =>
    Effect.gen(function*() {
      const failing = MicroVmError.fail(new MicroVmError.MachineNotFound({ id: "m" }))
      const caught = Effect.catchReason(failing, "MicroVmError", "MachineNotFound", ({ id }) => Effect.succeed(id))
      expect(yield* caught).toBe("m")
      const missed = Effect.catchReason(failing, "MicroVmError", "InvalidSpec", () => Effect.succeed("no"))
      expect((yield* Effect.flip(missed)).reason._tag).toBe("MachineNotFound")
    }))
})

describe("MachineEnd", () => {
  const common = { status: ExitStatus.exited(0), consoleTail: "", stderrTail: "" }
  const { cases } = MachineEnd.MachineEnd
  const ends = [
    { end: cases.PoweredOff.make(common), text: "the guest powered off", byGuest: true },
    { end: cases.Reset.make(common), text: "the guest asked for a reboot", byGuest: true },
    { end: cases.Panicked.make(common), text: "the guest's kernel panicked", byGuest: false },
    { end: cases.Stopped.make(common), text: "the monitor was stopped by the host", byGuest: false },
    {
      end: cases.Killed.make({ ...common, status: ExitStatus.signaled("SIGSEGV") }),
      text: "the monitor was killed by SIGSEGV",
      byGuest: false
    },
    {
      end: cases.Failed.make({ ...common, status: ExitStatus.exited(1), why: "bad option" }),
      text: "the monitor exited with code 1: bad option",
      byGuest: false
    }
  ]

  it("has all its ways here", () => {
    expect(ends.map(({ end }) => end._tag).toSorted()).toEqual(Object.keys(cases).toSorted())
  })

  it.effect.each(ends)("$text", ({ byGuest, end, text }) =>
    Effect.gen(function*() {
      expect(MachineEnd.format(end)).toBe(text)
      expect(MachineEnd.isByGuest(end)).toBe(byGuest)
      const json = JSON.stringify(yield* Schema.encodeEffect(MachineEnd.MachineEnd)(end))
      expect(yield* Schema.decodeUnknownEffect(MachineEnd.MachineEnd)(JSON.parse(json))).toEqual(end)
    }))
})
