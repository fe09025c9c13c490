import { describe, expect, it } from "@effect/vitest"
import {
  Machine,
  MachineSpec,
  MemoryDriver,
  MemoryProvider,
  MicroVmError,
  MicroVmProvider,
  Snapshot,
  SnapshotStore
} from "effect-microvm-runtime/microvm"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { fork, isDone, pass, quiet, reason, wanted } from "./support.ts"

const host = Effect.provide(MemoryProvider.layer)

const launched = Effect.fnUntraced(function*(script: MemoryDriver.Script = {}, options?: Machine.LaunchOptions) {
  const driver = yield* MemoryDriver.MemoryDriver
  yield* driver.script("*", script)
  // The first sleep of a test clock that nobody has moved ends at once in a fiber that is interrupted.
  yield* pass(0)
  const machine = yield* Machine.launch(yield* MachineSpec.decode(wanted("m")), options)
  const guest = yield* driver.guest("m")
  // Whatever a test leaves hanging ends here, without a clock that somebody moves.
  yield* Effect.addFinalizer(() => guest.kill("SIGKILL"))
  return { driver, machine, guest, asked: (id = "m") => askedOf(driver, id) }
})

/** What the backend was asked for since a launch. */
const askedOf = (driver: MemoryDriver.MemoryDriver["Service"], id: string) =>
  Effect.map(driver.events, (events) => {
    const whats = events.filter((event) => event.id === id).map(({ what }) => what)
    return whats.slice(whats.indexOf("launched") + 1)
  })

const running = Effect.fnUntraced(function*(script?: MemoryDriver.Script, options?: Machine.LaunchOptions) {
  const all = yield* launched(script, options)
  yield* all.machine.start
  return all
})

/** A machine `m` that runs, and a snapshot of it. */
const kept = Effect.fnUntraced(function*(script?: MemoryDriver.Script, options?: Machine.LaunchOptions) {
  const store = yield* SnapshotStore.SnapshotStore
  const all = yield* running(script, options)
  const { machine } = all
  const snapshot = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
  return { ...all, snapshot, store }
})

describe("save", () => {
  it.effect("stops a guest that runs meanwhile, and nobody sees another state", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ save: Effect.sleep("1 second") })
      const seen = yield* fork(Stream.runCollect(Stream.take(machine.changes, 2)))
      const save = yield* fork(machine.save("/s"))
      expect([yield* machine.state, yield* asked()]).toEqual(["running", ["start", "pause", "save"]])
      yield* pass("1 second")
      expect(yield* Fiber.join(save)).toMatchObject({ platform: { backend: "memory" } })
      expect(yield* asked()).toEqual(["start", "pause", "save", "resume"])
      yield* machine.pause
      expect(yield* Fiber.join(seen)).toEqual(["running", "paused"])
    }).pipe(host))

  it.effect("leaves a guest that stands still where it is", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* launched()
      yield* machine.save("/s")
      expect([yield* machine.state, yield* asked()]).toEqual(["created", ["save"]])
      yield* machine.start
      yield* machine.pause
      yield* machine.save("/t")
      expect([yield* machine.state, yield* asked()]).toEqual(["paused", ["save", "start", "pause", "save"]])
    }).pipe(host))

  const cases: ReadonlyArray<readonly [string, MemoryDriver.Script, string, ReadonlyArray<string>, string]> = [
    ["pause", { pause: Effect.fail("x") }, "pause", ["pause", "resume"], "running"],
    ["save", { save: Effect.fail("x") }, "save", ["pause", "save", "resume"], "running"],
    ["resume", { resume: Effect.fail("x") }, "resume", ["pause", "save", "resume"], "paused"],
    ["both", { save: Effect.fail("y"), resume: Effect.fail("x") }, "resume", ["pause", "save", "resume"], "paused"]
  ]
  it.effect.each(cases)(
    "that fails in %s says so, and the state is what the guest does",
    ([, script, what, all, to]) =>
      Effect.gen(function*() {
        const { asked, driver, machine } = yield* running()
        yield* driver.script("*", script)
        expect(yield* reason(machine.save("/s"))).toMatchObject({
          _tag: "OperationFailed",
          operation: what,
          cause: "x"
        })
        expect([yield* machine.state, yield* asked()]).toEqual([to, ["start", ...all]])
        yield* driver.script("*", {})
        if (to === "paused") yield* machine.resume
        yield* machine.save("/s")
        expect(yield* machine.state).toBe("running")
      }).pipe(host)
  )

  it.effect("that dies wakes the guest too", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ save: Effect.die("defect") })
      expect((yield* Effect.exit(machine.save("/s")))._tag).toBe("Failure")
      expect([yield* machine.state, (yield* asked()).at(-1)]).toEqual(["running", "resume"])
    }).pipe(host))

  it.effect("is broken off when its caller leaves, who waits until the guest goes on", () =>
    Effect.gen(function*() {
      let broken = false
      const save = Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          broken = true
        }))
      const { asked, machine } = yield* running({ save, resume: Effect.sleep("1 second") })
      const saving = yield* fork(machine.save("/s"))
      const leaving = yield* fork(Fiber.interrupt(saving))
      yield* quiet
      expect([broken, isDone(leaving)]).toEqual([true, false])
      yield* pass("1 second")
      yield* Fiber.join(leaving)
      expect([yield* machine.state, yield* asked()]).toEqual(["running", ["start", "pause", "save", "resume"]])
      const exit = yield* Fiber.await(saving)
      expect(Exit.isFailure(exit) && Exit.hasInterrupts(exit)).toBe(true)
      yield* machine.pause
    }).pipe(host))

  it.effect("whose caller leaves while the guest is stopped writes nothing", () =>
    Effect.gen(function*() {
      const { asked, machine } = yield* running({ pause: Effect.sleep("1 second") })
      const leaving = yield* fork(Effect.flatMap(fork(machine.save("/s")), Fiber.interrupt))
      yield* pass("1 second")
      yield* Fiber.join(leaving)
      expect([yield* machine.state, yield* asked()]).toEqual(["running", ["start", "pause", "resume"]])
    }).pipe(host))

  it.effect("of a paused guest, broken off, leaves it paused; one that waits for its turn is not begun", () =>
    Effect.gen(function*() {
      const { asked, driver, machine } = yield* running()
      yield* machine.pause
      yield* driver.script("*", { save: Effect.never })
      const begun = yield* fork(machine.save("/s"))
      const queued = yield* fork(machine.save("/t"))
      yield* Fiber.interrupt(queued)
      yield* Fiber.interrupt(begun)
      expect([yield* machine.state, yield* asked()]).toEqual(["paused", ["start", "pause", "save"]])
      yield* machine.resume
    }).pipe(host))

  it.effect.each(["pause", "save", "resume"] as const)(
    "fails when the machine ends while it is at %s",
    (at) =>
      Effect.gen(function*() {
        const { driver, guest, machine } = yield* running()
        // Nothing that is asked of a monitor that is gone is ever answered.
        const script = { pause: Effect.void, save: Effect.void, resume: Effect.void, [at]: Effect.never }
        yield* driver.script("*", at === "save" ? { ...script, resume: Effect.never } : script)
        const saving = yield* fork(reason(machine.save("/s")))
        yield* quiet
        yield* guest.kill("SIGSEGV")
        expect(yield* Fiber.join(saving)).toMatchObject({
          _tag: "OperationFailed",
          operation: "snapshot",
          cause: new Error("the monitor was killed by SIGSEGV")
        })
        expect(yield* machine.state).toBe("crashed")
      }).pipe(host)
  )

  it.effect.each([["takes 3 seconds", Effect.sleep("3 seconds")], ["hangs", Effect.never]] as const)(
    "that %s is called off by a shutdown, which the guest hears at once",
    ([, save]) =>
      Effect.gen(function*() {
        const { machine } = yield* running({ save })
        const saving = yield* fork(reason(machine.save("/s")))
        const start = yield* Clock.currentTimeMillis
        const { stages } = yield* machine.shutdown()
        expect(stages.map(({ end, name }) => `${name} ${end}`)).toEqual(["power button ended"])
        expect(yield* Clock.currentTimeMillis).toBe(start)
        expect(yield* Fiber.join(saving)).toMatchObject({ _tag: "OperationFailed", operation: "snapshot" })
        expect(yield* machine.state).toBe("stopped")
      }).pipe(host)
  )

  it.effect("whose guest does not go on is woken by a shutdown", () =>
    Effect.gen(function*() {
      const { asked, driver, machine } = yield* running()
      yield* driver.script("*", { resume: Effect.fail("stuck") })
      yield* Effect.flip(machine.save("/s"))
      yield* driver.script("*", {})
      expect((yield* machine.shutdown())._tag).toBe("Graceful")
      expect((yield* asked()).slice(-4)).toEqual(["resume", "resume", "PowerButton", "ended"])
    }).pipe(host))
})

describe("a difference", () => {
  const diff = Effect.fnUntraced(function*(machine: Machine.Machine, base: Snapshot.Snapshot) {
    const store = yield* SnapshotStore.SnapshotStore
    return yield* store.add(
      { kind: "saved", spec: Snapshot.specOf(machine.spec) },
      (directory) => machine.save(directory, { base })
    )
  })

  it.effect("stands on so many others, and no more", () =>
    Effect.gen(function*() {
      const { guest, machine, snapshot } = yield* kept()
      let last = snapshot
      for (let depth = 1; depth <= Snapshot.mostBases; depth++) {
        guest.memory.set("depth", String(depth))
        last = yield* diff(machine, last)
      }
      expect(Snapshot.layers(last)).toHaveLength(Snapshot.mostBases + 1)
      const clone = yield* Machine.restore("n", last)
      const remembered = yield* Effect.flatMap(MemoryDriver.MemoryDriver, (driver) => driver.guest("n"))
      expect(remembered.memory.get("depth")).toBe(String(Snapshot.mostBases))
      expect(yield* reason(diff(clone, last))).toMatchObject({
        _tag: "DifferenceUnknown",
        why: `which stands on ${Snapshot.mostBases} others already`
      })
      const deeper = { ...last, id: "e".repeat(64), base: last, manifest: { ...last.manifest, base: last.id } }
      expect(yield* reason(Machine.restore("o", deeper))).toMatchObject({ _tag: "SnapshotUnusable" })
      // Whole, it stands on none.
      yield* machine.save("/whole")
    }).pipe(host))

  it.effect("is unknown after a save that failed or was left, until there is another", () =>
    Effect.gen(function*() {
      const { asked, driver, machine, snapshot } = yield* kept({ save: Effect.void })
      const before = yield* asked()
      yield* driver.script("*", { save: Effect.fail("no room") })
      yield* Effect.flip(machine.save("/s"))
      expect((yield* reason(diff(machine, snapshot)))?._tag).toBe("DifferenceUnknown")
      yield* driver.script("*", { save: Effect.never })
      const saving = yield* fork(machine.save("/s"))
      yield* Fiber.interrupt(saving)
      expect((yield* reason(diff(machine, snapshot)))?._tag).toBe("DifferenceUnknown")
      yield* driver.script("*", {})
      // Who is refused does not stop the guest.
      const saves = (yield* asked()).slice(before.length)
      expect(saves).toEqual(["pause", "save", "resume", "pause", "save", "resume"])
      const store = yield* SnapshotStore.SnapshotStore
      const again = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
      expect((yield* diff(machine, again)).base).toEqual(again)
    }).pipe(host))

  it.effect("is not known of a machine that was attached to", () =>
    Effect.gen(function*() {
      const { snapshot } = yield* kept()
      const spec = yield* MachineSpec.decode(wanted("k"))
      const keep = { directory: "/k" }
      const kept2 = yield* Effect.scoped(Effect.gen(function*() {
        const machine = yield* Machine.launch(spec, { keep })
        yield* machine.start
        return yield* diff(machine, snapshot).pipe(Effect.flip)
      }))
      expect(kept2.reason._tag).toBe("DifferenceUnknown")
      const machine = yield* Machine.attach(spec, { keep })
      expect(yield* reason(diff(machine, snapshot))).toMatchObject({
        why: "since when it is known what it has written is not known"
      })
    }).pipe(host))

  it.effect("whose base is not with it is not restored", () =>
    Effect.gen(function*() {
      const { machine, snapshot } = yield* kept()
      const { base: _, ...alone } = yield* diff(machine, snapshot)
      const why = [`its base ${snapshot.id.slice(0, 12)} is not there`]
      expect(yield* reason(Machine.restore("n", alone))).toMatchObject({ _tag: "SnapshotUnusable", why })
    }).pipe(host))
})

describe("restore", () => {
  it.effect("brings up a paused machine that goes on with a copy of the memory", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      const program = ({ memory, print }: MemoryDriver.MemoryGuest) =>
        Effect.suspend(() => print(`${memory.get("word") ?? "first"} `))
      const { guest, machine, store } = yield* kept({ program })
      guest.memory.set("word", "saved")
      const snapshot = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
      guest.memory.set("word", "later")
      const [a, b] = [yield* Machine.restore("a", snapshot), yield* Machine.restore("b", snapshot)]
      yield* Effect.map(driver.guest("a"), ({ memory }) => memory.set("word", "of a"))
      expect([yield* a.state, yield* a.consoleTail, a.id, a.spec.id]).toEqual(["paused", "", "a", "a"])
      expect((yield* reason(a.start))?._tag).toBe("InvalidTransition")
      for (const clone of [a, b]) {
        yield* clone.resume
        yield* clone.pause
        yield* clone.resume
        expect(yield* clone.state).toBe("running")
      }
      expect([yield* machine.consoleTail, yield* a.consoleTail, yield* b.consoleTail]).toEqual([
        "first ",
        "of a ",
        "saved "
      ])
    }).pipe(host))

  it.effect("of a guest can have a program of its own", () =>
    Effect.gen(function*() {
      const { snapshot } = yield* kept({
        program: ({ panic }) => Effect.delay(panic, "1 hour"),
        restored: ({ powerOff }) => powerOff
      })
      const clone = yield* Machine.restore("n", snapshot)
      yield* clone.resume
      expect((yield* clone.ended)._tag).toBe("PoweredOff")
    }).pipe(host))

  it.effect("of one that was restored, before it ran: the memory goes on", () =>
    Effect.gen(function*() {
      const driver = yield* MemoryDriver.MemoryDriver
      const { asked, guest, machine, store } = yield* kept()
      guest.memory.set("word", "saved")
      const spec = Snapshot.specOf(machine.spec)
      const first = yield* Machine.restore("a", yield* store.add({ kind: "saved", spec }, machine.save))
      yield* Machine.restore("b", yield* store.add({ kind: "saved", spec }, first.save))
      expect((yield* driver.guest("b")).memory.get("word")).toBe("saved")
      expect([yield* first.state, yield* asked("a")]).toEqual(["paused", ["save"]])
    }).pipe(host))

  it.effect("says in the form whether the machine was a template", () =>
    Effect.gen(function*() {
      const plain = yield* kept()
      const template = yield* kept({}, { template: true })
      expect([plain.snapshot.manifest.form, template.snapshot.manifest.form]).toEqual(["copy 1", "template 2"])
    }).pipe(host))

  it.effect("wakes a guest that never ran here when it is shut down, so that it can hear", () =>
    Effect.gen(function*() {
      const { asked, snapshot } = yield* kept()
      const clone = yield* Machine.restore("n", snapshot)
      expect((yield* clone.shutdown()).stages.map(({ end, name }) => `${name} ${end}`)).toEqual(["power button ended"])
      expect(yield* asked("n")).toEqual(["resume", "PowerButton", "ended"])
      expect(yield* clone.state).toBe("stopped")
    }).pipe(host))

  it.effect("a crash before it ran is seen, and its changes are a stream from `paused` on", () =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const scope = yield* Scope.make()
      const clone = yield* Scope.provide(Machine.restore("n", snapshot), scope)
      const seen = yield* fork(Stream.runCollect(clone.changes))
      yield* Effect.flatMap(driver.guest("n"), (guest) => guest.crash("x"))
      yield* clone.ended
      yield* Scope.close(scope, Exit.void)
      expect(yield* Fiber.join(seen)).toEqual(["paused", "crashed", "destroyed"])
    }).pipe(host))

  it.effect("ends with its scope, by its own policy", () =>
    Effect.gen(function*() {
      const { asked, driver, snapshot } = yield* kept()
      yield* Effect.scoped(Effect.flatMap(Machine.restore("n", snapshot), ({ resume }) => resume))
      expect(yield* asked("n")).toEqual(["resume", "PowerButton", "ended", "released"])
      expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
    }).pipe(host))

  const steps = ["claim", "spawn", "connect", "restore"] as const
  it.effect.each(steps)("that fails or is interrupted at %s leaves nothing", (step) =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const at = (then: Effect.Effect<void, string>) => ({
        launch: (reached: string) => reached === step ? then : Effect.void
      })
      yield* driver.script("n", at(Effect.fail("no room")))
      const restore = Machine.restore("n", snapshot)
      expect(yield* reason(restore)).toMatchObject({ _tag: "LaunchFailed", stage: step, cause: "no room" })
      expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
      yield* driver.script("n", at(Effect.never))
      yield* Effect.flatMap(fork(restore), Fiber.interrupt)
      expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
    }).pipe(host))

  it.effect("of what this backend never saved fails in that step", () =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const forged = { ...snapshot, manifest: { ...snapshot.manifest, form: "copy 99" } }
      expect(yield* reason(Machine.restore("n", forged))).toMatchObject({ _tag: "LaunchFailed", stage: "restore" })
      expect((yield* driver.claims).map(({ id }) => id)).toEqual(["m"])
    }).pipe(host))

  it.effect("of another host's snapshot, by a bad id, or without a plan is refused before anything is done", () =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const real = yield* MicroVmProvider.MicroVmProvider
      const before = yield* driver.events
      expect(yield* reason(Machine.restore("../n", snapshot))).toMatchObject({ _tag: "InvalidSpec" })
      const faults = [{ field: "channels", value: 99, remedy: "give 30 at most" }]
      const refusal = Result.fail(MicroVmError.make(new MicroVmError.InvalidSpec({ faults })))
      for (const broken of [{ plan: () => refusal }, { platform: () => refusal }]) {
        const restore = Machine.restore("n", snapshot).pipe(
          Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, ...broken })
        )
        expect(yield* reason(restore)).toMatchObject({ _tag: "InvalidSpec", faults })
      }
      yield* driver.platform({ cpu: "b", version: "2" })
      expect(yield* reason(Machine.restore("n", snapshot))).toMatchObject({
        _tag: "SnapshotUnusable",
        snapshot: snapshot.id,
        why: ["its cpu is not told, here it is b", "its version is not told, here it is 2"]
      })
      expect(yield* driver.events).toEqual(before)
    }).pipe(host))

  it.effect("of a spec that was tampered with is checked like any other", () =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const before = yield* driver.events
      const { manifest } = snapshot
      const forged = { ...snapshot, manifest: { ...manifest, spec: { ...manifest.spec, channels: ["x,chardev=foo"] } } }
      expect(yield* reason(Machine.restore("n", forged))).toMatchObject({
        _tag: "InvalidSpec",
        faults: [{ field: "channels[0]" }]
      })
      expect(yield* driver.events).toEqual(before)
    }).pipe(host))

  it.effect("is refused where the backend cannot, before it is asked", () =>
    Effect.gen(function*() {
      const { driver, snapshot } = yield* kept()
      const real = yield* MicroVmProvider.MicroVmProvider
      const capabilities = { ...real.capabilities, snapshot: false }
      const before = yield* driver.events
      const restore = Machine.restore("n", snapshot).pipe(
        Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, capabilities })
      )
      expect(yield* reason(restore)).toMatchObject({ _tag: "Unsupported", operation: "restore" })
      expect(yield* driver.events).toEqual(before)
    }).pipe(host))

  it.effect("makes a guest that does nothing until it is resumed", () =>
    Effect.gen(function*() {
      const { snapshot } = yield* kept({ restored: ({ powerOff }) => Effect.delay(powerOff, "1 second") })
      const clone = yield* Machine.restore("n", snapshot)
      yield* TestClock.adjust("1 hour")
      expect(yield* clone.state).toBe("paused")
      yield* clone.resume
      yield* pass("1 second")
      expect(yield* clone.state).toBe("stopped")
    }).pipe(host))
})

describe("the devices of a snapshot", () => {
  const told = (made: string, here: string) => Snapshot.differences({ devices: made }, { devices: here })

  it("are told as far as they are others", () => {
    const common = `1 vCPU, 256 MiB, ${Array.from({ length: 20 }, (_, nth) => `channel ${nth}`).join(", ")}`
    const devices = (...more: ReadonlyArray<string>) => [common, ...more].join(", ")
    expect(told(devices("disk a"), devices("disk a"))).toEqual([])
    expect(told(devices("network card", "disk a"), devices("disk a"))).toEqual(["it also has network card"])
    expect(told(devices("network card"), devices("network card", "network card"))).toEqual([
      "here there is also network card"
    ])
    expect(told(devices("disk a", "disk b"), devices("disk a:read-only"))).toEqual([
      "it has disk a, disk b, here there is disk a:read-only"
    ])
  })

  it("are told, too, where only their order differs", () => {
    expect(told("disk a, disk b", "disk b, disk a")).toEqual([
      "its devices come in another order, here that is disk b, disk a"
    ])
  })
})

describe("the disks of a snapshot", () => {
  const sha256 = { tools: "a".repeat(64), other: "b".repeat(64) }
  const asked: Array<string> = []
  let now: ReadonlyArray<Snapshot.Disk> = []
  const disks: MicroVmProvider.MicroVmProvider["Service"]["disks"] = (drives) =>
    Effect.sync(() => {
      const unread = drives.some(({ name, readOnly }) => name === "tools" && !readOnly)
      asked.push(`${drives.map(({ name }) => name).join(" ")}${unread ? ", unread" : ""}`)
      return now.filter(({ name }) => drives.some((drive) => drive.name === name))
    })
  const drives = [{ name: "data", path: "/data" }, { name: "tools", path: "/tools", readOnly: true }]
  const data = { name: "data", size: 4096, file: "1 7", modified: "100", changed: "100" }
  const tools = { name: "tools", size: 512, file: "1 8", modified: "5", changed: "5", sha256: sha256.tools }

  it.effect("are written down while it stands still, and must be such as its guest counts on", () =>
    Effect.gen(function*() {
      const real = yield* MicroVmProvider.MicroVmProvider
      const driver = yield* MemoryDriver.MemoryDriver
      const store = yield* SnapshotStore.SnapshotStore
      yield* Effect.gen(function*() {
        now = [data, tools]
        asked.length = 0
        const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "m", kernel: "/k", drives }))
        yield* machine.start
        const about = { kind: "saved", spec: Snapshot.specOf(machine.spec) } as const
        const snapshot = yield* store.add(about, machine.save)
        expect(snapshot.manifest.disks).toEqual([data, tools])
        // What has to be read is read before the guest has to wait.
        expect(asked).toEqual(["data tools, unread", "data tools, unread", "tools", "data tools"])
        const what = (yield* driver.events).map((event) => event.what)
        expect(what.indexOf("save")).toBeGreaterThan(-1)

        const restore = Effect.fnUntraced(function*(...here: ReadonlyArray<Snapshot.Disk>) {
          now = here
          return yield* Effect.scoped(Machine.restore("n", snapshot, { drives })).pipe(
            Effect.as<ReadonlyArray<string>>([]),
            Effect.catch(({ reason: found }) =>
              Effect.succeed(found._tag === "SnapshotUnusable" ? found.why : [found._tag])
            )
          )
        })
        expect(yield* restore(data, tools)).toEqual([])
        expect(yield* restore({ ...data, file: "1 9", modified: "300" }, { ...tools, file: "2 1" })).toEqual([])
        expect(yield* restore({ ...data, modified: "200" }, tools)).toEqual([
          "its disk data was written to since it was saved: give a copy that was made at that moment"
        ])
        now = [{ ...data, modified: "200" }, tools]
        // Nothing is wrong with the snapshot.
        const { message } = yield* Effect.flip(Effect.scoped(Machine.restore("n", snapshot, { drives })))
        expect(message).toMatch(/made at that moment\. Give it the disks of that moment$/)
        // What is changed of the inode alone is nothing that a guest sees.
        expect(yield* restore({ ...data, changed: "200" }, tools)).toEqual([])
        expect(yield* restore({ ...data, file: "1 9", size: 8192 }, { ...tools, sha256: sha256.other })).toEqual([
          "its disk data has 4096 bytes, here 8192",
          "its disk tools has another content here"
        ])
        expect(yield* restore({ name: "data", size: 4096 }, tools)).toEqual([])
      }).pipe(Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, disks }))
    }).pipe(host))

  it.effect("are nothing to a guest that never ran", () =>
    Effect.gen(function*() {
      const real = yield* MicroVmProvider.MicroVmProvider
      const store = yield* SnapshotStore.SnapshotStore
      asked.length = 0
      const machine = yield* Effect.flatMap(MachineSpec.decode({ id: "m", kernel: "/k", drives }), (spec) =>
        Machine.launch(spec)).pipe(Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, disks }))
      const snapshot = yield* store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
      expect([snapshot.manifest.disks, asked]).toEqual([undefined, ["data tools, unread"]])
    }).pipe(host))

  it.effect("are those that it was launched with: it is not saved with another file in the place of one", () =>
    Effect.gen(function*() {
      const real = yield* MicroVmProvider.MicroVmProvider
      const driver = yield* MemoryDriver.MemoryDriver
      const store = yield* SnapshotStore.SnapshotStore
      yield* Effect.gen(function*() {
        now = [data, tools]
        const machine = yield* Machine.launch(yield* MachineSpec.decode({ id: "m", kernel: "/k", drives }))
        yield* machine.start
        const save = store.add({ kind: "saved", spec: Snapshot.specOf(machine.spec) }, machine.save)
        for (const other of [[{ ...data, file: "1 9" }, tools], [data, { ...tools, file: "1 9" }]]) {
          now = other
          const { message } = yield* Effect.flip(save)
          const name = other[0]?.file === "1 9" ? "data" : "tools"
          expect(message).toContain(`another file was put in the place of its disk ${name} since it was launched`)
          expect(yield* machine.state).toBe("running")
        }
        expect((yield* driver.events).map(({ what }) => what)).not.toContain("save")
        // That it was written to is no matter.
        now = [{ ...data, modified: "200", changed: "200" }, tools]
        expect((yield* save).manifest.disks).toEqual(now)
      }).pipe(Effect.provideService(MicroVmProvider.MicroVmProvider, { ...real, disks }))
    }).pipe(host))
})
