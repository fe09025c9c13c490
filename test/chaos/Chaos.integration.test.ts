import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { dirname, join } from "node:path"
import type { Answer, Harm, Launch, Mishap, Recover } from "./orders.ts"
import { isWhole, makeRandom, seed, some, upTo } from "./plan.ts"
import { type Done, missing, type Supervisor, tree, World } from "./world.ts"

const reason = missing()
if (reason !== undefined) console.warn(`skipped: ${reason}`)

let world: World
/** It recovers what others have left, and lives through all of this. */
let rescuer: Supervisor
/** What there is when no machine is. */
let before: ReadonlyArray<string>
let runs = 0

const launch = (state: string, more: Partial<Launch> = {}): Launch => ({
  do: "launch",
  backend: "script",
  state,
  ids: ["a"],
  keep: true,
  last: "kill",
  ...more
})

const recover = (state: string, more: Partial<Recover> = {}): Recover => ({
  do: "recover",
  backend: "script",
  state,
  mode: "kill",
  use: false,
  ...more
})

/** What is wrong with how a recovery went, and with what there is after it. */
const faultsOf = async ({ fates, left, records, used }: Done): Promise<ReadonlyArray<string>> => [
  ...left,
  ...records.map((id) => `${id} is still in the journal`),
  ...fates.filter(({ action }) => action !== "Adopted" && action !== "Reclaimed").map((one) => JSON.stringify(one)),
  ...used.filter((one) =>
    one.answer !== "answer 7" || one.console !== `hello from ${one.id}\n` ||
    !one.end.includes("exited with code 7") || one.left !== 0
  ).map((one) => JSON.stringify(one)),
  ...await world.leftovers(before)
]

/** Adopts and uses what lives, or ends it; then nothing is to be left. */
const clean = async (state: string, mode: Recover["mode"]): Promise<Done> =>
  rescuer.do(recover(state, { mode, use: mode === "adopt" }))

/** Runs all cases, so that one report has all that went wrong. */
const each = async <A>(
  cases: ReadonlyArray<A>,
  run: (one: A) => Promise<ReadonlyArray<string>>
): Promise<ReadonlyArray<string>> => {
  const wrong: Array<string> = []
  for (const one of cases) {
    runs++
    const faults = await run(one).catch((error: unknown) => [String(error).slice(0, 2000)])
    if (faults.length === 0) continue
    const more = faults.length > 12 ? [`and ${faults.length - 12} more`] : []
    wrong.push(`${JSON.stringify(one)}:\n  ${[...faults.slice(0, 12), ...more].join("\n  ")}`)
    await world.restore(before)
  }
  return wrong
}

/** Printed when something is wrong: the same runs again. */
const again = `CHAOS_SEED=${seed}`

/** A supervisor does something, and may die of it. */
const victim = async (order: Launch | Recover, dieAfter?: number): Promise<Answer | undefined> => {
  const one = await world.supervisor()
  const timer = dieAfter === undefined ? undefined : setTimeout(() => void one.end(), dieAfter)
  const answer = await one.obey(order)
  clearTimeout(timer)
  await one.end()
  return answer
}

/** All that is done for a machine, from the first to the last of it. */
const stepsOf = async (how: Partial<Launch>): Promise<ReadonlyArray<string>> =>
  (await rescuer.do(launch(world.state(), how))).steps

const kinds = [
  { keep: true, apart: false, words: "kept" },
  { keep: false, apart: false, words: "not kept" },
  { keep: true, apart: true, words: "kept, in a network namespace of its own," }
]

beforeAll(async () => {
  if (reason !== undefined) return
  world = await World.make()
  rescuer = await world.supervisor()
  await rescuer.do(launch(world.state(), { apart: true }))
  before = world.traces()
})

afterAll(async () => {
  if (reason !== undefined) return
  await world.end()
  console.log(`chaos: ${runs} runs, CHAOS_SEED=${seed}`)
})

/** Leaves so many pages of a file system free. */
const fill = (path: string, pages: number): void => {
  const page = Buffer.alloc(4096)
  const file = openSync(path, "w")
  try {
    for (;;) writeSync(file, page)
  } catch {
    // There is no more room.
  } finally {
    closeSync(file)
  }
  truncateSync(path, Math.max(0, statSync(path).size - pages * 4096))
}

const modes = ["adopt", "kill"] as const

describe.skipIf(reason !== undefined)("a supervisor that is killed", () => {
  for (const { apart, keep, words } of kinds) {
    it(`at each step of a machine that is ${words} leaves nothing that is not found`, async () => {
      const { length } = await stepsOf({ keep, apart })
      const failed = await each(some(upTo(length), 5), async (dieAt) => {
        const state = world.state()
        const answer = await victim(launch(state, { keep, apart, dieAt }))
        const done = await clean(state, dieAt % 2 === 0 ? "adopt" : "kill")
        return [...(answer === undefined ? [] : [`it lived: ${answer._tag}`]), ...await faultsOf(done)]
      })
      assert.deepStrictEqual(failed, [], again)
    }, 300_000)
  }

  it("at any moment leaves nothing that is not found", async () => {
    const random = makeRandom(seed)
    const cases = upTo(isWhole ? 40 : 3).map(() => ({
      keep: random() < 0.7,
      apart: random() < 0.3,
      after: Math.floor(random() * 400),
      mode: modes[random() < 0.5 ? 0 : 1]
    }))
    const failed = await each(cases, async ({ after, apart, keep, mode }) => {
      const state = world.state()
      await victim(launch(state, { keep, apart, last: "wait" }), after)
      return faultsOf(await clean(state, mode))
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)

  it("at each step of a recovery leaves all to the next one", async () => {
    const cases: Array<{ readonly mode: Recover["mode"]; readonly apart: boolean; readonly dieAt: number }> = []
    for (const mode of modes) {
      // What a network namespace has more is removed by both.
      const apart = mode === "kill"
      const state = world.state()
      await rescuer.do(launch(state, { apart, last: "leave" }))
      const { steps } = await rescuer.do(recover(state, { mode, use: mode === "adopt" }))
      cases.push(...upTo(steps.length).map((dieAt) => ({ mode, apart, dieAt })))
    }
    const failed = await each(some(cases, 4), async ({ apart, dieAt, mode }) => {
      const state = world.state()
      await rescuer.do(launch(state, { apart, last: "leave" }))
      await victim(recover(state, { mode, use: mode === "adopt", dieAt }))
      return faultsOf(await clean(state, mode))
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)
})

describe.skipIf(reason !== undefined)("processes that are killed", () => {
  const parts = { monitor: "hello from", holder: "NodeHolderProgram" } as const
  const cases: ReadonlyArray<
    { readonly keep: boolean; readonly killed: ReadonlyArray<"us" | "guard" | keyof typeof parts> }
  > = [
    { keep: true, killed: ["us"] },
    { keep: true, killed: ["monitor"] },
    { keep: true, killed: ["holder"] },
    { keep: true, killed: ["monitor", "holder"] },
    { keep: true, killed: ["us", "monitor"] },
    { keep: true, killed: ["us", "holder"] },
    { keep: true, killed: ["us", "monitor", "holder"] },
    { keep: false, killed: ["us"] },
    { keep: false, killed: ["monitor"] },
    { keep: false, killed: ["guard"] },
    { keep: false, killed: ["us", "guard"] },
    { keep: false, killed: ["us", "monitor"] },
    { keep: false, killed: ["us", "guard", "monitor"] }
  ]

  it("the supervisor among them or not, leave nothing, and a machine tells how it ended", async () => {
    const failed = await each(some(cases, 4), async ({ keep, killed }) => {
      const state = world.state()
      const one = await world.supervisor()
      await one.start(launch(state, { keep, last: "wait" }), "Up")
      const monitors = await world.pids(parts.monitor)
      const pids: Array<number> = []
      for (const who of killed) {
        if (who === "us") continue
        const found = who === "guard" ? world.guards(one) : await world.pids(parts[who])
        if (found.length !== 1) throw new Error(`there is not one ${who}: ${found.join()}`)
        pids.push(...found)
      }
      // At once: none has the time to see the other go.
      for (const pid of killed.includes("us") ? [one.pid, ...pids] : pids) process.kill(pid, "SIGKILL")
      const isOver = killed.includes("monitor") || killed.includes("holder")
      if (isOver) await world.pids(parts.monitor, (found) => !found.some((pid) => monitors.includes(pid)))
      const wrong: Array<string> = []
      if (killed.includes("us")) await one.gone()
      else {
        one.say("go")
        const answer = await one.answer()
        if (answer?._tag !== "Done") wrong.push(`its supervisor: ${JSON.stringify(answer)}`)
        // One that is kept, and of whose end nobody knew yet, is left to the next one.
        else wrong.push(...answer.left, ...(keep ? [] : answer.records))
        await one.end()
      }
      const done = await clean(state, "adopt")
      const [fate] = done.fates
      if (killed.includes("us") && keep) {
        if (fate?.action !== (isOver ? "Reclaimed" : "Adopted")) wrong.push(JSON.stringify(done.fates))
        if (killed.length === 2 && killed.includes("monitor") && fate?.end !== "the monitor was killed by SIGKILL") {
          wrong.push(`it ended by ${fate?.end}`)
        }
      }
      return [...wrong, ...await faultsOf(done)]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)
})

describe.skipIf(reason !== undefined)("a host on which things fail", () => {
  const mishaps: ReadonlyArray<Mishap["how"]> = ["fails before", "fails after", "hangs before", "hangs after"]

  it("ip, nft and cp that fail or hang, each time that they are run, leave nothing", async () => {
    const cases: Array<{ readonly keep: boolean; readonly apart: boolean; readonly mishap: Mishap }> = []
    for (const { apart, keep } of kinds) {
      const { commands } = await rescuer.do(launch(world.state(), { keep, apart }))
      cases.push(...upTo(commands).flatMap((at) => mishaps.map((how) => ({ keep, apart, mishap: { at, how } }))))
    }
    const failed = await each(some(cases, 12), async ({ apart, keep, mishap }) => {
      const state = world.state()
      const answer = await rescuer.obey(launch(state, { keep, apart, mishap }))
      const wrong = answer?._tag === "Failed" && !/^(HostError|JournalError|MicroVmError)\./.test(answer.tag)
        ? [`it fails with ${answer.tag}: ${answer.why}`]
        : []
      // What could not be released is told, and is the only thing that may be left.
      if ((answer?._tag === "Done" || answer?._tag === "Failed") && answer.left.length === 0) {
        wrong.push(...await world.leftovers(before))
      }
      return [...wrong, ...await faultsOf(await clean(state, "kill"))]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)

  it("that fail while a supervisor recovers leave it to the next one", async () => {
    const rehearsal = world.state()
    await rescuer.do(launch(rehearsal, { apart: true, last: "leave" }))
    const { commands } = await rescuer.do(recover(rehearsal))
    const cases = upTo(commands).flatMap((at) => mishaps.map((how): Mishap => ({ at, how })))
    const failed = await each(some(cases, 3), async (mishap) => {
      const state = world.state()
      await rescuer.do(launch(state, { apart: true, last: "leave" }))
      await rescuer.obey(recover(state, { mishap }))
      return faultsOf(await clean(state, "kill"))
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)

  it("a disk that is full at any moment leaves nothing", async () => {
    // In pages: all that is written there is less than this.
    const failed = await each(some(upTo(16), 4), async (pages) => {
      const place = world.mount(256)
      const state = join(place, "state")
      const filler = join(place, "filler")
      const wrong: Array<string> = []
      try {
        fill(filler, pages)
        const answer = await rescuer.obey(launch(state, { last: "leave" }))
        if (answer?._tag === "Failed" && !/^(HostError|JournalError|MicroVmError)\./.test(answer.tag)) {
          wrong.push(`it fails with ${answer.tag}: ${answer.why}`)
        }
        if (answer?._tag === "Failed" && answer.tag === "JournalError.DirectoryUnusable") {
          rmSync(filler)
        }
        const done = await clean(state, "kill")
        wrong.push(...done.left, ...done.records)
        rmSync(filler, { force: true })
        wrong.push(
          ...tree(place).filter((path) =>
            !/\/state\/($|(machines|quarantine|tmp|held)\/$|lease(\.json)? \()/.test(path)
          )
        )
        await world.pids("", (found) => found.length === 0)
      } finally {
        world.unmount(place)
        rmdirSync(place)
      }
      return [...wrong, ...await world.leftovers(before)]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)

  it("a state directory that is read-only is said to be, and all is found once it is not", async () => {
    const failed = await each(modes, async (mode) => {
      const place = world.mount(1024)
      const state = join(place, "state")
      const wrong: Array<string> = []
      const one = await world.supervisor()
      try {
        await one.start(launch(state, { keep: mode === "adopt", last: "wait" }), "Up")
        world.protect(place)
        try {
          one.say("go")
          const answer = await one.answer()
          if (answer?._tag !== "Done") wrong.push(`it said ${JSON.stringify(answer)}`)
          await one.end()
          const refused = await rescuer.obey(recover(state))
          if (refused?._tag !== "Failed" || refused.tag !== "JournalError.DirectoryUnusable") {
            wrong.push(`read-only: ${JSON.stringify(refused)}`)
          }
        } finally {
          world.unmount(place)
        }
        const done = await clean(state, mode)
        wrong.push(...done.left, ...done.records)
        if (mode === "adopt" && done.used[0]?.answer !== "answer 7") wrong.push(JSON.stringify(done))
      } finally {
        world.unmount(place)
        rmdirSync(place)
      }
      return [...wrong, ...await world.leftovers(before)]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)

  it("a clock that jumps by years changes nothing", async () => {
    const failed = await each([true, false], async (keep) => {
      const state = world.state()
      const first = await rescuer.do(launch(state, { keep, jumps: true }))
      const second = await rescuer.do(launch(state, { keep: true, last: "leave", jumps: true }))
      const third = await rescuer.do(recover(state, { mode: keep ? "adopt" : "kill", use: keep, jumps: true }))
      return [...first.left, ...first.records, ...second.left, ...await faultsOf(third)]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)
})

describe.skipIf(reason !== undefined)("what is not ours", () => {
  it("another supervisor has no part of a state directory that is taken, and changes nothing there", async () => {
    const failed = await each([true, false], async (keep) => {
      const state = world.state()
      const one = await world.supervisor()
      await one.start(launch(state, { keep, last: "wait" }), "Up")
      const during = world.traces()
      const refused = [await rescuer.obey(launch(state, { ids: ["b"] })), await rescuer.obey(recover(state))]
      const changed = world.traces().filter((line) => !during.includes(line))
      one.say("go")
      await one.answer()
      await one.end()
      const wrong = refused.filter((answer) => answer?._tag !== "Failed" || answer.tag !== "JournalError.LeaseHeld")
      return [
        ...wrong.map((answer) => JSON.stringify(answer)),
        ...changed,
        ...await faultsOf(await clean(state, "kill"))
      ]
    })
    assert.deepStrictEqual(failed, [], again)
  })

  it("what stands beside ours, or has taken its place, is as it was", async () => {
    const failed = await each([true, false], async (keep) => {
      const state = world.state()
      const one = await world.supervisor()
      await one.start(launch(state, { keep, last: "wait" }), "Up")
      const [tap = ""] = /\bmv[0-9a-f]{4}-\d+(?=:)/.exec(world.network().join("\n")) ?? []
      const token = /alias effect-microvm ([0-9a-f]{16})/.exec(world.network().join("\n"))?.[1] ?? ""
      await one.end()

      const stranger = world.stranger()
      // Beside ours: of the same names but for a number, with an alias like ours, and all that a name can look like.
      const beside = tap.replace(/\d+$/, "9999")
      const other = token.replace(/^./, (digit) => digit === "0" ? "1" : "0")
      world.inside("ip", "tuntap", "add", "dev", beside, "mode", "tap")
      world.inside("ip", "link", "set", "dev", beside, "alias", `effect-microvm ${other} a ${beside}`)
      world.inside(
        "nft",
        "add table inet effect-microvm-2; add chain inet effect-microvm-2 mine; add rule inet effect-microvm-2 mine accept"
      )
      // In its place: a TAP of the same name, and a directory where the disk was.
      world.inside("ip", "link", "del", "dev", tap)
      world.inside("ip", "tuntap", "add", "dev", tap, "mode", "tap")
      const disk = join(world.directory, "disks", "a")
      const files = [join(disk, "rootfs.ext4"), join(world.directory, "disks", "b", "rootfs.ext4")]
      rmSync(disk, { recursive: true })
      for (const file of [...files, join(state, "held", `a-${other}-1`, "holder.json")]) {
        mkdirSync(dirname(file), { recursive: true })
        writeFileSync(file, "of somebody else")
      }
      symlinkSync(`${other} b`, join(world.directory, "addresses", "slots", "9999"))
      const removeCgroups = world.strangeCgroups(other, stranger.pid)
      // Its process is gone, and its pid is somebody else's now.
      if (keep) {
        const held = readdirSync(join(state, "held")).find((name) => name.includes(token)) ?? ""
        const file = join(state, "held", held, "holder.json")
        const written = readFileSync(file, "utf8")
        const [, start = "", pid = ""] = /("child":\{[^}]*"pid":)(\d+)/.exec(written) ?? []
        process.kill(Number(pid), "SIGKILL")
        for (const part of ["hello from", "NodeHolderProgram"]) await world.pids(part, (pids) => pids.length === 0)
        rmSync(join(state, "held", held, "exit.json"), { force: true })
        writeFileSync(file, written.replace(`${start}${pid}`, `${start}${stranger.pid}`))
      }
      const strange = (line: string) =>
        [beside, "effect-microvm-2", "mine", "of somebody", other, "9999", "/b/"].some((part) => line.includes(part)) ||
        /\/disks\/a\//.test(line) || line.startsWith(`${tap}:`)
      const was = world.traces().filter(strange)
      const done = await clean(state, "kill")
      const is = world.traces().filter(strange)
      const wrong = [
        ...was.filter((line) => !is.includes(line)).map((line) => `- ${line}`),
        ...is.filter((line) => !was.includes(line)).map((line) => `+ ${line}`),
        ...(was.length > 8 ? [] : [`only ${was.join(", ")} were looked at`]),
        ...(stranger.isAlive() ? [] : ["the stranger is dead"]),
        ...files.filter((file) => readFileSync(file, "utf8") !== "of somebody else"),
        ...done.left,
        ...done.records
      ]
      stranger.end()
      world.inside("ip", "link", "del", "dev", beside)
      world.inside("ip", "link", "del", "dev", tap)
      world.inside("nft", "delete table inet effect-microvm-2")
      for (const file of files) rmSync(dirname(file), { recursive: true })
      rmSync(join(state, "held", `a-${other}-1`), { recursive: true })
      rmSync(join(world.directory, "addresses", "slots", "9999"))
      await removeCgroups()
      return [...wrong, ...await world.leftovers(before)]
    })
    assert.deepStrictEqual(failed, [], again)
  })
})

describe.skipIf(reason !== undefined)("many machines", () => {
  it("that a dead supervisor has left are gone soon", async () => {
    for (const keep of isWhole ? [true, false] : [false]) {
      runs++
      const state = world.state()
      const one = await world.supervisor(0)
      await one.start(launch(state, { keep, ids: upTo(50).map((index) => `m-${index}`), last: "wait" }), "Up")
      await one.end()
      const done = await clean(state, "kill")
      console.log(`chaos: 50 machines, ${keep ? "" : "not "}kept, are cleaned in ${Math.round(done.millis)} ms`)
      assert.deepStrictEqual([...await faultsOf(done), done.fates.length], [50])
      assert.isBelow(done.millis, 20_000)
    }
  }, 300_000)
})

describe.skipIf(reason !== undefined)("a supervisor of QEMU that is killed", () => {
  it("leaves machines that go on when they are kept, and no others", async () => {
    const cases = [
      { keep: true, mode: "adopt" },
      { keep: false, mode: "kill" },
      { keep: true, mode: "kill" },
      { keep: false, mode: "adopt" }
    ] as const
    const failed = await each(isWhole ? cases : cases.slice(0, 2), async ({ keep, mode }) => {
      const state = world.state()
      const one = await world.supervisor(0)
      await one.start(launch(state, { backend: "qemu", keep, last: "wait" }), "Up")
      await one.end()
      const done = await rescuer.do(recover(state, { backend: "qemu", mode, use: mode === "adopt" }))
      const [used] = done.used
      return [
        ...done.left,
        ...done.records,
        ...(done.fates.map(({ action }) => action).join() === (keep && mode === "adopt" ? "Adopted" : "Reclaimed")
          ? []
          : [JSON.stringify(done.fates)]),
        ...(!keep || mode === "kill" ||
            used?.answer === "answer 7" && used.left === 0 && used.console.includes("hello from 7")
          ? []
          : [JSON.stringify(done.used)]),
        ...await world.leftovers(before)
      ]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)
})

describe.skipIf(reason !== undefined)("an agent that is killed in its guest, or a monitor that stands still", () => {
  const cases: ReadonlyArray<{ readonly keep: boolean; readonly harm: Harm; readonly watches: "us" | "next" }> = [
    { keep: false, harm: "agent gone", watches: "us" },
    { keep: true, harm: "agent gone", watches: "next" },
    { keep: true, harm: "agent killed", watches: "us" },
    { keep: false, harm: "monitor stopped", watches: "us" },
    { keep: false, harm: "agent killed", watches: "us" },
    { keep: true, harm: "monitor stopped", watches: "us" },
    { keep: true, harm: "agent gone", watches: "us" },
    { keep: true, harm: "agent killed", watches: "next" }
  ]

  it("is noticed by whoever watches, who ends it unless it comes again, and nothing is left", async () => {
    const failed = await each(some(cases, 2), async ({ harm, keep, watches }) => {
      const state = world.state()
      // On a busy host, a guest takes some seconds to start its agent again.
      const failures = harm === "agent killed" ? 20 : 3
      const order = launch(state, { backend: "qemu", keep, harm, failures })
      let done: Done
      if (watches === "us") done = await rescuer.do({ ...order, last: "watch" })
      else {
        const one = await world.supervisor(0)
        await one.start({ ...order, last: "wait" }, "Up")
        await one.end()
        done = await rescuer.do(recover(state, { backend: "qemu", mode: "adopt", watch: failures }))
      }
      const [used] = done.used
      const hung = { "agent killed": undefined, "agent gone": "agent", "monitor stopped": "monitor" }[harm]
      // A guest in a monitor that stands still does not answer either.
      const isTold = harm === "monitor stopped" ? used?.hung !== undefined : used?.hung === hung
      const isRight = used !== undefined && isTold && used.left === 0 &&
        used.answer === (hung === undefined ? "answer 7" : "") && used.end.includes("SIGKILL")
      return [
        ...done.left,
        ...done.records,
        ...(isRight ? [] : [JSON.stringify(done.used), JSON.stringify(done.fates)]),
        ...await world.leftovers(before)
      ]
    })
    assert.deepStrictEqual(failed, [], again)
  }, 300_000)
})
