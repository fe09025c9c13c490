import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { isWhole, makeRandom, seed, some, upTo } from "./plan.ts"
import type { Answer, Launch, Mishap, Recover } from "./orders.ts"
import { type Done, missing, type Supervisor, World } from "./world.ts"

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
  then: "kill",
  ...more
})

const recover = (state: string, more: Partial<Recover> = {}): Recover => ({
  do: "recover",
  backend: "script",
  state,
  mode: "kill",
  ...more
})

/** What is wrong with how a recovery went, and with what there is after it. */
const faultsOf = async ({ fates, left, records, used }: Done): Promise<ReadonlyArray<string>> => [
  ...left,
  ...records.map((id) => `${id} is still in the journal`),
  ...fates.filter(({ action }) => action !== "Adopted" && action !== "Reclaimed").map((one) => JSON.stringify(one)),
  ...used.filter(({ answer, console, end, id, left }) =>
    answer !== "answer 7" || console !== `hello from ${id}\n` || !end.includes("exited with code 7") || left !== 0
  ).map((one) => JSON.stringify(one)),
  ...await world.leftovers(before)
]

/** Adopts and uses what lives, or ends it; then nothing is to be left. */
const clean = async (state: string, mode: Recover["mode"]): Promise<Done> =>
  rescuer.do(recover(state, { mode, use: mode === "adopt" }))

/** Runs all cases, so that one report has all that went wrong. */
const each = async <A>(cases: ReadonlyArray<A>, run: (one: A) => Promise<ReadonlyArray<string>>): Promise<void> => {
  const wrong: Array<string> = []
  for (const one of cases) {
    runs++
    const faults = await run(one)
    if (faults.length === 0) continue
    wrong.push(`${JSON.stringify(one)}:\n  ${faults.slice(0, 20).join("\n  ")}`)
    before = world.traces()
  }
  assert.deepStrictEqual(wrong, [], `CHAOS_SEED=${seed}`)
}

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
const stepsOf = async (keep: boolean): Promise<ReadonlyArray<string>> =>
  (await rescuer.do(launch(world.state(), { keep }))).steps

beforeAll(async () => {
  if (reason !== undefined) return
  world = await World.make()
  rescuer = await world.supervisor()
  await rescuer.do(launch(world.state()))
  before = world.traces()
})

afterAll(async () => {
  if (reason !== undefined) return
  await world.end()
  console.log(`chaos: ${runs} runs, CHAOS_SEED=${seed}`)
})

describe.skipIf(reason !== undefined)("a supervisor that is killed", () => {
  for (const keep of [true, false]) {
    it(`at each step of a machine that is ${keep ? "" : "not "}kept leaves nothing that is not found`, async () => {
      const { length } = await stepsOf(keep)
      await each(some(upTo(length), 8), async (dieAt) => {
        const state = world.state()
        const answer = await victim(launch(state, { keep, dieAt }))
        const done = await clean(state, dieAt % 2 === 0 ? "adopt" : "kill")
        return [...(answer === undefined ? [] : [`it lived: ${answer._tag}`]), ...await faultsOf(done)]
      })
    }, 300_000)
  }
})
