/**
 * What real releases have answered is in `test/testing/fixtures/firecracker.jsonl`, and the fake has to answer the same. With
 * FIRECRACKER_BIN it is asked of that program as well; FIDELITY_RECORD=1 writes down what that says instead.
 */
import { afterAll, assert, describe, it } from "@effect/vitest"
import { FirecrackerApi, NodeApiTransport } from "effect-microvm-runtime/firecracker"
import { FakeFirecracker } from "effect-microvm-runtime/testing"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawnSync } from "node:child_process"
import { accessSync, constants } from "node:fs"
import * as Answers from "../testing/firecrackerAnswers.ts"
import * as Client from "../testing/firecrackerClient.ts"
import * as Transcript from "../testing/firecrackerTranscript.ts"
import { directory } from "./rawServer.ts"

const { FIDELITY_RECORD, FIRECRACKER_BIN: binary } = process.env
const hasKvm = (() => {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
})()

if (binary === undefined) {
  console.warn("fidelity.integration.test.ts: no FIRECRACKER_BIN, the fake meets only what was recorded of real ones")
} else if (!hasKvm) {
  console.warn("fidelity.integration.test.ts: no /dev/kvm, what needs a machine that runs is not asked of the real one")
}

const realVersion = binary === undefined
  ? ""
  : /^Firecracker v(\S+)/.exec(spawnSync(binary, ["--version"], { encoding: "utf8" }).stdout)?.[1] ?? ""

/** Of this release the fake is spawned, and its arguments are known. */
const latest = "1.16.1"

const others = new Set([...Answers.versions, ...(binary === undefined ? [] : [realVersion])])
others.delete(latest)
if (others.size > 0) {
  console.warn(`fidelity.integration.test.ts: the arguments of ${latest} only, not of ${[...others].join(", ")}`)
}

/** What a section of a release answers. On a busy machine an answer may come after all seemed to have come: then it is waited for. */
const hear = Effect.fnUntraced(function*(version: string, { name, of }: Transcript.Section, target: Transcript.Target) {
  const rows = yield* of(target)
  return Answers.differences(version, name, rows).length === 0 ? rows : yield* of(target, 1000)
})

describe.each(Answers.versions)("the fake %s answers as the real one did", (version) => {
  for (const section of Transcript.sections) {
    const { name } = section
    if (name === "arguments" && version !== latest) continue
    it.live(name, () =>
      Effect.gen(function*() {
        const target = version === latest
          ? Transcript.spawned((yield* FakeFirecracker.install({ ...Transcript.options, version })).binary)
          : Transcript.served(version)
        assert.deepStrictEqual(Answers.differences(version, name, yield* hear(version, section, target)), [])
      }).pipe(Effect.scoped), 60_000)
  }
})

describe.runIf(binary !== undefined)(`Firecracker ${realVersion}`, () => {
  const heard = new Map<string, ReadonlyArray<Answers.Row>>()
  for (const section of Transcript.sections) {
    const { name, runs } = section
    if (name === "arguments" && realVersion !== latest) continue
    it.live.skipIf(runs && !hasKvm)(`answers as is known: ${name}`, () =>
      Effect.gen(function*() {
        const rows = yield* hear(realVersion, section, Transcript.spawned(binary ?? ""))
        heard.set(name, rows)
        if (FIDELITY_RECORD === undefined) assert.deepStrictEqual(Answers.differences(realVersion, name, rows), [])
      }).pipe(Effect.scoped), 60_000)
  }
  afterAll(() => {
    if (FIDELITY_RECORD !== undefined) Answers.record(realVersion, heard)
  })
})

const turnedAway = (open: Effect.Effect<Transcript.Target, never, Scope.Scope>) =>
  Effect.gen(function*() {
    const target = yield* open
    const { socketPath } = yield* target.start(yield* directory())
    const body = `{"vcpu_count":1,"mem_size_mib":128}`
    const call = { method: "PUT", path: "/machine-config", body, within: Duration.seconds(10) } as const
    // A new connection each: the one after a refusal is.
    const transport = yield* NodeApiTransport.make({ socketPath })
    yield* Effect.scoped(Effect.gen(function*() {
      yield* Effect.replicateEffect(Client.connect(socketPath), 10)
      const answers = yield* Effect.replicateEffect(transport.request(call), 200)
      assert.deepStrictEqual([...new Set(answers.map(({ status }) => status))], [503])
    }))
    assert.isAtLeast((yield* FirecrackerApi.readVersion(transport)).minor, 7)
  }).pipe(Effect.scoped)

describe("who has an eleventh connection hears it each time, and no more once there is room", () => {
  it.live(
    "of the fake",
    () => turnedAway(Effect.map(Effect.orDie(FakeFirecracker.install({})), (fake) => Transcript.spawned(fake.binary))),
    180_000
  )
  it.live.skipIf(binary === undefined)(
    "of the real one",
    () => turnedAway(Effect.sync(() => Transcript.spawned(binary ?? ""))),
    180_000
  )
})
