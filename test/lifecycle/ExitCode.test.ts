import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import { ExitCode, ExitStatus, RunReport, type ShutdownOutcome, Signal } from "../../src/lifecycle/index.ts"

describe("ExitCode", () => {
  // The published contract, written out: a change of the table has to change this list too.
  it.each(
    [
      ["ended", 0],
      ["failed", 1],
      ["stopped", 10],
      ["budgetPassed", 11],
      ["finalizerFailed", 12],
      ["defect", 70],
      ["configInvalid", 78],
      ["secrets", 101],
      ["loading", 111],
      ["resourceInput", 121],
      ["provisionRequest", 131],
      ["resourceState", 132],
      ["initialisation", 151],
      ["healthBind", 201],
      ["healthFailed", 202]
    ] as const
  )("a service that ended for %s exits with %i", (reason, code) => {
    expect(ExitCode.fromService({ _tag: "Reason", reason })).toBe(code)
  })

  it("covers every reason of the table, and no reason twice", () => {
    expect(ExitCode.ServiceEnd.cases.Reason.fields.reason.literals).toEqual(Object.keys(ExitCode.service))
    expect(ExitCode.faults(ExitCode.service)).toEqual([])
  })

  it("uses a program's own table", () => {
    const table = { ...ExitCode.service, stopped: 0, ended: 3 }
    expect(ExitCode.fromService({ _tag: "Reason", reason: "stopped" }, table)).toBe(0)
  })

  it("lists every fault of a table", () => {
    expect(ExitCode.faults({ ...ExitCode.service, failed: 300, stopped: 0.5, defect: 78 })).toEqual([
      "failed: code 300 is not in 0 to 255: choose another",
      "stopped: code 0.5 is not in 0 to 255: choose another",
      "configInvalid: code 78 is already that of defect: choose another"
    ])
  })

  it.each(Signal.names.map((signal) => [signal, 128 + Signal.toNumber(signal)] as const))(
    "%s as the second signal gives %i",
    (signal, code) => {
      expect(ExitCode.fromService({ _tag: "SecondSignal", signal })).toBe(code)
    }
  )

  const ends: ReadonlyArray<readonly [RunReport.RunEnd, number]> = [
    [{ _tag: "Completed", status: ExitStatus.exited(0) }, 0],
    [{ _tag: "Completed", status: ExitStatus.exited(255) }, 255],
    [{ _tag: "Completed", status: ExitStatus.signaled("SIGKILL") }, 137],
    [{ _tag: "Completed", status: ExitStatus.lost("gone", "agent") }, 125],
    [{ _tag: "Interrupted", signal: "SIGINT" }, 130],
    [{ _tag: "Interrupted", signal: "SIGPIPE" }, 141],
    [{ _tag: "TimedOut", after: Duration.seconds(3) }, 124],
    [{ _tag: "MachineEnded", why: "panic", consoleTail: "" }, 125],
    [{ _tag: "Failed", message: "no" }, 125],
    [{ _tag: "NoBackend", message: "no" }, 69],
    [{ _tag: "Usage", message: "no" }, 64]
  ]
  it.each(ends)("run: %o", (end, code) => {
    expect(ExitCode.fromRun(end)).toBe(code)
  })

  it("says 125 when a machine was left behind, whatever the command's code", () => {
    const common = { stages: [], elapsed: Duration.zero, survivors: [{ pid: 1, command: "qemu", why: "D" }] }
    const outcomes: ReadonlyArray<ShutdownOutcome.ShutdownOutcome> = [
      { _tag: "Unkillable", ...common },
      { _tag: "Survivors", status: ExitStatus.exited(0), ...common }
    ]
    for (const outcome of outcomes) {
      expect(ExitCode.fromRun({ _tag: "Completed", status: ExitStatus.exited(0) }, outcome)).toBe(125)
    }
    expect(
      ExitCode.fromRun({ _tag: "Completed", status: ExitStatus.exited(4) }, {
        _tag: "Forced",
        stage: "SIGKILL",
        status: ExitStatus.signaled("SIGKILL"),
        stages: [],
        elapsed: Duration.zero
      })
    ).toBe(4)
  })

  it.prop(
    "every end has a code from 0 to 255",
    [RunReport.RunEnd],
    ([end]) => {
      const code = ExitCode.fromRun(end)
      return Number.isInteger(code) && code >= 0 && code <= 255
    }
  )
})

describe("ExitStatus", () => {
  it.each([
    [ExitStatus.exited(7), 7, "exited with code 7"],
    [ExitStatus.signaled("SIGSEGV", { coreDumped: true }), 139, "killed by SIGSEGV (core dumped)"],
    [ExitStatus.signaled("SIGTERM"), 143, "killed by SIGTERM"],
    [ExitStatus.lost("not our child", "identity"), 125, "gone, status lost: not our child"]
  ])("%o", (status, code, text) => {
    expect(ExitStatus.toCode(status)).toBe(code)
    expect(ExitStatus.format(status)).toBe(text)
  })

  it.each([256, -1, 999, 0.5, Number.NaN])(
    "an exit code of %d, which there is not, never reads as a success",
    (code) => {
      const end = ExitCode.fromRun({ _tag: "Completed", status: { _tag: "Exited", code, observedBy: "agent" } })
      expect(end).toBe(125)
    }
  )

  it.prop("survives JSON", [ExitStatus.ExitStatus], ([status]) => {
    const codec = Schema.fromJsonString(ExitStatus.ExitStatus)
    expect(Schema.decodeSync(codec)(Schema.encodeSync(codec)(status))).toEqual(status)
  })
})

describe("Signal", () => {
  it("reads names and numbers", () => {
    expect(["TERM", "sigterm", "15"].map(Signal.fromString)).toEqual(["SIGTERM", "SIGTERM", "SIGTERM"])
    expect(["", "0", "99", "-1", "SIGNOPE", "constructor", "1e1"].map(Signal.fromString)).toEqual(
      Array.from({ length: 7 }, () => undefined)
    )
  })

  it.prop(
    "numbers and names are each other's inverse",
    [Schema.Literals(Signal.names)],
    ([name]) => Signal.fromNumber(Signal.toNumber(name)) === name
  )
})

describe("RunReport", () => {
  it.prop("survives JSON", [RunReport.RunReport], ([report]) => {
    const codec = Schema.fromJsonString(RunReport.RunReport)
    const text = Schema.encodeSync(codec)(report)
    expect(Schema.encodeSync(codec)(Schema.decodeSync(codec)(text))).toBe(text)
  }, { arbitrary: { runs: 50 } })
})
