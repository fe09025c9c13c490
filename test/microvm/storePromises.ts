import { expect, it } from "@effect/vitest"
import { type MicroVmError, type Snapshot, SnapshotStore } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import { fork, quiet, reason } from "./support.ts"

/** The tests of what each store promises, whatever it keeps snapshots in. */
export const storePromises = <E>(options: {
  /** A store with nothing in it. */
  readonly layer: Layer.Layer<SnapshotStore.SnapshotStore, E>
  /** Fills a directory as a backend does. */
  readonly write: (directory: string) => Effect.Effect<Snapshot.Saved>
}): void => {
  const { layer, write } = options
  const spec: Snapshot.Spec = { vcpus: 1, memoryMib: 96, kernel: "/boot/vmlinux", kernelArgs: [], channels: ["a"] }
  const add = Effect.fnUntraced(function*(
    more: Partial<SnapshotStore.AddOptions> = {},
    fill: (directory: string) => Effect.Effect<Snapshot.Saved, MicroVmError.MicroVmError | string> = write
  ) {
    const store = yield* SnapshotStore.SnapshotStore
    return yield* store.add({ kind: "saved", spec, ...more }, fill)
  })
  const listed = SnapshotStore.SnapshotStore.use(({ list }) =>
    Effect.map(list, (all) => new Map(all.map(({ id, names }) => [id, names])))
  )
  const test = (
    name: string,
    body: (store: SnapshotStore.SnapshotStore["Service"]) => Effect.Effect<void, unknown, SnapshotStore.SnapshotStore>
  ) =>
    // A store that others use too may wait for them in real time.
    it.live(name, () => Effect.provide(Effect.flatMap(SnapshotStore.SnapshotStore, body), layer))

  test("add, open and list tell the same of a snapshot", (store) =>
    Effect.gen(function*() {
      const labels = { image: "abc", "a label": "ü" }
      const made = yield* add({ kind: "golden", name: "base", labels })
      expect(made.manifest).toMatchObject({ format: 1, kind: "golden", spec, labels })
      expect(new Date(made.manifest.createdAt).toISOString()).toBe(made.manifest.createdAt)
      for (const key of ["base", made.id]) {
        expect(yield* store.open(key)).toEqual(made)
        expect(yield* store.verify(key)).toEqual(made)
      }
      expect(yield* store.list).toMatchObject([{ id: made.id, names: ["base"], manifest: made.manifest }])
    }))

  test("no two snapshots have one id, and no id is a name", () =>
    Effect.gen(function*() {
      const ids = yield* Effect.forEach([1, 2, 3], () => Effect.map(add(), ({ id }) => id))
      expect(new Set(ids).size).toBe(3)
      for (const id of ids) {
        expect(id).toMatch(/^[0-9a-f]{64}$/)
        expect((yield* reason(add({ name: id })))?._tag).toBe("InvalidSpec")
      }
    }))

  test("a name that is none is refused before anything is written", (store) =>
    Effect.gen(function*() {
      for (const name of ["", "..", "a/b", "a b", "a\0b", "../../etc", "x".repeat(65)]) {
        expect(yield* reason(add({ name }, () => Effect.die("written")))).toMatchObject({
          _tag: "InvalidSpec",
          faults: [{ value: name }]
        })
      }
      expect(yield* store.list).toEqual([])
    }))

  test("a name is given once, and taken away only on request", () =>
    Effect.gen(function*() {
      const first = yield* add({ name: "s" })
      const again = add({ name: "s" }, () => Effect.die("written"))
      expect(yield* reason(again)).toMatchObject({ _tag: "SnapshotAlreadyExists", snapshot: "s" })
      const second = yield* add({ name: "s", replace: true })
      expect(yield* listed).toEqual(new Map([[first.id, []], [second.id, ["s"]]]))
      yield* add({ name: "t", replace: true })
    }))

  test("of two that make a snapshot of one name at once, one does", (store) =>
    Effect.gen(function*() {
      const slow = (directory: string) => Effect.tap(write(directory), () => quiet)
      const results = yield* Effect.forEach([1, 2], () => Effect.exit(add({ name: "s" }, slow)), {
        concurrency: "unbounded"
      })
      expect(results.map(({ _tag }) => _tag).toSorted()).toEqual(["Failure", "Success"])
      expect((yield* store.list).map(({ names }) => names)).toEqual([["s"]])
    }))

  test("what fails, dies or is interrupted on the way is not there", (store) =>
    Effect.gen(function*() {
      const after = (then: Effect.Effect<never, string>) =>
        add({ name: "s" }, (directory) => Effect.andThen(write(directory), then))
      expect(yield* Effect.flip(after(Effect.fail("no room")))).toBe("no room")
      expect((yield* Effect.exit(after(Effect.die("defect"))))._tag).toBe("Failure")
      yield* Effect.flatMap(fork(after(Effect.never)), Fiber.interrupt)
      expect(yield* store.list).toEqual([])
      yield* add({ name: "s" })
    }))

  test("it is not seen until it is whole", (store) =>
    Effect.gen(function*() {
      const made = yield* add(
        { name: "s" },
        (directory) => Effect.tap(write(directory), () => Effect.map(store.list, (all) => expect(all).toEqual([])))
      )
      expect(yield* listed).toEqual(new Map([[made.id, ["s"]]]))
    }))

  test("remove by name forgets the name, and deletes what no name means any more", (store) =>
    Effect.gen(function*() {
      const nameless = yield* add()
      const one = yield* add({ name: "one" })
      expect(yield* store.remove("one")).toBe(true)
      expect(yield* store.remove("one")).toBe(false)
      expect((yield* reason(store.open(one.id)))?._tag).toBe("SnapshotNotFound")
      expect(yield* listed).toEqual(new Map([[nameless.id, []]]))
    }))

  test("remove by id deletes it with its name", (store) =>
    Effect.gen(function*() {
      const made = yield* add({ name: "s" })
      expect(yield* store.remove(made.id)).toBe(true)
      expect(yield* store.remove(made.id)).toBe(false)
      expect(yield* reason(store.open("s"))).toMatchObject({ _tag: "SnapshotNotFound", snapshot: "s" })
      yield* add({ name: "s" })
    }))

  test("what is not there is not found, and what could not be there is refused", (store) =>
    Effect.gen(function*() {
      for (const key of ["s", "0".repeat(64)]) {
        expect(yield* reason(store.open(key))).toMatchObject({ _tag: "SnapshotNotFound", snapshot: key })
        expect(yield* reason(store.verify(key))).toMatchObject({ _tag: "SnapshotNotFound", snapshot: key })
        expect(yield* store.remove(key)).toBe(false)
      }
      for (const key of ["", "..", "../../etc/passwd", "a\0b"]) {
        for (const look of [store.open, store.verify, store.remove]) {
          expect(yield* reason<unknown, never, never>(look(key))).toMatchObject({
            _tag: "InvalidSpec",
            faults: [{ value: key }]
          })
        }
      }
    }))

  const diffOf = (base: string, more: Partial<SnapshotStore.AddOptions> = {}) =>
    add(more, (directory) => Effect.map(write(directory), (saved) => ({ ...saved, base, moment: "now" })))

  test("a difference names its base, and comes with it", (store) =>
    Effect.gen(function*() {
      const base = yield* add({ name: "base" })
      const first = yield* diffOf(base.id)
      const second = yield* diffOf(first.id, { name: "second" })
      expect(first).toMatchObject({ base, manifest: { base: base.id, moment: "now" } })
      expect(second.base).toEqual(first)
      for (const look of [store.open, store.verify]) expect(yield* look("second")).toEqual(second)
      expect(new Map((yield* store.list).map(({ id, manifest }) => [id, manifest?.base]))).toEqual(
        new Map([[base.id, undefined], [first.id, base.id], [second.id, first.id]])
      )
    }))

  test("a difference to what is not there, or goes meanwhile, is not kept", (store) =>
    Effect.gen(function*() {
      const none = "0".repeat(64)
      const why = [`its base ${none.slice(0, 12)} is not there`]
      expect(yield* reason(diffOf(none, { name: "s" }))).toMatchObject({ _tag: "SnapshotUnusable", why })
      const base = yield* add()
      const losing = add({}, (directory) =>
        Effect.andThen(
          store.remove(base.id),
          Effect.map(write(directory), (saved) => ({ ...saved, base: base.id }))
        ))
      expect((yield* reason(losing))?._tag).toBe("SnapshotUnusable")
      expect(yield* store.list).toEqual([])
    }))

  test("what others are the difference to stays until they are gone, with its names", (store) =>
    Effect.gen(function*() {
      const base = yield* add({ name: "base" })
      const one = yield* diffOf(base.id)
      const two = yield* diffOf(base.id, { name: "two" })
      for (const key of ["base", base.id]) {
        const refused = yield* reason(store.remove(key))
        expect(refused).toMatchObject({ _tag: "SnapshotInUse", snapshot: key })
        expect(refused?._tag === "SnapshotInUse" ? refused.by.toSorted() : []).toEqual([one.id, two.id].toSorted())
      }
      expect((yield* store.open("base")).id).toBe(base.id)
      expect(yield* store.remove(one.id)).toBe(true)
      expect(yield* store.remove("two")).toBe(true)
      expect(yield* store.remove("base")).toBe(true)
      expect(yield* store.list).toEqual([])
    }))
}
