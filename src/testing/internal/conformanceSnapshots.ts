/** What backends that can save machines have to do alike. */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Machine from "../../microvm/Machine.ts"
import * as MachineSpec from "../../microvm/MachineSpec.ts"
import * as Snapshot from "../../microvm/Snapshot.ts"
import { expect, refused, type Suite } from "./conformance.ts"

export const snapshotScenarios = <R>({ rig, scenario }: Suite<R>): void => {
  const { stop } = rig
  const booted = rig.booted ?? (() => Effect.void)
  const restored = rig.restored ?? booted

  scenario(
    "rows 47 and 48: names of snapshots",
    ["snapshot"],
    ({ id, kept, running, runtime }) =>
      Effect.gen(function*() {
        const a = id("a")
        yield* running("a")
        for (const name of ["../warm", "a/b", "", "a..b", "wa rm", "a\0b", "x".repeat(65), "0".repeat(64)]) {
          yield* refused(`snapshot ${JSON.stringify(name)}`, runtime.snapshot(a, name), "InvalidSpec snapshot")
        }
        yield* expect("kept", (yield* kept).length, 0)
        yield* runtime.snapshot(a, "ok-1.v2_x")
        yield* expect("snapshots", yield* runtime.listSnapshots(a), Option.some(["ok-1.v2_x"]))
      })
  )

  scenario(
    "row 51: a snapshot that is not finished is not kept, and the guest goes on",
    ["snapshot"],
    ({ id, kept, running, runtime, stateOf, store }) =>
      Effect.gen(function*() {
        const machine = yield* running("a")
        const labels = { machine: id("a") }
        const add = store.add(
          { kind: "saved", spec: Snapshot.specOf(machine.spec), labels },
          (directory) => Effect.andThen(machine.save(directory), Effect.fail("no room"))
        )
        yield* expect("failure", yield* Effect.flip(add), "no room")
        yield* expect("kept", (yield* kept).length, 0)
        const leaving = yield* Effect.forkScoped(runtime.snapshot(id("a"), "s"), { startImmediately: true })
        yield* Fiber.interrupt(leaving)
        yield* expect("state", yield* stateOf("a"), "running")
        // It may have been made already: then it is whole.
        const names = Option.getOrElse(yield* runtime.listSnapshots(id("a")), () => [])
        yield* expect("kept", (yield* kept).length, names.length)
        yield* runtime.snapshot(id("a"), "again")
      })
  )

  scenario(
    "row 52: a snapshot is in the store whole, or not at all",
    ["snapshot"],
    ({ id, kept, running, store }) =>
      Effect.gen(function*() {
        const machine = yield* running("a")
        const spec = Snapshot.specOf(machine.spec)
        const made = yield* store.add(
          { kind: "saved", spec, labels: { machine: id("a") } },
          (directory) =>
            Effect.tap(machine.save(directory), () =>
              Effect.flatMap(kept, (seen) => expect("kept meanwhile", seen.length, 0)))
        )
        yield* expect("kept", (yield* kept).map((one) => [one.id, one.manifest?.kind]), [[made.id, "saved"]])
        yield* expect("opened", yield* store.open(made.id), made)
        yield* expect("verified", yield* store.verify(made.id), made)
        yield* expect("spec", made.manifest.spec, spec)
        yield* expect("removed", [yield* store.remove(made.id), yield* store.remove(made.id)], [true, false])
        yield* refused("open", store.open(made.id), "SnapshotNotFound")
      })
  )

  scenario(
    "row 53: a running machine is saved, and a paused one, and one that never ran; each stays what it was",
    ["snapshot"],
    ({ create, id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        yield* create("c")
        yield* runtime.snapshot(id("c"), "created")
        yield* expect("state", yield* stateOf("c"), "created")
        yield* runtime.start(id("c"))
        yield* booted(yield* running("a"))
        yield* runtime.snapshot(id("a"), "running")
        yield* expect("state", yield* stateOf("a"), "running")
        yield* runtime.pause(id("a"))
        yield* runtime.snapshot(id("a"), "paused")
        yield* expect("state", yield* stateOf("a"), "paused")
        yield* runtime.resume(id("a"))
        yield* runtime.restore({ id: id("d"), snapshot: { machine: id("c"), name: "created" } })
        for (const name of ["running", "paused"]) {
          yield* runtime.restore({ id: id(name), snapshot: { machine: id("a"), name } })
          yield* expect(`restored from ${name}`, yield* stateOf(name), "running")
        }
      })
  )

  scenario(
    "row 57: a snapshot that is not there is said before anything is done",
    ["snapshot"],
    ({ id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        const a = id("a")
        yield* running("a")
        yield* runtime.snapshot(a, "s")
        const restore = (snapshot: string | { machine: string; name: string }, as = id("b")) =>
          runtime.restore({ id: as, snapshot })
        yield* refused("no such name", restore(id("no-such")), "SnapshotNotFound")
        yield* refused("no such id", restore("0".repeat(64)), "SnapshotNotFound")
        yield* refused("not of this machine", restore({ machine: a, name: "t" }), "SnapshotNotFound")
        yield* refused("no such machine", restore({ machine: id("x"), name: "s" }), "MachineNotFound")
        yield* refused("taken", restore({ machine: a, name: "s" }, a), "MachineAlreadyExists")
        yield* refused("not an id", restore({ machine: a, name: "s" }, "../b"), "InvalidSpec id")
        yield* runtime.removeSnapshot(a, "s")
        yield* refused("removed", restore({ machine: a, name: "s" }), "SnapshotNotFound")
        yield* refused("removed again", runtime.removeSnapshot(a, "s"), "SnapshotNotFound")
        yield* expect("state", yield* stateOf("b"), "absent")
        yield* expect("snapshots", yield* runtime.listSnapshots(a), Option.some([]))
      })
  )

  scenario(
    "row 57: a snapshot that is damaged is not loaded",
    ["snapshot", "corrupt"],
    ({ id, kept, running, runtime, stateOf, store }) =>
      Effect.gen(function*() {
        yield* running("a")
        yield* runtime.snapshot(id("a"), "s")
        for (const one of yield* kept) yield* rig.corrupt?.(yield* store.open(one.id)) ?? Effect.void
        const restore = runtime.restore({ id: id("b"), snapshot: { machine: id("a"), name: "s" } })
        yield* refused("restore", restore, "SnapshotUnusable")
        yield* expect("state", yield* stateOf("b"), "absent")
      })
  )

  scenario(
    "row 57: a snapshot that was made for another host is not loaded",
    ["snapshot"],
    ({ id, kept, running, runtime, store }) =>
      Effect.gen(function*() {
        yield* running("a")
        yield* runtime.snapshot(id("a"), "s")
        for (const one of yield* kept) {
          const { manifest, ...rest } = yield* store.open(one.id)
          const platform = { ...manifest.platform, "made on": "another host" }
          const foreign = { ...rest, manifest: { ...manifest, platform } }
          yield* refused("restore", Machine.restore(id("b"), foreign), "SnapshotUnusable")
        }
      })
  )

  scenario(
    "row 60: a restored machine runs, or is paused; it is ended and started like any other",
    ["snapshot"],
    ({ id, running, runtime, stateOf }) =>
      Effect.gen(function*() {
        const snapshot = { machine: id("a"), name: "s" }
        yield* booted(yield* running("a"))
        yield* runtime.snapshot(id("a"), "s")
        const b = yield* runtime.restore({ id: id("b"), snapshot, resume: true })
        const c = yield* runtime.restore({ id: id("c"), snapshot, resume: false })
        yield* expect("states", [b.state, c.state], ["running", "paused"])
        yield* expect("snapshots of its own", b.snapshots, [])
        const { hostname: _, ...spec } = yield* MachineSpec.decode(rig.spec(id("b")))
        yield* expect("spec", b.spec, spec)
        yield* refused("start", runtime.start(id("c")), "InvalidTransition paused→running")
        yield* runtime.resume(id("c"))
        yield* expect("state", yield* stateOf("c"), "running")
        yield* runtime.stop(id("b"), stop)
        yield* expect("state", yield* stateOf("b"), "stopped")
        yield* runtime.start(id("b"))
        yield* expect("started again", yield* stateOf("b"), "running")
        // What it was made from is not needed any more, and has gone on.
        yield* expect("state", yield* stateOf("a"), "running")
        yield* runtime.destroy(id("a"))
        const d = yield* runtime.restore({ id: id("d"), snapshot, resume: false })
        yield* expect("after its machine was destroyed", d.state, "paused")
        yield* runtime.stop(id("d"), stop)
        yield* expect("state", yield* stateOf("d"), "stopped")
      })
  )

  scenario(
    "guests that are restored from one snapshot go on with its memory, and share nothing",
    ["snapshot", "remember", "recall"],
    ({ id, machine, running, runtime }) =>
      Effect.gen(function*() {
        const recall = (name: string) =>
          Effect.flatMap(machine(name), (found) => rig.recall?.(found) ?? Effect.succeed("nothing"))
        const remember = (name: string, word: string) =>
          Effect.flatMap(machine(name), (found) => rig.remember?.(found, word) ?? Effect.void)
        const clone = Effect.fnUntraced(function*(name: string, of: string) {
          yield* runtime.restore({ id: id(name), snapshot: { machine: id(of), name: "s" } })
          yield* restored(yield* machine(name))
        })
        yield* booted(yield* running("a"))
        yield* remember("a", "before")
        yield* runtime.snapshot(id("a"), "s")
        yield* remember("a", "after")
        yield* clone("b", "a")
        yield* clone("c", "a")
        yield* expect("b", yield* recall("b"), "before")
        yield* remember("b", "of b")
        yield* expect("c", yield* recall("c"), "before")
        yield* expect("a", yield* recall("a"), "after")
        yield* runtime.snapshot(id("b"), "s")
        yield* remember("b", "later")
        yield* clone("d", "b")
        yield* expect("restored from one that was restored", yield* recall("d"), "of b")
      })
  )
}
