/** `microvm run` with machines that are restored. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Control } from "../../src/cli/Control.ts"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import * as MemoryDriver from "../../src/microvm/MemoryDriver.ts"
import * as MicroVmError from "../../src/microvm/MicroVmError.ts"
import { SnapshotStore } from "../../src/microvm/SnapshotStore.ts"
import { type Host, makeHost, nothing, run, type Setting, start, takes } from "./world.ts"

const warm = (setting: Setting = {}): Setting => ({ built: true, ...setting, flags: { cold: false, ...setting.flags } })
const from = (snapshot: string, setting: Setting = {}): Setting =>
  warm({ ...setting, flags: { ...setting.flags, from: Option.some(snapshot) } })

const making = "making a golden machine, from which later ones are restored"
const restored = `restored in ${((takes.launch + takes.restore + takes.answer) / 1000).toFixed(1)} s`
const golden = takes.image + takes.launch + takes.boot + takes.save
/** A machine is restored as fast as it answers. */
const commandStarts = takes.launch + takes.restore + takes.answer
const phasesOfRestored = [`restore ${takes.launch + takes.restore}`, `renew ${takes.answer}`, "command 0", "stop 500"]

/** A host where a golden machine was made before. */
const makeUsedHost = Effect.tap(makeHost, (host) => run(warm({ host })))
const snapshotsOf = (host: Host) => Context.get(host, SnapshotStore).list
const goldenOf = (host: Host) =>
  Effect.flatMap(
    snapshotsOf(host),
    ([first]) => first === undefined ? Effect.die(new Error("there is no snapshot")) : Effect.succeed(first)
  )

describe("a machine that is restored", () => {
  it.effect("is so from a golden one, which the first run makes", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const first = yield* run(warm({ host, flags: { command: ["exit", "7"] } }))
      assert.deepInclude(first, { code: 7, left: nothing })
      assert.deepStrictEqual(first.phases, [`golden ${golden}`, ...phasesOfRestored])
      assert.deepStrictEqual(first.lines, [making, restored])
      assert.strictEqual(first.report.start?._tag, "Restored")
      assert.deepStrictEqual(first.stages, ["guest power-off ended"])

      const second = yield* run(warm({ host, flags: { command: ["echo", "hello"] } }))
      assert.deepInclude(second, { code: 0, stdout: "hello\n", left: nothing })
      assert.deepStrictEqual(second.phases, phasesOfRestored)
      assert.deepStrictEqual(second.lines, [restored])
      assert.isBelow(second.took, first.took)
    }))

  it.effect("is so whether the image was built or not", () =>
    Effect.gen(function*() {
      const { lines, phases } = yield* run(warm({ built: false }))
      assert.deepStrictEqual(lines, [making, restored])
      assert.deepStrictEqual(phases, [`golden ${golden}`, ...phasesOfRestored])
    }))

  it.effect("reports how it came to be, and the report is the same after it was JSON", () =>
    Effect.gen(function*() {
      const { report } = yield* run(warm())
      const codec = Schema.fromJsonString(RunReport)
      const back = yield* Schema.decodeEffect(codec, { onExcessProperty: "error" })(
        yield* Schema.encodeEffect(codec)(report)
      )
      assert.deepStrictEqual(back, report)
    }))

  it.effect("has the id of the run, and the size that was asked for", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const started = yield* start(warm({
        host,
        flags: { command: ["sleep", "9"], vcpus: Option.some(2), memory: Option.some(512) }
      }))
      yield* TestClock.adjust(golden + commandStarts + 100)
      const { id, spec } = yield* started.machine
      assert.deepInclude({ ...spec, id }, { id: "m", vcpus: 2, memoryMib: 512 })
      assert.strictEqual((yield* started.guest).own.hostname, "m")
      yield* started.end
    }))

  it.effect("whose clock cannot be set is destroyed, with its golden machine, and one is booted", () =>
    Effect.gen(function*() {
      const host = yield* makeUsedHost
      const { code, left, lines, phases, report } = yield* run(
        warm({ host, guest: { renewal: { clockOff: -60_000, refuses: ["clock"] } } })
      )
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
      assert.match(lines.join("\n"), /^booting: .* not made its own.*clock: adjtimex failed with errno/)
      assert.strictEqual(report.start?._tag, "Booted")
      assert.deepStrictEqual(phases.map((phase) => phase.split(" ")[0]), [
        "restore",
        "renew",
        "image",
        "launch",
        "boot",
        "command",
        "stop"
      ])
      assert.deepStrictEqual(yield* snapshotsOf(host), [])
    }))
})

describe("a golden machine", () => {
  it.effect("that cannot be used is made again", () =>
    Effect.gen(function*() {
      const host = yield* makeUsedHost
      const { id } = yield* goldenOf(host)
      yield* Context.get(host, MemoryDriver.MemoryDriver).corrupt(id, "its file memory has changed")
      const { code, left, lines, phases } = yield* run(warm({ host }))
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
      assert.match(lines[0] ?? "", /^making another golden machine: .* its file memory has changed/)
      assert.deepStrictEqual(lines.slice(1), [restored])
      assert.deepStrictEqual(phases, [`golden ${golden}`, ...phasesOfRestored])
      assert.notStrictEqual((yield* goldenOf(host)).id, id)
      assert.lengthOf(yield* snapshotsOf(host), 1)
    }))

  it.effect("that cannot be made is told, and the machine boots", () =>
    Effect.gen(function*() {
      const { code, left, lines, phases, report } = yield* run(
        warm({ machine: { save: Effect.fail(new Error("no space left")) } })
      )
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
      assert.strictEqual(lines[0], making)
      assert.match(lines[1] ?? "", /^booting: .*no space left/)
      assert.lengthOf(lines, 2)
      assert.strictEqual(report.start?._tag, "Booted")
      assert.deepStrictEqual(phases.map((phase) => phase.split(" ")[0]), [
        "golden",
        "image",
        "launch",
        "boot",
        "command",
        "stop"
      ])
    }))

  const failure = new MicroVmError.StoreFailed({ path: "/cache", why: "read-only file system" })
  const broken: ReadonlyArray<readonly [what: string, operation: "add" | "open"]> = [["be kept", "add"], [
    "be looked up",
    "open"
  ]]
  it.effect.each(broken)("that cannot %s is told, and the machine boots", ([, operation]) =>
    Effect.gen(function*() {
      const { code, left, lines, report } = yield* run(warm({
        store: (store) => ({ ...store, [operation]: () => MicroVmError.fail(failure) })
      }))
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
      assert.include(lines, `booting: ${failure.message}`)
      assert.strictEqual(report.start?._tag === "Booted" && report.start.why, failure.message)
    }))

  it.effect("does not hide what a boot fails with as well", () =>
    Effect.gen(function*() {
      const reason = new MicroVmError.BackendUnavailable({
        backend: "qemu",
        why: "it was removed",
        remedy: "install it"
      })
      const { left, lines, report } = yield* run(warm({
        provider: (provider) => ({ ...provider, launch: () => MicroVmError.fail(reason) })
      }))
      assert.deepStrictEqual(report.end, { _tag: "NoBackend", message: reason.message })
      assert.deepStrictEqual(lines, [making])
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("is followed by the fault of the boot, when that fails too", () =>
    Effect.gen(function*() {
      const { left, report } = yield* run(warm({
        machine: { program: (guest) => Effect.andThen(guest.print("no /init\n"), Effect.never) }
      }))
      assert.strictEqual(report.exitCode, 125)
      assert.match(
        report.end._tag === "Failed" ? report.end.message : report.end._tag,
        /^No guest agent answered .*\n--- the end of its console ---\n {2}no \/init\n---$/
      )
      assert.deepStrictEqual(left, nothing)
    }))

  it.effect("is none of an image that cannot be built: that is told, not that the machine boots", () =>
    Effect.gen(function*() {
      const { left, report } = yield* run(warm({ built: false, image: Effect.die(new Error("a bug")) }))
      assert.deepStrictEqual(report.end, { _tag: "Failed", message: "a bug" })
      assert.deepStrictEqual(left, nothing)
    }))
})

describe("--from", () => {
  /** A host with a snapshot that has a name. */
  const makeSaved = Effect.gen(function*() {
    const host = yield* makeUsedHost
    const started = yield* start(warm({ host, flags: { command: ["sleep", "60"] } }))
    yield* TestClock.adjust(commandStarts + 1000)
    const save = yield* Effect.forkChild(Context.get(host, Control).ask("m", { _tag: "Save", name: "ready" }), {
      startImmediately: true
    })
    yield* TestClock.adjust(takes.save)
    const saved = yield* Fiber.join(save)
    yield* started.signal("SIGTERM")
    yield* started.end
    return { host, saved }
  })

  it.effect("restores a machine that was saved while it ran, and its command goes its own way", () =>
    Effect.gen(function*() {
      const { host, saved } = yield* makeSaved
      assert.deepInclude(saved, { took: takes.save, stoodStill: takes.save })
      for (const snapshot of ["ready", saved.snapshot]) {
        const { code, left, lines, phases, report, stdout } = yield* run(
          from(snapshot, { host, flags: { command: ["echo", "hello"] } })
        )
        assert.deepInclude({ code, left, lines, phases, stdout }, {
          code: 0,
          left: nothing,
          lines: [restored],
          phases: phasesOfRestored,
          stdout: "hello\n"
        })
        assert.strictEqual(report.start?._tag === "Restored" && report.start.snapshot, saved.snapshot)
      }
    }))

  it.effect("takes another slot in each generation, until there is none; then it is not saved", () =>
    Effect.gen(function*() {
      const { host } = yield* makeSaved
      const { list } = Context.get(host, SnapshotStore)
      for (const [name, next] of [["ready", "b"], ["b", "c"], ["c", "d"]] as const) {
        const started = yield* start(from(name, { host, flags: { command: ["sleep", "60"] } }))
        yield* TestClock.adjust(commandStarts + 1000)
        yield* Effect.forkChild(Context.get(host, Control).ask("m", { _tag: "Save", name: next }), {
          startImmediately: true
        })
        yield* TestClock.adjust(takes.save)
        yield* started.signal("SIGTERM")
        yield* started.end
      }
      const free = (yield* list).map(({ manifest, names }) => `${names[0]} ${manifest?.labels["free-slots"]}`)
      assert.deepStrictEqual(free.filter((one) => !one.startsWith("golden-")).toSorted(), [
        "b 2 3",
        "c 3",
        "ready 1 2 3"
      ])
    }))

  it.effect("of a snapshot that is not there is a wrong command line", () =>
    Effect.gen(function*() {
      for (const snapshot of ["ready", "0123456789abcdef"]) {
        const { code, left, lines, phases, report } = yield* run(from(snapshot))
        assert.deepStrictEqual(report.end, { _tag: "Usage", message: `There is no snapshot "${snapshot}"` })
        assert.deepInclude({ code, left, lines, phases }, { code: 64, left: nothing, lines: [], phases: [] })
      }
    }))

  it.effect("of one that cannot be used says why, and nothing is booted instead", () =>
    Effect.gen(function*() {
      const { host, saved } = yield* makeSaved
      yield* Context.get(host, MemoryDriver.MemoryDriver).corrupt("ready", "its file state is shorter")
      const { code, left, phases, report } = yield* run(from("ready", { host }))
      assert.deepInclude({ code, left, phases }, { code: 125, left: nothing, phases: [] })
      assert.match(report.end._tag === "Failed" ? report.end.message : "", /its file state is shorter/)
      // It is its owner's to remove.
      assert.include((yield* snapshotsOf(host)).map(({ id }) => id), saved.snapshot)
    }))

  it.effect("of one that was made on another host says why", () =>
    Effect.gen(function*() {
      const { host } = yield* makeSaved
      yield* Context.get(host, MemoryDriver.MemoryDriver).platform({ cpu: "another" })
      const { code, left, report } = yield* run(from("ready", { host }))
      assert.deepInclude({ code, left }, { code: 125, left: nothing })
      assert.match(report.end._tag === "Failed" ? report.end.message : "", /its cpu is not told, here it is another/)
    }))

  for (
    const [has, here, words] of [
      ["1 vCPU, network card", "1 vCPU", "it also has network card. Write --network nat"],
      ["1 vCPU, interface net0", "1 vCPU", "it also has interface net0. Write --network nat"],
      ["1 vCPU, network card, disk a", "1 vCPU", "it also has network card, disk a. Remove it and make it anew"],
      ["1 vCPU", "1 vCPU, network card", "here there is also network card. Remove it and make it anew"]
    ] as const
  ) {
    it.effect(`of one with "${has}", where there is "${here}", says what to do`, () =>
      Effect.gen(function*() {
        const { host, saved } = yield* makeSaved
        yield* Context.get(host, MemoryDriver.MemoryDriver).platform({ devices: here })
        const store: Setting["store"] = (inner) => ({
          ...inner,
          open: (name) =>
            Effect.map(inner.open(name), (snapshot) => {
              const { manifest } = snapshot
              return { ...snapshot, manifest: { ...manifest, platform: { ...manifest.platform, devices: has } } }
            })
        })
        const { code, report } = yield* run(from("ready", { host, store }))
        assert.deepStrictEqual([code, report.end], [125, {
          _tag: "Failed",
          message: `Snapshot "${saved.snapshot}" cannot be used: ${words}`
        }])
      }))
  }

  it.effect("of a machine that cannot be made itself destroys it, and says why", () =>
    Effect.gen(function*() {
      const { host } = yield* makeSaved
      const { asked, code, left, report } = yield* run(
        from("ready", { host, guest: { renewal: { passesOver: ["boot-id"] } } })
      )
      assert.deepInclude({ code, left }, { code: 125, left: nothing })
      assert.match(report.end._tag === "Failed" ? report.end.message : report.end._tag, /boot-id/)
      assert.strictEqual(asked.at(-1), "Kill")
    }))
})

describe("a save from outside", () => {
  const ask = (host: Host, name = "ready") => Effect.exit(Context.get(host, Control).ask("m", { _tag: "Save", name }))
  const sleeping = { command: ["sleep", "60"] }
  const asked = Effect.fnUntraced(function*(after: number, setting: Setting = {}) {
    const host = yield* makeUsedHost
    const started = yield* start(warm({ host, flags: sleeping, ...setting }))
    yield* TestClock.adjust(after)
    const answer = yield* Effect.forkChild(ask(host), { startImmediately: true })
    return { host, started, answer: Effect.map(Fiber.join(answer), (exit) => String(exit)) }
  })

  it.effect("is refused before the guest has answered", () =>
    Effect.gen(function*() {
      const { answer, started } = yield* asked(100)
      assert.match(yield* answer, /NotReady|has not answered yet/)
      yield* started.signal("SIGTERM")
      assert.strictEqual((yield* started.end).code, 143)
    }))

  it.effect("lets the command go on", () =>
    Effect.gen(function*() {
      const { answer, started } = yield* asked(commandStarts + 1000, {
        flags: { command: ["sleep", "3"], cold: false }
      })
      const { code, left } = yield* started.end
      assert.match(yield* answer, /Saved/)
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
    }))

  it.effect("is refused for a name that is taken", () =>
    Effect.gen(function*() {
      const { answer, host, started } = yield* asked(commandStarts + 1000)
      yield* TestClock.adjust(takes.save)
      assert.match(yield* answer, /Saved/)
      assert.match(String(yield* ask(host)), /already exists/)
      yield* started.signal("SIGTERM")
      assert.strictEqual((yield* started.end).code, 143)
    }))

  it.effect("that fails is told, and the machine goes on", () =>
    Effect.gen(function*() {
      const { answer, started } = yield* asked(commandStarts + 1000, {
        machine: { save: Effect.fail(new Error("no space left")) },
        flags: { command: ["sleep", "3"], cold: false }
      })
      assert.match(yield* answer, /no space left/)
      const { code, left } = yield* started.end
      assert.deepInclude({ code, left }, { code: 0, left: nothing })
    }))

  it.effect("ends with the run, and leaves no snapshot", () =>
    Effect.gen(function*() {
      const { host, started } = yield* asked(commandStarts + 1000, { machine: { save: Effect.never } })
      yield* started.signal("SIGTERM")
      const { code, left, stages } = yield* started.end
      assert.deepInclude({ code, left, stages }, { code: 143, left: nothing, stages: ["guest power-off ended"] })
      assert.deepStrictEqual((yield* snapshotsOf(host)).map(({ manifest }) => manifest?.kind), ["golden"])
    }))

  it.effect("is not possible for a second run of the same name, which goes on all the same", () =>
    Effect.gen(function*() {
      const host = yield* makeUsedHost
      const first = yield* start(warm({ host, flags: sleeping }))
      yield* TestClock.adjust(commandStarts + 1000)
      const second = yield* run(warm({ host }))
      assert.strictEqual(second.code, 0)
      assert.deepStrictEqual(second.lines, [
        "the machine cannot be reached from outside: another run has a machine m",
        restored
      ])
      yield* first.signal("SIGTERM")
      yield* first.end
    }))
})

describe("a signal to a warm run", () => {
  it.effect("leaves nothing at whatever moment it comes, and the next run works", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const setting = warm({ host, flags: { command: ["sleep", "1"] } })
      let millis = 0
      for (;; millis += 125) {
        // The golden machine is made again and again, until it is done before the signal comes.
        const started = yield* start(setting)
        yield* TestClock.adjust(millis)
        if (started.fiber.pollUnsafe() !== undefined) break
        yield* started.signal("SIGTERM")
        const { code, left } = yield* started.end
        assert.deepStrictEqual({ millis, code, left }, { millis, code: 143, left: nothing })
      }
      assert.isAtLeast(millis, golden)
      const { lines } = yield* run(setting)
      assert.deepStrictEqual(lines, [restored])
    }))

  it.effect("ends the making of a golden machine at once", () =>
    Effect.gen(function*() {
      const host = yield* makeHost
      const started = yield* start(warm({ host }))
      yield* TestClock.adjust(takes.image + takes.launch + 1000)
      yield* started.signal("SIGINT")
      yield* TestClock.adjust(1)
      assert.isDefined(started.fiber.pollUnsafe())
      const { code, left, phases, report } = yield* started.end
      assert.deepInclude({ code, left, phases }, { code: 130, left: nothing, phases: ["golden 7000"] })
      assert.isUndefined(report.shutdown)
      assert.deepStrictEqual(yield* snapshotsOf(host), [])
    }))

  it.effect("--timeout counts from the command's start, however long the golden machine took", () =>
    Effect.gen(function*() {
      const { code, left, phases } = yield* run(
        warm({ flags: { command: ["sleep", "60"], timeout: Option.some("3s") } })
      )
      assert.deepInclude({ code, left }, { code: 124, left: nothing })
      assert.deepStrictEqual(phases.slice(-2), ["command 3000", "stop 500"])
    }))
})
