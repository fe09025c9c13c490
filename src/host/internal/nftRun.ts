/** Has nft do what the texts say, and tells what came of it. */
import * as Effect from "effect/Effect"
import { HostCommands } from "../HostCommands.ts"
import * as HostError from "../HostError.ts"
import * as List from "./nftList.ts"
import * as Text from "./nftText.ts"

const stderrHas = (error: HostError.HostError, words: string): boolean =>
  error.reason._tag === "CommandFailed" && error.reason.stderr.includes(words)

const explain = (table: string) => (error: HostError.HostError): HostError.HostError => {
  if (stderrHas(error, "Operation not permitted")) {
    return HostError.make(
      new HostError.Unavailable({
        what: "the firewall",
        why: "nft may not be used by us",
        remedy: "run this as root, or with CAP_NET_ADMIN"
      })
    )
  }
  if (stderrHas(error, "Operation not supported")) {
    return HostError.make(
      new HostError.Unavailable({
        what: "the firewall",
        why: `this kernel lacks what a rule takes (${error.message})`,
        remedy: "take a kernel with NF_CONNTRACK_ZONES and NFT_CONNLIMIT, as those of distributions are"
      })
    )
  }
  return stderrHas(error, "File exists")
    ? HostError.make(
      new HostError.Conflict({
        what: "a link",
        with: `what table ${table} has for it: ${error.message}`,
        remedy: "recover the machine that has had it, or give this one another link"
      })
    )
    : error
}

const within = "60 seconds"

export const apply = (table: string, what: string, input: string) =>
  HostCommands.use(({ run }) => run({ program: "nft", args: ["-f", "-"], input, what, within })).pipe(
    Effect.mapError(explain(table)),
    Effect.asVoid
  )

/** What is in the table; nothing when there is none. */
export const query = Effect.fnUntraced(function*(table: string, what: string, ...args: ReadonlyArray<string>) {
  const text = yield* HostCommands.use(({ run }) => run({ program: "nft", args: ["-j", ...args], what, within })).pipe(
    Effect.catchIf((error) => stderrHas(error, "No such file or directory"), () => Effect.succeed(`{"nftables":[]}`)),
    Effect.mapError(explain(table))
  )
  return yield* Effect.mapError(List.decode(text), (cause) =>
    HostError.make(
      new HostError.CommandFailed({
        program: "nft",
        what,
        status: "told what we do not understand",
        stderr: cause.message
      })
    ))
})

export const people = (count: number): string => count === 1 ? "one machine" : `${count} machines`

/** How often it is tried anew when somebody else has changed the table meanwhile. */
const attempts = 3

const busy = ["resource busy", "No such file or directory"]

/** Releasing and reclaiming. Gives the tokens that were there. */
export const remove = Effect.fnUntraced(function*(table: string, wanted: ReadonlyArray<Text.Known>, dryRun: boolean) {
  const what = `looking for rules in table ${table}`
  const look = query(table, what, `list map inet ${table} outside`)
  /** Is it gone, with these machines? Not when somebody has come, or has removed it before us. */
  const tableGoes = (last: ReadonlyArray<Text.Known>) =>
    apply(table, `removing table ${table}`, Text.removeTable(table, last)).pipe(
      Effect.as(true),
      Effect.catchIf((error) => busy.some((words) => stderrHas(error, words)), () => Effect.succeed(false))
    )
  const once = Effect.gen(function*() {
    const listing = yield* look
    const links = new Map(List.machines(listing).map(({ link, token }) => [token, link]))
    const there = wanted.flatMap((machine) => {
      const link = links.get(machine.token)
      return link === undefined ? [] : [{ ...machine, link }]
    })
    if (dryRun || listing.nftables.length === 0) return there
    // Each transaction waits for the kernel: the last machine goes with the table, in one.
    if (there.length === links.size && (yield* tableGoes(there))) return there
    if (there.length === 0) return there
    const sets = List.ownSets(table, yield* query(table, what, "-t", "list sets inet"))
    const found = there.map((machine) => ({ machine, sets: sets.get(machine.token) ?? [] }))
    yield* apply(table, `removing the rules of ${people(found.length)}`, Text.remove(table, found))
    // Of two that go at the same time, the later one finds nobody.
    if (List.machines(yield* look).length === 0) yield* tableGoes([])
    return there
  })
  const there = yield* Effect.retry(once, {
    times: attempts - 1,
    while: ({ reason }) => reason._tag === "CommandFailed"
  })
  return new Set(there.map(({ token }) => token))
})
