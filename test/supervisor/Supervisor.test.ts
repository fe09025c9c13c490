import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as HostError from "../../src/host/HostError.ts"
import * as Journal from "../../src/journal/Journal.ts"
import * as NodeLease from "../../src/journal/NodeLease.ts"
import * as Reclaimer from "../../src/journal/Reclaimer.ts"
import * as ResourceKind from "../../src/journal/ResourceKind.ts"
import * as Machine from "../../src/microvm/Machine.ts"
import * as MachineSpec from "../../src/microvm/MachineSpec.ts"
import * as MemoryDriver from "../../src/microvm/MemoryDriver.ts"
import * as MemoryProvider from "../../src/microvm/MemoryProvider.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import * as Supervisor from "../../src/supervisor/Supervisor.ts"

/** Something of the host that counts itself: a port, by its number. */
const makePorts = () => {
  const taken = new Set<number>()
  const order: Array<string> = []
  let stuck = false
  const kind: ResourceKind.ResourceKind<number> = {
    kind: "port",
    data: Schema.Int,
    describe: (port) => `port ${port}`,
    reclaim: (claims, { dryRun }) =>
      Effect.sync(() =>
        claims.map(({ data }) => {
          if (!taken.has(data)) return ResourceKind.Verdict.Absent()
          if (stuck) return ResourceKind.Verdict.Stuck({ why: "it is in use", remedy: "wait" })
          if (!dryRun) {
            taken.delete(data)
            order.push(`free ${data}`)
          }
          return ResourceKind.Verdict.Released()
        })
      )
  }
  const resource = (
    port: number,
    given: Supervisor.Given = {},
    then: Effect.Effect<void> = Effect.void
  ): Supervisor.Resource => ({
    acquire: Effect.fnUntraced(function*(entry) {
      yield* entry.claim(ResourceKind.claim(kind, port))
      taken.add(port)
      order.push(`take ${port}`)
      yield* then
      return given
    })
  })
  return { taken, order, kind: Reclaimer.make(kind), resource, stick: (now: boolean) => void (stuck = now) }
}

/** Nothing is held by real processes here. */
const holding = (alive: () => boolean) =>
  Layer.mock(ProcessHolder)({
    destroy: () => Effect.sync(() => ({ _tag: alive() ? "Destroyed" as const : "Absent" as const }))
  })

/** A host with machines in memory, on which one supervisor comes after the other. */
const makeWorld = Effect.gen(function*() {
  const directory = yield* FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())
  const ports = makePorts()
  const resumed: Array<string> = []
  let processLives = false
  const holder = holding(() => processLives)
  const backend = yield* Layer.build(MemoryProvider.layer)
  const journal = Journal.layer({ directory: `${directory}/state` }).pipe(Layer.provide(NodeLease.layer))
  /** A supervisor; closing the scope is its end in order. */
  const supervisor = Effect.fnUntraced(function*(
    options: Supervisor.Options = {},
    wrap: (own: Journal.Journal["Service"]) => Journal.Journal["Service"] = (own) => own
  ) {
    const context = yield* Layer.build(
      Supervisor.layerWith({
        kinds: [ports.kind],
        resume: ({ id }) => Effect.sync(() => void resumed.push(id)),
        ...options
      }).pipe(
        Layer.provideMerge(
          Layer.effect(Journal.Journal, Effect.map(Journal.Journal, wrap)).pipe(Layer.provide(journal))
        ),
        Layer.provide(holder),
        Layer.provide(Layer.succeedContext(backend)),
        Layer.fresh
      )
    )
    return { ...Context.get(context, Supervisor.Supervisor), entries: Context.get(context, Journal.Journal).entries }
  })
  const bring = (id: string) => (provision: Supervisor.Provision) =>
    Effect.gen(function*() {
      const spec = yield* MachineSpec.decode({ id, kernel: "/kernel", networks: provision.networks })
      const machine = yield* Machine.launch(spec, yield* provision.before(spec))
      yield* machine.start
      return { machine }
    }).pipe(Effect.provideContext(backend))
  return {
    ports,
    /** Where the files of records are, once there was a supervisor. */
    records: `${directory}/state/machines`,
    resumed,
    supervisor,
    bring,
    backend,
    /** Is a process found, whatever the backend says of its machine? */
    find: (lives: boolean) => void (processLives = lives),
    driver: Context.get(backend, MemoryDriver.MemoryDriver),
    /** What a supervisor that is killed leaves: its records, as they are now, for another one. */
    kill: (scope: Scope.Closeable) =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        yield* fs.copy(`${directory}/state/machines`, `${directory}/machines`)
        yield* Scope.close(scope, Exit.void)
        yield* fs.remove(`${directory}/state/machines`, { recursive: true })
        yield* fs.rename(`${directory}/machines`, `${directory}/state/machines`)
      })
  }
})

const idsOf = Effect.map((entries: ReadonlyArray<Journal.Entry>) => entries.map(({ id }) => id))

const live = Effect.provide(Layer.mergeAll(NodeServices.layer, NodeProcessHost.layer))

describe("a machine", () => {
  it.effect("has what it needs, and all of it goes when it ends, the last first", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      yield* Effect.scoped(Effect.gen(function*() {
        yield* launch({ id: "a", resources: [ports.resource(1), ports.resource(2)], bring: bring("a") })
        assert.deepStrictEqual(yield* idsOf(entries), ["a"])
      }))
      assert.deepStrictEqual(ports.order, ["take 1", "take 2", "free 2", "free 1"])
      assert.deepStrictEqual(yield* entries, [])
    }).pipe(Effect.scoped, live))

  it.effect("that ends by itself leaves nothing, while its scope is open still", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      const { supervised } = yield* launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") })
      yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
      const released = yield* supervised.released
      assert.deepStrictEqual([released.left, [...ports.taken], yield* entries], [0, [], []])
    }).pipe(Effect.scoped, live))

  it.effect("can be launched anew as soon as its record is gone, and is not taken for what it was before", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const isGone = yield* Latch.make()
      const goOn = yield* Latch.make()
      // The first one's release stands still once its record is removed.
      let isFirst = true
      const { launch, machines, recover } = yield* supervisor({}, (journal) => ({
        ...journal,
        open: (record) =>
          Effect.map(journal.open(record), (entry) => {
            if (!isFirst) return entry
            isFirst = false
            return { ...entry, close: Effect.andThen(entry.close, Effect.andThen(isGone.open, goOn.await)) }
          })
      }))
      const one = launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") })
      const { supervised } = yield* one
      yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
      yield* isGone.await
      yield* one
      yield* goOn.open
      yield* supervised.released
      assert.deepStrictEqual((yield* machines).map(({ entry }) => entry.id), ["a"])
      assert.deepStrictEqual(yield* recover({ mode: "kill" }), [])
      assert.deepStrictEqual([...ports.taken], [1])
    }).pipe(Effect.scoped, live))

  it.effect("can be launched anew by whoever is told of its release", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const scope = yield* Effect.scope
      let then: Effect.Effect<void> = Effect.void
      const { launch, machines, recover } = yield* supervisor({ onReleased: () => Effect.suspend(() => then) })
      const one = launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") })
      const { supervised } = yield* one
      then = one.pipe(Scope.provide(scope), Effect.orDie, Effect.asVoid)
      yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
      yield* supervised.released
      then = Effect.void
      assert.deepStrictEqual((yield* machines).map(({ entry }) => entry.id), ["a"])
      // It is not taken for a dead supervisor's.
      assert.deepStrictEqual(yield* recover(), [])
      assert.deepStrictEqual([...ports.taken], [1])
    }).pipe(Effect.scoped, live))

  it.effect("is released, and that is known, although who is told of it throws", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor({ onReleased: () => Effect.die("a bug") })
      yield* Effect.scoped(Effect.gen(function*() {
        const { supervised } = yield* launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") })
        yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
        assert.strictEqual((yield* supervised.released).left, 0)
      }))
      assert.deepStrictEqual([[...ports.taken], yield* entries], [[], []])
    }).pipe(Effect.scoped, live))

  it.effect("whose last words are read is released with its scope", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      yield* Effect.scoped(Effect.gen(function*() {
        const { machine } = yield* launch({
          id: "a",
          resources: [ports.resource(1)],
          releaseWhen: "closed",
          bring: bring("a")
        })
        yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
        yield* machine.ended
        yield* Effect.yieldNow
        assert.deepStrictEqual([...ports.taken], [1])
      }))
      assert.deepStrictEqual([[...ports.taken], yield* entries], [[], []])
    }).pipe(Effect.scoped, live))

  it.effect("that cannot have all leaves nothing", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      const poor: Supervisor.Resource = {
        acquire: () => HostError.fail(new HostError.Exhausted({ what: "ports", size: 2, remedy: "free some" }))
      }
      const error = yield* Effect.flip(
        launch({ id: "a", resources: [ports.resource(1), ports.resource(2), poor], bring: bring("a") })
      )
      assert.strictEqual(error.message, "all 2 ports are taken: free some")
      assert.deepStrictEqual([[...ports.taken], yield* entries], [[], []])
    }).pipe(Effect.scoped, live))

  it.effect("that does not come up leaves nothing, kept or not", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      for (const step of ["claim", "spawn", "connect"] as const) {
        for (const keep of [false, true]) {
          yield* driver.script("*", { launch: (one) => one === step ? Effect.fail("no") : Effect.void })
          const error = yield* Effect.flip(
            launch({ id: "a", keep, resources: [ports.resource(1)], bring: bring("a") })
          )
          assert.strictEqual(error._tag, "MicroVmError")
          assert.deepStrictEqual([[...ports.taken], yield* entries, yield* driver.claims], [[], [], []])
        }
      }
    }).pipe(Effect.scoped, live))

  it.effect("whose launch is called off at any step leaves nothing", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      const { entries, launch } = yield* supervisor()
      const reached = yield* Latch.make()
      const at = (step: string, here: string) =>
        step === here ? Effect.andThen(reached.open, Effect.never) : Effect.void
      for (const step of ["take 1", "take 2", "claim", "spawn", "connect"]) {
        yield* driver.script("*", { launch: (one) => at(step, one) })
        const fiber = yield* Effect.scoped(launch({
          id: "a",
          keep: true,
          resources: [ports.resource(1, {}, at(step, "take 1")), ports.resource(2, {}, at(step, "take 2"))],
          bring: bring("a")
        })).pipe(Effect.forkChild({ startImmediately: true }))
        yield* reached.await
        yield* reached.close
        assert.deepStrictEqual(yield* idsOf(entries), ["a"])
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual([[...ports.taken], yield* entries, yield* driver.claims], [[], [], []], step)
      }
    }).pipe(Effect.scoped, live))

  it.effect("that comes up is not taken for a dead supervisor's", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      const { launch, recover } = yield* supervisor()
      const inTheMiddle: Supervisor.Resource = {
        acquire: () => Effect.map(Effect.orDie(recover()), (recovered) => (assert.deepStrictEqual(recovered, []), {}))
      }
      yield* launch({ id: "a", resources: [ports.resource(1), inTheMiddle], bring: bring("a") })
      assert.deepStrictEqual([...ports.taken], [1])
    }).pipe(Effect.scoped, live))

  it.effect("has an id that no other has", () =>
    Effect.gen(function*() {
      const { bring, supervisor } = yield* makeWorld
      const { launch } = yield* supervisor()
      yield* launch({ id: "a", bring: bring("a") })
      const error = yield* Effect.flip(launch({ id: "a", bring: bring("a") }))
      assert.strictEqual(error._tag === "JournalError" && error.reason._tag, "RecordExists")
    }).pipe(Effect.scoped, live))
})

describe("after a supervisor", () => {
  it.effect("that has ended in order, a machine that is kept goes on with all it has, and the next one ends it", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, resumed, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        yield* launch({ id: "a", keep: true, resources: [ports.resource(1)], bring: bring("a") })
      }))
      assert.deepStrictEqual([...ports.taken], [1])
      const { entries, machines, recover } = yield* supervisor()
      const dry = yield* recover({ dryRun: true })
      assert.deepStrictEqual(dry, [{ id: "a", action: "Adopted", why: "its machine answers" }])
      assert.deepStrictEqual([resumed, yield* machines], [[], []])
      assert.deepStrictEqual(yield* recover(), dry)
      const [supervised] = yield* machines
      assert.isDefined(supervised)
      assert.deepStrictEqual([supervised.adopted, yield* supervised.machine.state, resumed], [true, "running", ["a"]])
      // Ours already.
      assert.deepStrictEqual(yield* recover(), [])
      yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
      yield* supervised.released
      assert.deepStrictEqual([[...ports.taken], yield* entries, yield* machines], [[], [], []])
    }).pipe(Effect.scoped, live))

  it.effect("that was killed, what was not to be kept is reclaimed", () =>
    Effect.gen(function*() {
      const { bring, kill, ports, supervisor } = yield* makeWorld
      const first = yield* Scope.make()
      const { launch } = yield* Scope.provide(supervisor(), first)
      yield* launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") }).pipe(Scope.provide(first))
      yield* kill(first)
      ports.taken.add(1)
      const { entries, recover } = yield* supervisor()
      const wet = { dryRun: false }
      assert.deepStrictEqual((yield* recover({ dryRun: true })).map(({ action }) => action), ["Reclaimed"])
      assert.deepStrictEqual([...ports.taken], [1])
      const [recovered] = yield* recover(wet)
      assert.strictEqual(recovered?.why, "it was to end with its supervisor")
      assert.strictEqual(recovered?.released?.claims[0]?.verdict._tag, "Released")
      assert.deepStrictEqual([[...ports.taken], yield* entries], [[], []])
    }).pipe(Effect.scoped, live))

  it.effect("a machine that has ended meanwhile tells how", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        yield* launch({ id: "a", keep: true, resources: [ports.resource(1)], bring: bring("a") })
      }))
      yield* Effect.flatMap(driver.guest("a"), ({ panic }) => panic)
      const { recover } = yield* supervisor()
      const [recovered] = yield* recover()
      assert.strictEqual(recovered?.action, "Reclaimed")
      assert.match(recovered?.end ?? "", /panic/)
      assert.deepStrictEqual([...ports.taken], [])
    }).pipe(Effect.scoped, live))

  it.effect("what is to be killed is killed", () =>
    Effect.gen(function*() {
      const { bring, driver, ports, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        yield* launch({ id: "a", keep: true, resources: [ports.resource(1)], bring: bring("a") })
      }))
      const { recover } = yield* supervisor()
      assert.deepStrictEqual((yield* recover({ mode: "kill", dryRun: true })).map(({ action }) => action), [
        "Reclaimed"
      ])
      assert.lengthOf(yield* driver.claims, 1)
      assert.deepStrictEqual((yield* recover({ mode: "kill" })).map(({ action }) => action), ["Reclaimed"])
      assert.deepStrictEqual([[...ports.taken], yield* driver.claims], [[], []])
    }).pipe(Effect.scoped, live))

  it.effect("a machine that somebody else has hold of is left to him", () =>
    Effect.gen(function*() {
      const { backend, bring, ports, supervisor } = yield* makeWorld
      const spec = yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        const { machine, supervised } = yield* launch({
          id: "a",
          keep: true,
          resources: [ports.resource(1)],
          bring: bring("a")
        })
        const { claims } = yield* supervised.entry.record
        const [held] = claims.flatMap(({ data, kind }) => kind === "held-process" ? [data] : [])
        const { directory } = yield* Schema.decodeUnknownEffect(Schema.Struct({ directory: Schema.String }))(held)
        return { spec: machine.spec, keep: { directory } }
      }))
      yield* Machine.attach(spec.spec, { keep: spec.keep }).pipe(Effect.provideContext(backend))
      const { recover } = yield* supervisor()
      assert.deepStrictEqual((yield* recover()).map(({ action }) => action), ["Kept"])
      assert.deepStrictEqual([...ports.taken], [1])
    }).pipe(Effect.scoped, live))

  it.effect("a recovery that is called off lets go of what it had got hold of", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        yield* launch({ id: "a", keep: true, resources: [ports.resource(1)], bring: bring("a") })
      }))
      let isFirst = true
      const reached = yield* Latch.make()
      const { machines, recover } = yield* supervisor({
        resume: () => isFirst ? Effect.andThen(reached.open, Effect.never) : Effect.void
      })
      const fiber = yield* Effect.forkChild(recover(), { startImmediately: true })
      yield* reached.await
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(yield* machines, [])
      isFirst = false
      assert.deepStrictEqual((yield* recover()).map(({ action, id }) => [id, action]), [["a", "Adopted"]])
      assert.deepStrictEqual((yield* machines).map(({ entry }) => entry.id), ["a"])
    }).pipe(Effect.scoped, live))

  it.effect("a machine that lives and does not answer is left, until it is to be killed", () =>
    Effect.gen(function*() {
      const { bring, driver, find, ports, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        const { supervised } = yield* launch({
          id: "a",
          keep: true,
          resources: [ports.resource(1)],
          bring: bring("a")
        })
        // Nobody finds it by this.
        yield* supervised.entry.respec({ id: "another", kernel: "/kernel" })
      }))
      find(true)
      const { recover } = yield* supervisor()
      const [left] = yield* recover()
      assert.strictEqual(left?.action, "Left")
      assert.match(left?.why ?? "", /its process lives, but nobody can go on with it, .*none is kept/)
      assert.deepStrictEqual([...ports.taken], [1])
      const [killed] = yield* recover({ mode: "kill" })
      assert.strictEqual(killed?.action, "Reclaimed")
      assert.deepStrictEqual([...ports.taken], [])
      find(false)
      yield* Effect.flatMap(driver.guest("a"), ({ powerOff }) => powerOff)
    }).pipe(Effect.scoped, live))

  it.effect("of another boot, all is reclaimed, whatever seems to be there", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const { bring, find, ports, records, supervisor } = yield* makeWorld
      for (const attaches of [true, false]) {
        yield* Effect.scoped(Effect.gen(function*() {
          const { launch } = yield* supervisor()
          const id = `a-${attaches}`
          const { supervised } = yield* launch({ id, keep: true, resources: [ports.resource(1)], bring: bring(id) })
          // Nobody finds it by this.
          if (!attaches) yield* supervised.entry.respec({ id: "another", kernel: "/kernel" })
        }))
      }
      for (const name of yield* fs.readDirectory(records)) {
        const text = yield* fs.readFileString(`${records}/${name}`)
        yield* fs.writeFileString(`${records}/${name}`, text.replace(/^ "bootId": .*$/m, ` "bootId": "another",`))
      }
      // Of the same number, by now another's.
      find(true)
      const { entries, machines, recover } = yield* supervisor()
      for (const dryRun of [true, false]) {
        assert.deepStrictEqual((yield* recover({ dryRun })).map(({ action, why }) => [action, why]), [
          ["Reclaimed", "the host was started again since"],
          ["Reclaimed", "the host was started again since"]
        ])
      }
      assert.deepStrictEqual([[...ports.taken], yield* entries, yield* machines], [[], [], []])
    }).pipe(Effect.scoped, live))

  it.effect("what cannot be read is left, and told each time until somebody removes it", () =>
    Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      const { ports, records, supervisor } = yield* makeWorld
      ports.taken.add(1)
      yield* Effect.scoped(supervisor())
      yield* fs.writeFileString(`${records}/a.json`, "{\"format\": 1, \"id\": \"a\", \"tok")
      const [first, second] = yield* Effect.forEach([1, 2], () =>
        Effect.scoped(Effect.flatMap(supervisor(), ({ recover }) => recover({ mode: "kill" }))))
      assert.deepStrictEqual(second, first)
      assert.deepStrictEqual(first?.map(({ action, id }) => [id, action]), [["a", "Left"]])
      const [, file = ""] = /torn.*, then remove (\S+)$/.exec(first?.[0]?.why ?? "") ?? []
      assert.deepStrictEqual([...ports.taken], [1])
      yield* fs.remove(file)
      yield* fs.remove(`${file}.why`)
      const { recover } = yield* supervisor()
      assert.deepStrictEqual(yield* recover(), [])
    }).pipe(Effect.scoped, live))

  it.effect("what cannot be seen from here is left as it is", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      yield* Effect.scoped(Effect.gen(function*() {
        const { launch } = yield* supervisor()
        yield* launch({ id: "a", keep: true, resources: [ports.resource(1)], bring: bring("a") })
      }))
      const { entries, recover } = yield* supervisor({
        obstacle: Effect.succeed(({ keep }) => keep ? "it is elsewhere" : undefined)
      })
      for (const mode of ["adopt", "kill"] as const) {
        assert.deepStrictEqual(yield* recover({ mode }), [{ id: "a", action: "Left", why: "it is elsewhere" }])
      }
      assert.deepStrictEqual([[...ports.taken], yield* idsOf(entries)], [[1], ["a"]])
    }).pipe(Effect.scoped, live))

  it.effect("what cannot be removed is left, told, and removed the next time", () =>
    Effect.gen(function*() {
      const { bring, ports, supervisor } = yield* makeWorld
      const told: Array<number> = []
      const { entries, launch, recover } = yield* supervisor({
        onReleased: ({ left }) => Effect.sync(() => void told.push(left))
      })
      ports.stick(true)
      yield* Effect.scoped(launch({ id: "a", resources: [ports.resource(1)], bring: bring("a") }))
      assert.deepStrictEqual([told, yield* idsOf(entries)], [[1], ["a"]])
      const [stuck] = yield* recover()
      assert.deepStrictEqual([stuck?.action, stuck?.released?.left], ["Left", 1])
      ports.stick(false)
      const [gone] = yield* recover()
      assert.deepStrictEqual([gone?.action, yield* entries], ["Reclaimed", []])
    }).pipe(Effect.scoped, live))
})
