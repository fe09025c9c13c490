/** What is told of others has no power over the terminal of whoever reads it. */
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as FaultMessage from "../../src/firecracker/FaultMessage.ts"
import * as FirecrackerError from "../../src/firecracker/FirecrackerError.ts"
import * as GuestError from "../../src/guest/GuestError.ts"
import * as HostError from "../../src/host/HostError.ts"
import * as ImageError from "../../src/image/ImageError.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as Printable from "../../src/lifecycle/Printable.ts"
import * as MachineEnd from "../../src/microvm/MachineEnd.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import * as ProcessError from "../../src/process/ProcessError.ts"
import * as QmpError from "../../src/qemu/QmpError.ts"
import * as ServiceError from "../../src/service/ServiceError.ts"

/** All that a terminal acts upon but line breaks and tabs. */
const power = /(?![\n\t])[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u

/** Titles, clears, cursor, colours, C1 controls, what was typed, bells, backspaces, overwriting and turning round. */
const hostile = "\u001B]0;owned\u0007\u001B[2J\u001B[1;31mred\u001B[0m\u009B2J\u009D0;t\u009C\u001BP$q\u001B\\\u001Bc" +
  "\b\b\b\u007F\u0000\rfake\u202Edne\u2066\u200F\u061C\u2028\u0085\u0090\n\tend"

describe("what others choose", () => {
  it("on one line, on several and in JSON has no power, and is told", () => {
    assert.notMatch(Printable.onOneLine(hostile), /[\n\t]/)
    for (const text of [Printable.onOneLine(hostile), Printable.lines(hostile), Printable.json({ hostile })]) {
      assert.notMatch(text, power)
      assert.match(text, /owned/)
    }
    assert.deepStrictEqual(JSON.parse(Printable.json({ [hostile]: hostile })), { [hostile]: hostile })
  })

  it("is as it is where it has no power", () => {
    for (const text of ["", "plain", "zwölf Boxkämpfer\n\tjagen 🐝\n", "日本語", "\\u{1b}"]) {
      assert.strictEqual(Printable.lines(text), text)
    }
    assert.deepStrictEqual(JSON.parse(Printable.json({ a: [1, "é"] })), { a: [1, "é"] })
  })

  it.prop("of lines is as it is when it is made so again", [Schema.String], ([text]) => {
    const once = Printable.lines(text)
    assert.strictEqual(Printable.lines(once), once)
    assert.notMatch(once, power)
  })
})

const end = MachineEnd.MachineEnd.cases.Failed.make({
  status: ExitStatus.exited(1),
  consoleTail: hostile,
  stderrTail: hostile,
  why: hostile
})
const tails = { stderrTail: hostile, consoleTail: hostile, logTail: hostile }
const tail = { text: hostile, omittedBytes: 0 }
const call = { method: "PUT", path: "/x" } as const
const within = Duration.seconds(1)
const { status } = end

const errors: ReadonlyArray<{ readonly _tag: string; readonly message: string }> = [
  new MicroVmError.LaunchFailed({ id: "a", stage: "boot", cause: new Error(hostile), ...tails }),
  new MicroVmError.MachineEnded({ id: "a", end }),
  new MicroVmError.OperationFailed({ id: "a", operation: "pause", cause: hostile }),
  new MicroVmError.AttachFailed({ id: "a", isHeld: false, why: hostile }),
  new MicroVmError.SnapshotUnusable({ snapshot: "a", why: [hostile] }),
  new MicroVmError.BackendUnavailable({ backend: "qemu", why: hostile, remedy: "install it" }),
  new GuestError.AgentError({ command: "guest-exec", class: hostile, desc: hostile }),
  new GuestError.CommandNotFound({ command: "guest-exec", desc: hostile }),
  new GuestError.Protocol({ operation: "guest-exec", problem: hostile, received: hostile }),
  new GuestError.NotStarted({ code: 126, text: hostile }),
  new GuestError.NotRenewed({ unproven: [hostile], isTransient: false }),
  new GuestError.Closed({ channel: "agent", cause: new Error(hostile) }),
  new QmpError.CommandRejected({ command: "cont", class: hostile, desc: hostile }),
  new QmpError.Disconnected({ why: hostile }),
  new QmpError.ProtocolViolation({ detail: hostile }),
  new QmpError.MigrationFailed({ direction: "in", why: hostile }),
  new FirecrackerError.ProtocolViolation({ ...call, detail: hostile }),
  new FirecrackerError.ConnectionFailed({ ...call, socket: "/s", phase: "connect", cause: new Error(hostile) }),
  new FirecrackerError.ProcessEnded({ stage: "start", status, meaning: "it failed", ...tails }),
  new FirecrackerError.NotReady({ within, cause: hostile, ...tails }),
  new FirecrackerError.HostFailed({ operation: "copy", path: "/p", why: hostile }),
  new FirecrackerError.VsockUnavailable({ path: "/p", port: 1, why: hostile }),
  new FirecrackerError.GuestMetadataFailed({ operation: "ping", why: hostile }),
  new FirecrackerError.SnapshotUnusable({ directory: "/d", why: [hostile] }),
  new FirecrackerError.PageServerFailed({ why: hostile }),
  { _tag: "ApiFault", ...FaultMessage.classify({ status: 400, body: JSON.stringify({ fault_message: hostile }) }) },
  new HostError.CommandFailed({ program: "nft", what: "rules", status: "exited", stderr: hostile, line: hostile }),
  new HostError.IoFailed({ operation: "open", path: "/p", cause: new Error(hostile) }),
  ImageError.fromReason(ImageError.ImageErrorReason.DownloadFailed({ command: "apt-get", output: hostile })),
  ProcessError.fromReason(
    ProcessError.ProcessErrorReason.DiedBeforeReady({ status, tail: { stdout: tail, stderr: tail } })
  ),
  ProcessError.fromReason(ProcessError.ProcessErrorReason.HolderFailed({ directory: "/d", why: hostile })),
  ServiceError.fromReason(ServiceError.ServiceErrorReason.TaskFailed({ task: "t", why: hostile })),
  { _tag: "explain", message: ServiceError.explain(new Error("outer", { cause: new Error(hostile) })) },
  { _tag: "MachineEnd", message: MachineEnd.format(end) }
]

describe("a message that quotes others", () => {
  it.each(errors.map((error) => [error._tag, error.message] as const))(
    "of %s has no power over a terminal",
    (_, message) => {
      assert.notMatch(message, power)
      assert.match(message, /owned/)
    }
  )
})
