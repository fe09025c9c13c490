/** Runs that others have left in a state directory. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import * as RunDirectory from "../../src/cli/RunDirectory.ts"
import { MachineRecord } from "../../src/journal/MachineRecord.ts"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import type { RunReport } from "../../src/lifecycle/RunReport.ts"
import type * as ProcessIdentity from "../../src/process/ProcessIdentity.ts"

/** A state directory that is not there yet. */
export const makeState = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-state-test-"))),
    (directory) => Effect.sync(() => NodeFs.rmSync(directory, { recursive: true, force: true }))
  ),
  (directory) => NodePath.join(directory, "state")
)

export const infoOf = (id: string): Parameters<typeof RunDirectory.begin>[1] => ({
  id,
  detached: true,
  command: ["sh", "-c", "echo hello"],
  env: ["TOKEN"],
  backend: "memory",
  image: "default",
  vcpus: 1,
  memoryMib: 256,
  grace: Duration.seconds(5)
})

export const reportOf = (id: string, code: number): RunReport => ({
  id,
  backend: "memory",
  backendDetail: "a backend in memory",
  command: ["true"],
  end: { _tag: "Completed", status: ExitStatus.exited(code, "agent") },
  exitCode: code,
  phases: []
})

/** Of a process that is no more. */
export const dead: ProcessIdentity.ProcessIdentity = { bootId: "another-boot", pid: 7, startTime: 7 }

const record = (id: string, supervisor: ProcessIdentity.ProcessIdentity): MachineRecord => ({
  format: 1,
  id,
  token: "0123456789abcdef",
  bootId: supervisor.bootId,
  supervisor,
  createdAt: "2026-01-01T00:00:00.000Z",
  keep: true,
  phase: { _tag: "Up" },
  claims: [],
  spec: {},
  labels: { address: "10.0.0.1", backend: "memory" }
})

/** Something is left of its machine. */
export const leaveRecord = Effect.fnUntraced(function*(
  state: string,
  id: string,
  supervisor: ProcessIdentity.ProcessIdentity = dead
) {
  const { journal } = yield* RunDirectory.pathsOf(state, id)
  const machines = NodePath.join(journal, "machines")
  NodeFs.mkdirSync(machines, { recursive: true })
  const text = yield* Schema.encodeEffect(Schema.fromJsonString(MachineRecord))(record(id, supervisor))
  NodeFs.writeFileSync(NodePath.join(machines, `${id}.json`), text)
})

/** Its supervisor is no more. */
export const kill = Effect.fnUntraced(function*(state: string, id: string) {
  const { options } = yield* RunDirectory.pathsOf(state, id)
  const Text = Schema.fromJsonString(RunDirectory.RunInfo)
  const info = yield* Schema.decodeEffect(Text)(NodeFs.readFileSync(options, "utf8"))
  NodeFs.writeFileSync(options, yield* Schema.encodeEffect(Text)({ ...info, supervisor: dead }))
})

export const age = (path: string, seconds: number): void => {
  const then = Date.now() / 1000 - seconds
  NodeFs.utimesSync(path, then, then)
}
