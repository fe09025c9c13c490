import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import * as Control from "../../src/cli/Control.ts"
import type * as ControlRequest from "../../src/cli/ControlRequest.ts"
import * as Snapshots from "../../src/cli/Snapshots.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import type * as Snapshot from "../../src/microvm/Snapshot.ts"
import type { SnapshotStore, Stored } from "../../src/microvm/SnapshotStore.ts"
import { microvm, noSnapshots } from "./commandLine.ts"

const spec = { kernel: "/k", initramfs: "/i", vcpus: 1, memoryMib: 256, kernelArgs: [], channels: [] }
const manifest: Snapshot.Manifest = {
  format: 1,
  kind: "saved",
  form: "stream",
  platform: {},
  madeBy: "QEMU 7.2.22",
  spec,
  labels: { image: "default" },
  createdAt: "1970-01-01T00:00:00.000Z",
  files: []
}

const idOf = (prefix: string) => prefix.padEnd(64, "0")
const ready: Stored = { id: idOf("abcdef012345"), names: ["ready"], manifest, bytes: 5_000_000, lastUsed: 3_600_000 }
const golden: Stored = {
  id: idOf("0123456789ab"),
  names: ["golden-1"],
  manifest: { ...manifest, kind: "golden", labels: {} },
  bytes: 80_000_000,
  lastUsed: 0
}
const unreadable: Stored = { id: idOf("abcdef01ffff"), names: [], bytes: 1, lastUsed: 0 }

/** A store with these, of which some are not what they were. */
const storeWith = (stored: ReadonlyArray<Stored>, bad: ReadonlyArray<Stored> = []) => {
  const removed: Array<string> = []
  const find = (given: string) => stored.find(({ id, names }) => id === given || names.includes(given))
  const verify: SnapshotStore["Service"]["verify"] = (snapshot) => {
    const found = find(snapshot)
    if (found === undefined) return MicroVmError.fail(new MicroVmError.SnapshotNotFound({ snapshot }))
    return bad.includes(found)
      ? MicroVmError.fail(new MicroVmError.SnapshotUnusable({ snapshot, why: ["its file memory has changed"] }))
      : Effect.succeed({ id: found.id, directory: "/", manifest })
  }
  const snapshots: SnapshotStore["Service"] = {
    ...noSnapshots,
    list: Effect.succeed(stored),
    verify,
    remove: (given) =>
      Effect.sync(() => {
        removed.push(given)
        return find(given) !== undefined
      })
  }
  return { removed, snapshots }
}
const closed = new MicroVmError.StoreFailed({ path: "/cache", why: "permission denied" })

describe("snapshot ls", () => {
  it.effect("has a line for each, with what people want to know", () =>
    Effect.gen(function*() {
      yield* TestClock.adjust("2 hours")
      const { code, stderr, stdout } = yield* microvm(["snapshot", "ls"], {
        snapshots: storeWith([ready, golden, unreadable]).snapshots
      })
      assert.deepStrictEqual([code, stderr], [0, []])
      assert.deepStrictEqual(stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/)), [
        ["NAME", "ID", "KIND", "MADE BY", "IMAGE", "SIZE", "MEMORY", "AGE", "LAST USED"],
        ["ready", "abcdef012345", "saved", "QEMU 7.2.22", "default", "5 MiB", "256 MiB", "2 h", "1 h"],
        ["golden-1", "0123456789ab", "golden", "QEMU 7.2.22", "77 MiB", "256 MiB", "2 h", "2 h"],
        ["", "abcdef01ffff", "unreadable", "1 MiB", "2 h"]
      ])
    }))

  it.effect("is JSON for programs", () =>
    Effect.gen(function*() {
      const { code, stdout } = yield* microvm(["snapshot", "ls", "--json"], {
        snapshots: storeWith([ready, unreadable]).snapshots
      })
      assert.strictEqual(code, 0)
      const [first, second] = yield* Schema.decodeUnknownEffect(
        Schema.fromJsonString(Schema.Array(Snapshots.Listed)),
        { onExcessProperty: "error" }
      )(stdout)
      assert.deepStrictEqual(first, {
        id: ready.id,
        names: ["ready"],
        kind: "saved",
        madeBy: "QEMU 7.2.22",
        image: "default",
        vcpus: 1,
        memoryMib: 256,
        bytes: 5_000_000,
        createdAt: "1970-01-01T00:00:00.000Z",
        lastUsedAt: "1970-01-01T01:00:00.000Z"
      })
      assert.deepStrictEqual(second, {
        id: unreadable.id,
        names: [],
        bytes: 1,
        lastUsedAt: "1970-01-01T00:00:00.000Z"
      })
    }))

  it.effect("exits with 125 where the store cannot be read", () =>
    Effect.gen(function*() {
      const snapshots = { ...noSnapshots, list: MicroVmError.fail(closed) }
      const { code, stderr } = yield* microvm(["snapshot", "ls"], { snapshots })
      assert.deepStrictEqual([code, stderr], [125, [closed.message]])
    }))

  it.effect("ends at a signal", () =>
    Effect.gen(function*() {
      const snapshots = { ...noSnapshots, list: Effect.never }
      assert.strictEqual((yield* microvm(["snapshot", "ls"], { snapshots, signal: "SIGINT" })).code, 130)
    }))
})

describe("snapshot rm", () => {
  it.effect("removes by name, by id, and by the beginning of an id", () =>
    Effect.gen(function*() {
      const { removed, snapshots } = storeWith([ready, golden])
      const { code, stderr } = yield* microvm(["snapshot", "rm", "ready", golden.id, "01234567"], { snapshots })
      assert.deepStrictEqual([code, stderr], [0, []])
      assert.deepStrictEqual(removed, ["ready", golden.id, golden.id])
    }))

  it.effect("goes on after one that is not there, and exits with 1", () =>
    Effect.gen(function*() {
      const { removed, snapshots } = storeWith([ready])
      const { code, stderr } = yield* microvm(["snapshot", "rm", "nonesuch", "ready"], { snapshots })
      assert.deepStrictEqual([code, stderr], [1, [`There is no snapshot "nonesuch"`]])
      assert.deepStrictEqual(removed, ["nonesuch", "ready"])
    }))

  it.effect("does not guess which of two is meant", () =>
    Effect.gen(function*() {
      const { removed, snapshots } = storeWith([ready, unreadable])
      const { code, stderr } = yield* microvm(["snapshot", "rm", "abcdef01"], { snapshots })
      assert.deepStrictEqual([code, stderr], [64, [
        `snapshot "abcdef01" is not possible: give more of it, as 2 ids begin so`
      ]])
      assert.deepStrictEqual(removed, [])
    }))

  it.effect("takes fewer than eight digits, and a name that looks like an id, as they are", () =>
    Effect.gen(function*() {
      const named: Stored = { ...golden, names: ["abcdef01"] }
      const { removed, snapshots } = storeWith([ready, named])
      yield* microvm(["snapshot", "rm", "abcdef0", "abcdef01"], { snapshots })
      assert.deepStrictEqual(removed, ["abcdef0", "abcdef01"])
    }))

  it.effect("wants one at least", () =>
    Effect.gen(function*() {
      const { code } = yield* microvm(["snapshot", "rm"])
      assert.strictEqual(code, 64)
    }))

  it.effect("exits with 125 when it cannot be done", () =>
    Effect.gen(function*() {
      const snapshots = { ...noSnapshots, remove: () => MicroVmError.fail(closed) }
      const { code, stderr } = yield* microvm(["snapshot", "rm", "ready"], { snapshots })
      assert.deepStrictEqual([code, stderr], [125, [closed.message]])
    }))
})

describe("snapshot verify", () => {
  it.effect("reads all of them when none is named", () =>
    Effect.gen(function*() {
      const { snapshots } = storeWith([ready, golden])
      const { code, stderr, stdout } = yield* microvm(["snapshot", "verify"], { snapshots })
      assert.deepStrictEqual([code, stderr, stdout], [0, [], "ok    ready\nok    golden-1\n"])
    }))

  it.effect("tells which are not what they were, and why, and exits with 1", () =>
    Effect.gen(function*() {
      const { snapshots } = storeWith([ready, golden], [ready])
      const { code, stderr, stdout } = yield* microvm(["snapshot", "verify"], { snapshots })
      assert.deepStrictEqual([code, stdout], [1, "FAIL  ready\nok    golden-1\n"])
      assert.match(stderr.join("\n"), /^Snapshot "ready" cannot be used: its file memory has changed/)
    }))

  it.effect("of one that is not there exits with 1", () =>
    Effect.gen(function*() {
      const { snapshots } = storeWith([ready])
      const { code, stdout } = yield* microvm(["snapshot", "verify", "ready", "nonesuch"], { snapshots })
      assert.deepStrictEqual([code, stdout], [1, "ok    ready\nFAIL  nonesuch\n"])
    }))

  it.effect("of none at all is well", () =>
    Effect.gen(function*() {
      const { code, stderr, stdout } = yield* microvm(["snapshot", "verify"])
      assert.deepStrictEqual([code, stderr, stdout], [0, [], ""])
    }))
})

describe("snapshot save", () => {
  const controlWith = (
    answer: (id: string, request: ControlRequest.Request) => Effect.Effect<ControlRequest.Answer, Control.ControlError>
  ): Control.Control["Service"] => ({
    listen: () => Effect.void,
    ask: (id, request) => Effect.flatMap(answer(id, request), (one) => Control.toAnswer(id, request, one)),
    exec: () => Effect.die(new Error("a command is run"))
  })
  const unasked = controlWith(() => Effect.die(new Error("a run was asked")))

  it.effect("says how long it took, and for how long the machine stood still", () =>
    Effect.gen(function*() {
      const asked: Array<unknown> = []
      const control = controlWith((id, request) =>
        Effect.sync(() => {
          asked.push([id, request])
          return { _tag: "Saved" as const, snapshot: ready.id, took: 612, stoodStill: 498 }
        })
      )
      const { code, stderr, stdout } = yield* microvm(["snapshot", "save", "dev", "ready"], { control })
      assert.deepStrictEqual([code, stdout], [0, ""])
      assert.deepStrictEqual(stderr, ["saved as ready in 612 ms; the machine stood still for 498 ms"])
      assert.deepStrictEqual(asked, [["dev", { _tag: "Save", name: "ready" }]])
    }))

  const faults: ReadonlyArray<readonly [args: ReadonlyArray<string>, told: RegExp]> = [
    [["a_b", "ready"], /^machine "a_b" is not possible: give 1 to 64 letters/],
    [["dev", "../x"], /^snapshot "\.\.\/x" is not possible: give 1 to 64 letters/],
    [["dev", ready.id], /^snapshot ".*" is not possible: .*not 64 hexadecimal digits/],
    [
      ["dev", "golden-1"],
      /^snapshot "golden-1" is not possible: give another name: golden machines have such names/
    ]
  ]
  it.effect.each(faults)("%j is a wrong command line, and nobody is asked", ([args, told]) =>
    Effect.gen(function*() {
      const { code, stderr } = yield* microvm(["snapshot", "save", ...args], { control: unasked })
      assert.strictEqual(code, 64)
      assert.match(stderr.join("\n"), told)
    }))

  const refusals: ReadonlyArray<readonly [reason: Control.ControlError["reason"], code: number]> = [
    [new Control.NoSuchMachine({ id: "dev", there: ["web-1", "web-2"] }), 1],
    [new Control.Refused({ id: "dev", reason: "NotReady", why: "not yet" }), 1],
    [new Control.Refused({ id: "dev", reason: "NameTaken", why: "it is taken" }), 1],
    [new Control.Refused({ id: "dev", reason: "Failed", why: "no space left" }), 125],
    [new Control.Gone({ id: "dev" }), 125],
    [new Control.Stranger({ id: "dev" }), 125],
    [new Control.Unavailable({ why: "no key" }), 125]
  ]
  it.effect.each(refusals)("tells why it was not done: %j", ([reason, code]) =>
    Effect.gen(function*() {
      const ended = yield* microvm(["snapshot", "save", "dev", "ready"], {
        control: controlWith(() => Control.fail(reason))
      })
      assert.strictEqual(ended.code, code)
      assert.deepStrictEqual(ended.stderr, [reason.message])
    }))

  it.effect("ends at a signal", () =>
    Effect.gen(function*() {
      const control = controlWith(() => Effect.never)
      const { code } = yield* microvm(["snapshot", "save", "dev", "ready"], { control, signal: "SIGINT" })
      assert.strictEqual(code, 130)
    }))
})

describe("run --from --dry-run", () => {
  const golden256 = { ...ready, manifest: { ...manifest, spec: { ...spec, memoryMib: 512 } } }
  it.effect("shows the machine of the snapshot, without opening it", () =>
    Effect.gen(function*() {
      const { snapshots } = storeWith([golden256])
      const { code, stdout } = yield* microvm(["run", "--from", "ready", "--dry-run", "--", "true"], {
        snapshots: { ...snapshots, open: () => Effect.die(new Error("it was opened")) }
      })
      assert.strictEqual(code, 0)
      assert.match(stdout, /\nfrom: restored from snapshot ready\n/)
      assert.match(stdout, /-m 512M? /)
    }))

  const refusals: ReadonlyArray<readonly [stored: ReadonlyArray<Stored>, from: string, code: number]> = [
    [[], "ready", 64],
    [[unreadable], unreadable.id, 125]
  ]
  it.effect.each(refusals)("of %j says what is wrong", ([stored, from, code]) =>
    Effect.gen(function*() {
      const { snapshots } = storeWith(stored)
      assert.strictEqual((yield* microvm(["run", "--from", from, "--dry-run", "--", "true"], { snapshots })).code, code)
    }))

  it.effect("says how the others would come up", () =>
    Effect.gen(function*() {
      const warm = yield* microvm(["run", "--dry-run", "--", "true"])
      assert.match(warm.stdout, /\nwarm: restored from a golden machine/)
      const cold = yield* microvm(["run", "--cold", "--dry-run", "--", "true"])
      assert.include(cold.stdout, "\ncold: booted\n")
    }))
})
