import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as ImageError from "../../src/image/ImageError.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as Snapshot from "../../src/microvm/Snapshot.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import { GoldenMachines } from "../../src/warm/GoldenMachines.ts"
import * as WarmMachine from "../../src/warm/WarmMachine.ts"
import { makeWorld, settle } from "./support.ts"

const making = "making a golden machine, from which later ones are restored"

describe("a warm machine", () => {
  it.effect("is restored from a golden one, which the first of all makes", () =>
    Effect.gen(function*() {
      const { driver, launch, phases, steps, told } = yield* makeWorld()
      const first = yield* settle(launch({ id: "one" }))
      assert.deepStrictEqual(told, [making])
      assert.deepStrictEqual(phases, ["golden", "restore", "renew"])
      assert.strictEqual(first.start._tag, "Restored")

      const second = yield* settle(launch({ id: "two" }))
      assert.deepStrictEqual(told, [making])
      assert.deepStrictEqual(phases.slice(3), ["restore", "renew"])
      assert.strictEqual(second.start._tag, "Restored")
      assert.strictEqual(yield* second.machine.state, "running")
      // The golden machine is gone; the two are there.
      assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["one", "two"])
      const golden = (yield* steps).filter((step) => step.startsWith("golden-")).map((step) => step.split(" ")[1])
      assert.deepStrictEqual(golden, [
        "claim",
        "spawn",
        "connect",
        "launched",
        "start",
        "pause",
        "save",
        "resume",
        "Kill",
        "ended",
        "released"
      ])
    }))

  it.effect("says all that is wrong with its options before anything is done", () =>
    Effect.gen(function*() {
      const { launch, phases } = yield* makeWorld()
      const told = (options: Partial<WarmMachine.Options>) =>
        Effect.map(Effect.flip(launch({ id: "one", ...options })), ({ reason }) =>
          reason._tag === "InvalidSpec" ? reason.faults.map(({ field }) => field) : reason._tag)
      assert.deepStrictEqual(
        yield* told({ id: "-", slots: 0, bootWithin: Number.NaN, answerWithin: -1 }),
        ["id", "hostname", "slots", "bootWithin", "answerWithin"]
      )
      for (const slots of [Number.NaN, -1, 1.5, 65, Infinity]) {
        assert.deepStrictEqual(yield* told({ slots }), ["slots"])
      }
      assert.deepStrictEqual(phases, [])
    }))

  it.effect("is itself: its clock, its names and its random numbers are its own", () =>
    Effect.gen(function*() {
      const { guests, launch } = yield* makeWorld()
      const proofs = yield* settle(Effect.forEach(
        Array.from({ length: 100 }, (_, index) => `m${index}`),
        (id) => Effect.map(launch({ id }), ({ start }) => start._tag === "Restored" ? start.proof : undefined),
        { concurrency: "unbounded" }
      ))
      const of = (key: "bootId" | "hostname" | "machineId") => new Set(proofs.map((proof) => proof?.[key]))
      for (const key of ["bootId", "hostname", "machineId"] as const) assert.strictEqual(of(key).size, 100, key)
      for (const proof of proofs) assert.isBelow(Math.abs(proof?.clockOff ?? 100), 50)
      const seeds = [...guests.values()].flatMap(({ own }) =>
        own.seeds.map((seed) => Buffer.from(seed).toString("hex"))
      )
      assert.strictEqual(new Set(seeds).size, 100)
    }))

  it.effect("does not wake its agent before somebody needs it", () =>
    Effect.gen(function*() {
      const { guests, launch } = yield* makeWorld()
      const { agent } = yield* settle(launch())
      const guest = [...guests.values()].at(-1)
      assert.isDefined(guest)
      assert.strictEqual(yield* guest.syncs, 0)
      yield* settle(agent.ping)
      assert.strictEqual(yield* guest.syncs, 1)
    }))

  it.effect("ends with its scope", () =>
    Effect.gen(function*() {
      const { driver, launch } = yield* makeWorld()
      const scope = yield* Scope.make()
      yield* settle(Scope.provide(launch(), scope))
      yield* settle(Scope.close(scope, Exit.void))
      assert.deepStrictEqual(yield* driver.claims, [])
    }))

  it.effect.each(["warm", "cold"] as const)(
    "ends with its scope by a policy of the caller's (%s)",
    (start) =>
      Effect.gen(function*() {
        const { launch, steps } = yield* makeWorld()
        const ways = (id: string) =>
          Effect.map(
            steps,
            (all) => all.filter((step) => new RegExp(`^${id} (PowerButton|Terminate|Kill)$`).test(step))
          )
        yield* settle(Effect.scoped(launch({ id: "usual", start })))
        yield* settle(Effect.scoped(launch({ id: "quick", start, policy: Machine.killPolicy })))
        assert.deepStrictEqual(yield* ways("usual"), ["usual PowerButton"])
        assert.deepStrictEqual(yield* ways("quick"), ["quick Kill"])
      })
  )

  it.effect("boots when it is asked to be cold", () =>
    Effect.gen(function*() {
      const { launch, phases, told } = yield* makeWorld()
      const { start } = yield* settle(launch({ start: "cold" }))
      assert.strictEqual(start._tag === "Booted" && start.why, "as asked for")
      assert.deepStrictEqual(phases, ["image", "launch", "boot"])
      assert.deepStrictEqual(told, [])
    }))

  it.effect("boots where the backend has no snapshots", () =>
    Effect.gen(function*() {
      const { launch } = yield* makeWorld({ capabilities: { snapshot: false } })
      const { start } = yield* settle(launch())
      assert.strictEqual(start._tag === "Booted" && start.why, "the memory backend has no snapshots")
    }))

  const unproven: ReadonlyArray<
    readonly [what: string, renewal: NonNullable<Parameters<typeof makeWorld>[0]>["renewal"]]
  > = [
    ["seed", { refuses: ["seed"] }],
    ["clock", { passesOver: ["clock"] }],
    ["hostname", { passesOver: ["hostname"] }],
    ["machine-id", { passesOver: ["machine-id"] }],
    ["boot-id", { passesOver: ["boot-id"] }],
    ["interface", { interfaces: ["eth0"] }],
    ["hook", { hooks: { "10-tls": 1 } }]
  ]
  it.effect.each(unproven)(
    "that cannot prove its %s is destroyed, with its golden machine; the next one boots",
    ([what, renewal]) =>
      Effect.gen(function*() {
        const { context, driver, launch, steps, told } = yield* makeWorld({ renewal: renewal ?? {} })
        const { machine, start } = yield* settle(launch())
        assert.strictEqual(start._tag, "Booted")
        assert.match(told.join("\n"), /booting: .*could not be made itself|booting: .*not renewed|booting: /)
        assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["m"])
        assert.strictEqual(yield* machine.state, "running")
        assert.include(yield* steps, "m Kill")
        // A clock that is off may be the host's fault, and the golden machine is not only ours.
        assert.strictEqual((yield* Context.get(context, SnapshotStore).list).length, what === "clock" ? 1 : 0)
      })
  )

  const card = { tap: "web-0", mac: "02:00:00:00:00:01", address: "10.0.0.1/31", gateway: "10.0.0.0" }

  it.effect("has the network cards that it was told of, from a golden machine that has as many", () =>
    Effect.gen(function*() {
      const { context, guests, launch } = yield* makeWorld({ renewal: { interfaces: ["eth0"] } })
      const wanted: Array<unknown> = []
      const { start } = yield* settle(launch({
        networks: [card],
        before: ({ networks }) =>
          Effect.sync(() => {
            wanted.push(networks)
            return {}
          })
      }))
      assert.deepStrictEqual(start._tag === "Restored" && start.proof.interfaces, ["eth0"])
      assert.deepStrictEqual(wanted, [[card]])
      assert.deepInclude([...guests.values()].at(-1)?.own.cards[0], {
        mac: card.mac,
        addresses: [card.address],
        gateways: [card.gateway]
      })
      // Another kind of machine.
      yield* settle(launch({ id: "two", start: "cold" }))
      const stored = yield* Context.get(context, SnapshotStore).list
      assert.deepStrictEqual(stored.map(({ manifest }) => manifest?.labels["cards"]), ["1"])
      // What else the image starts is not known here.
      assert.deepStrictEqual(stored.map(({ manifest }) => manifest?.labels["resident"]), ["waits"])
    }))

  it.effect("with disks is booted", () =>
    Effect.gen(function*() {
      const { launch } = yield* makeWorld()
      const { machine, start } = yield* settle(launch({ drives: [{ name: "data", path: "/d" }] }))
      assert.strictEqual(start._tag === "Booted" && start.why, "no golden machine has disks")
      assert.deepStrictEqual(machine.spec.drives, [{ name: "data", path: "/d", readOnly: false }])
    }))

  it.effect("that never answers is destroyed, and another one boots", () =>
    Effect.gen(function*() {
      const { context, driver, launch, told } = yield* makeWorld({ mute: true })
      const { start } = yield* settle(launch())
      assert.strictEqual(start._tag, "Booted")
      assert.strictEqual(told.length, 2)
      assert.strictEqual((yield* driver.claims).length, 1)
      assert.strictEqual((yield* Context.get(context, SnapshotStore).list).length, 1)
    }))

  it.effect("is restored from another golden one when the first has changed on the disk", () =>
    Effect.gen(function*() {
      const { context, driver, launch, told } = yield* makeWorld()
      yield* settle(Effect.scoped(launch()))
      const store = Context.get(context, SnapshotStore)
      const [before] = yield* store.list
      yield* driver.corrupt(before?.id ?? "", "memory has changed")
      const { start } = yield* settle(launch())
      assert.strictEqual(start._tag, "Restored")
      assert.include(told.join("\n"), "memory has changed")
      const after = yield* store.list
      assert.strictEqual(after.length, 1)
      assert.notStrictEqual(after[0]?.id, before?.id)
    }))

  it.effect("is restored from another golden one when the host has become another", () =>
    Effect.gen(function*() {
      const { driver, launch, told } = yield* makeWorld()
      yield* settle(Effect.scoped(launch()))
      yield* driver.platform({ cpu: "another" })
      assert.strictEqual((yield* settle(launch())).start._tag, "Restored")
      assert.deepStrictEqual(told, [making, making])
    }))

  it.effect("is restored from another golden one when its image is another, and the old one is removed", () =>
    Effect.gen(function*() {
      const { changeImage, context, ensured, launch } = yield* makeWorld()
      yield* settle(Effect.scoped(launch()))
      assert.strictEqual(ensured(), 2)
      yield* settle(Effect.scoped(launch()))
      assert.strictEqual(ensured(), 2)
      changeImage()
      yield* settle(Effect.scoped(launch()))
      const stored = yield* Context.get(context, SnapshotStore).list
      assert.deepStrictEqual(stored.map(({ manifest }) => manifest?.labels["digest"]), ["b".repeat(64)])
    }))

  it.effect("has a golden one for each size", () =>
    Effect.gen(function*() {
      const { context, launch } = yield* makeWorld()
      for (const memoryMib of [128, 256, 256]) yield* settle(Effect.scoped(launch({ memoryMib })))
      assert.strictEqual((yield* Context.get(context, SnapshotStore).list).length, 2)
    }))

  it.effect("boots when its golden one cannot be saved, and the reason is told", () =>
    Effect.gen(function*() {
      const { driver, launch, told } = yield* makeWorld({
        script: { save: Effect.fail(new Error("the disk is full")) }
      })
      const { start } = yield* settle(launch())
      assert.strictEqual(start._tag, "Booted")
      assert.match(told[1] ?? "", /^booting: .*the disk is full/)
      assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["m"])
    }))

  it.effect("asks once for an image that cannot be made: a boot needs it too", () =>
    Effect.gen(function*() {
      const noImage = ImageError.ImageErrorReason.NoSpace({ path: "/cache" })
      const { ensured, launch, told } = yield* makeWorld({ noImage })
      const error = yield* Effect.flip(settle(launch()))
      assert.deepStrictEqual([error.reason, ensured(), told], [noImage, 1, []])
    }))

  it.effect.each(
    [
      [{ vcpus: 0 }, "InvalidSpec"],
      [{ id: "-" }, "InvalidSpec"],
      [{ id: "web-" }, "InvalidSpec"],
      [{ image: "nonesuch" }, "UnknownImage"]
    ] as const
  )("of %j is refused, and nothing boots", ([options, reason]) =>
    Effect.gen(function*() {
      const { launch, steps } = yield* makeWorld()
      const error = yield* Effect.flip(settle(launch(options)))
      assert.strictEqual(error.reason._tag, reason)
      assert.deepStrictEqual(yield* steps, [])
    }))
})

describe("many at once", () => {
  it.effect("one makes the golden machine while the others wait", () =>
    Effect.gen(function*() {
      const { launch, steps, told } = yield* makeWorld()
      const ids = Array.from({ length: 10 }, (_, index) => `m${index}`)
      yield* settle(Effect.forEach(ids, (id) => launch({ id }), { concurrency: "unbounded" }))
      assert.strictEqual((yield* steps).filter((step) => step.endsWith(" start")).length, 1)
      assert.deepStrictEqual(told, [making])
    }))

  it.effect("another one makes it when the first goes away, and nothing of the first is left", () =>
    Effect.gen(function*() {
      const { driver, launch } = yield* makeWorld()
      const first = yield* Effect.forkChild(launch({ id: "one" }), { startImmediately: true })
      const second = yield* Effect.forkChild(launch({ id: "two" }), { startImmediately: true })
      yield* TestClock.adjust("9 seconds")
      yield* settle(Fiber.interrupt(first))
      assert.strictEqual((yield* settle(Fiber.join(second))).start._tag, "Restored")
      assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["two"])
    }))

  it.effect("all of them get one while it is made anew", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld()
      yield* settle(Effect.scoped(launch({ id: "zero" })))
      const [stored] = yield* Context.get(context, SnapshotStore).list
      yield* driver.corrupt(stored?.id ?? "", "state is shorter")
      const ids = Array.from({ length: 10 }, (_, index) => `m${index}`)
      const machines = yield* settle(Effect.forEach(ids, (id) => launch({ id }), { concurrency: "unbounded" }))
      assert.deepStrictEqual(new Set(machines.map(({ start }) => start._tag)), new Set(["Restored"]))
    }))
})

describe("a snapshot of one's own", () => {
  it.effect("is restored by its name; the machine it is of goes on", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld()
      const one = yield* settle(launch({ id: "one" }))
      const memory = (yield* driver.guest("one")).memory
      memory.set("file", "content")
      const saved = yield* settle(Effect.provideContext(WarmMachine.save(one, "mine"), context))
      assert.strictEqual(yield* one.machine.state, "running")
      memory.set("file", "other content")
      const two = yield* settle(launch({ id: "two", start: { from: "mine" } }))
      assert.strictEqual(two.start._tag === "Restored" && two.start.snapshot, saved.id)
      assert.strictEqual((yield* driver.guest("two")).memory.get("file"), "content")
    }))

  it.effect("is not made where the machine would lose its agent and its commands", () =>
    Effect.gen(function*() {
      const { context, launch } = yield* makeWorld({ capabilities: { saveKeepsChannels: false } })
      // Golden machines end when they are saved, so there are some there, too.
      const one = yield* settle(launch({ id: "one" }))
      assert.strictEqual(one.start._tag, "Restored")
      const { message, reason } = yield* Effect.flip(Effect.provideContext(WarmMachine.save(one, "mine"), context))
      assert.strictEqual(reason._tag, "Unsupported")
      assert.include(message, "microvm run --backend qemu")
      assert.strictEqual(yield* one.machine.state, "running")
    }))

  it.effect("that is not there, or not usable, is an error, and nothing else is taken for it", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld()
      const missing = yield* Effect.flip(settle(launch({ start: { from: "mine" } })))
      assert.strictEqual(missing.reason._tag, "SnapshotNotFound")
      const one = yield* settle(launch({ id: "one" }))
      yield* Effect.provideContext(WarmMachine.save(one, "mine"), context)
      yield* driver.corrupt("mine", "memory has changed")
      const changed = yield* Effect.flip(settle(launch({ start: { from: "mine" } })))
      assert.strictEqual(changed.reason._tag, "SnapshotUnusable")
      // It is for its owner to remove.
      assert.include((yield* Context.get(context, SnapshotStore).list).flatMap(({ names }) => names), "mine")
      assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["one"])
    }))

  it.effect("whose machine cannot be made itself is kept; the machine is destroyed", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld({ renewal: { refuses: ["seed"] } })
      const one = yield* settle(launch({ id: "one", start: "cold" }))
      yield* Effect.provideContext(WarmMachine.save(one, "mine"), context)
      const error = yield* Effect.flip(settle(launch({ id: "two", start: { from: "mine" } })))
      assert.strictEqual(error.reason._tag, "NotRenewed")
      assert.deepStrictEqual((yield* driver.claims).map(({ id }) => id), ["one"])
      assert.strictEqual((yield* Context.get(context, SnapshotStore).list).length, 1)
    }))
})

describe("golden machines", () => {
  it.effect("that nobody uses are collected; others, and snapshots of users, are not", () =>
    Effect.gen(function*() {
      const { context, launch } = yield* makeWorld({ golden: { unusedFor: "1 day" } })
      const store = Context.get(context, SnapshotStore)
      const golden = Context.get(context, GoldenMachines)
      const one = yield* settle(launch({ id: "one", memoryMib: 128 }))
      yield* Effect.provideContext(WarmMachine.save(one, "mine"), context)
      assert.strictEqual(yield* golden.collect, 0)
      yield* TestClock.adjust("23 hours")
      yield* settle(launch({ id: "two", memoryMib: 256 }))
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* golden.collect, 1)
      const kinds = (yield* store.list).map(({ manifest }) => [manifest?.kind, manifest?.spec.memoryMib])
      assert.sameDeepMembers(kinds, [["golden", 256], ["saved", 128]])
      assert.isTrue(Option.isNone(yield* one.machine.poll))
    }))

  it.effect("are collected though none is made any more", () =>
    Effect.gen(function*() {
      const { context, launch } = yield* makeWorld()
      const store = Context.get(context, SnapshotStore)
      const sizes = Effect.map(store.list, (all) => all.map(({ manifest }) => manifest?.spec.memoryMib))
      const run = (id: string, memoryMib: number) => settle(Effect.scoped(launch({ id, memoryMib })))
      yield* run("small", 128)
      for (let days = 0; days <= 60; days += 10) {
        yield* run(`day-${days}`, 256)
        yield* TestClock.adjust("10 days")
      }
      assert.deepStrictEqual(yield* sizes, [256])
    }))

  it.effect("are tidied up once a day, by one of all processes, whatever the clock", () =>
    Effect.gen(function*() {
      let last = NaN
      const marks: Array<number> = []
      const collected = {
        read: Effect.sync(() => last),
        write: (now: number) =>
          Effect.sync(() => {
            last = now
            marks.push(now)
          })
      }
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const { context } = yield* makeWorld({ golden: { collected } })
      const { tidy } = Context.get(context, GoldenMachines)
      const passes = Effect.fnUntraced(function*(time: Duration.Input) {
        yield* TestClock.adjust(time)
        yield* tidy
        return marks.length
      })
      assert.deepStrictEqual(
        yield* Effect.forEach(["1 second", "23 hours", "2 hours", "1 hour"] as const, passes),
        [1, 1, 2, 2]
      )
      yield* TestClock.setTime(Date.UTC(2026, 0, 1))
      assert.strictEqual(yield* passes("1 second"), 3)
      last = NaN
      const closed = yield* makeWorld({ golden: { collected: { ...collected, write: () => Effect.fail("EROFS") } } })
      yield* Context.get(closed.context, GoldenMachines).tidy
    }))

  it.effect("stay where they are when the host's clock jumps back, and machines get its time", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const { context, launch } = yield* makeWorld()
      yield* settle(Effect.scoped(launch()))
      yield* TestClock.setTime(Date.UTC(2026, 0, 1))
      assert.strictEqual(yield* Context.get(context, GoldenMachines).collect, 0)
      const { start } = yield* settle(launch())
      assert.strictEqual(start._tag, "Restored")
      assert.isBelow(start._tag === "Restored" ? Math.abs(start.proof.clockOff) : 100, 50)
    }))

  it.effect("of another host are collected after a day, and those of images that are unknown here are let be", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld()
      const { add, list } = Context.get(context, SnapshotStore)
      const { collect } = Context.get(context, GoldenMachines)
      const one = yield* settle(launch())
      const spec = Snapshot.specOf(one.machine.spec)
      yield* add({ kind: "golden", spec, labels: { image: "custom", digest: "c" } }, one.machine.save)
      yield* TestClock.adjust("25 hours")
      assert.strictEqual(yield* collect, 0)
      yield* driver.platform({ cpu: "another" })
      yield* settle(Effect.scoped(launch({ id: "two" })))
      assert.strictEqual(yield* collect, 0)
      assert.deepStrictEqual((yield* list).map(({ manifest }) => manifest?.platform["cpu"]), ["another"])
    }))

  it.effect("of another program of the same release are collected after a day, too", () =>
    Effect.gen(function*() {
      const { context, driver, launch } = yield* makeWorld()
      const { list } = Context.get(context, SnapshotStore)
      const { collect } = Context.get(context, GoldenMachines)
      yield* driver.platform({ program: "before" })
      yield* settle(Effect.scoped(launch({ id: "one" })))
      yield* driver.platform({ program: "after" })
      yield* TestClock.adjust("23 hours")
      assert.strictEqual(yield* collect, 0)
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(yield* collect, 1)
      assert.deepStrictEqual(yield* list, [])
    }))

  it.effect("are none of those that somebody has used, whatever their name", () =>
    Effect.gen(function*() {
      const { context, launch, told } = yield* makeWorld()
      const store = Context.get(context, SnapshotStore)
      const one = yield* settle(launch({ id: "one" }))
      const [golden] = yield* store.list
      const name = golden?.names[0] ?? ""
      const refused = yield* Effect.flip(Effect.provideContext(WarmMachine.save(one, name), context))
      assert.strictEqual(refused.reason._tag, "InvalidSpec")
      const spec = Snapshot.specOf(one.machine.spec)
      yield* store.add({ kind: "saved", name, replace: true, spec }, one.machine.save)
      yield* settle(launch({ id: "two" }))
      assert.include(told.join("\n"), "somebody has used")
      const named = (yield* store.list).find(({ names }) => names.includes(name))
      assert.strictEqual(named?.manifest?.kind, "golden")
    }))
})
