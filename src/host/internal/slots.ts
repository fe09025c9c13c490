/**
 * Numbers that are given out to machines, by many processes at once. Each is a symbolic link in a directory, which is made in one
 * step and is there once only (symlink(2)), and its text is its owner's token and id: whoever is killed at whatever moment, what is
 * taken names its owner.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { MachineId } from "../../journal/MachineRecord.ts"
import { type Owner as ClaimOwner, Verdict } from "../../journal/ResourceKind.ts"
import * as HostError from "../HostError.ts"
import { failed } from "./diskFailure.ts"

/** Whom a number is for. */
export interface Owner {
  readonly id: string
  readonly token: string
}

const absent = (error: PlatformError.PlatformError): boolean => error.reason._tag === "NotFound"

export const slotsOf = (directory: string): string => `${directory}/slots`

const readOwner = (text: string): Option.Option<Owner> => {
  const [, token, id] = /^([0-9a-f]{16}) ([A-Za-z0-9-]{1,64})$/.exec(text) ?? []
  return token === undefined || id === undefined ? Option.none() : Option.some({ id, token })
}

/** Makes a symbolic link; `false` when there is something of that name already. */
export const linkOnce = (text: string, path: string) =>
  FileSystem.FileSystem.use((fs) => fs.symlink(text, path)).pipe(
    Effect.as(true),
    Effect.catchIf((error) => error.reason._tag === "AlreadyExists", () => Effect.succeed(false))
  )

/** The text of a symbolic link; none when there is none, or what is there is no symbolic link. */
export const linkText = (path: string) => FileSystem.FileSystem.use((fs) => fs.readLink(path)).pipe(Effect.option)

/** All that are taken by somebody who can be read. */
export const scan = Effect.fnUntraced(function*(directory: string) {
  const fs = yield* FileSystem.FileSystem
  const slots = slotsOf(directory)
  const names = yield* Effect.catchIf(fs.readDirectory(slots), absent, () => Effect.succeed([]))
  const taken = yield* Effect.forEach(
    names,
    (name) => Effect.map(linkText(`${slots}/${name}`), (text) => ({ name, owner: Option.flatMap(text, readOwner) })),
    {
      concurrency: 32
    }
  )
  return taken.flatMap(({ name, owner }) => Option.isSome(owner) ? [{ name, owner: owner.value }] : [])
})

const checkOwner = ({ id, token }: Owner) => {
  const faults: Array<HostError.Fault> = []
  if (!Schema.is(MachineId)(id)) {
    faults.push({ field: "id", value: id, remedy: "give 1 to 64 letters, digits and \"-\", the first no \"-\"" })
  }
  if (!/^[0-9a-f]{16}$/.test(token)) {
    faults.push({ field: "token", value: token, remedy: "give 16 hexadecimal digits" })
  }
  return faults.length === 0 ? Effect.void : HostError.fail(new HostError.InvalidArgument({ faults }))
}

/** A few are enough: they are tried one after the other, and others may try the same ones. */
const ATTEMPTS = 64

/** The free ones from `next` on, and round again. */
export const order = (
  { count, first, next, taken }: {
    readonly first: number
    readonly count: number
    readonly next: number
    readonly taken: ReadonlySet<string>
  }
): ReadonlyArray<number> => {
  const start = Number.isSafeInteger(next) && next >= first && next < first + count ? next - first : 0
  const free: Array<number> = []
  for (let step = 0; step < count && free.length < ATTEMPTS; step++) {
    const number = first + (start + step) % count
    if (!taken.has(String(number))) free.push(number)
  }
  return free
}

/**
 * Takes the next of `count` numbers from `first` on. They are given out in turn and not the lowest first: one that was freed comes
 * again after all the others. `start` is where to begin when that is not known: a hint, which may be lost. Fails with what
 * `exhausted` says when there is none left.
 */
export const take = Effect.fnUntraced(function*(
  { count, directory, exhausted, first, owner, start }: {
    readonly directory: string
    readonly first: number
    readonly count: number
    readonly owner: Owner
    readonly start: Effect.Effect<number>
    readonly exhausted: HostError.Exhausted
  }
) {
  yield* checkOwner(owner)
  const fs = yield* FileSystem.FileSystem
  const slots = slotsOf(directory)
  const hint = `${directory}/next`
  while (true) {
    const taken = yield* Effect.mapError(fs.readDirectory(slots), failed("read directory", slots))
    const known = yield* linkText(hint)
    const next = Option.isSome(known) ? Number(known.value) : yield* start
    const candidates = order({ first, count, next, taken: new Set(taken) })
    if (candidates.length === 0) return yield* HostError.fail(exhausted)
    for (const number of candidates) {
      const path = `${slots}/${number}`
      if (!(yield* Effect.mapError(linkOnce(`${owner.token} ${owner.id}`, path), failed("symlink", path)))) continue
      const after = first + (number + 1 - first) % count
      yield* Effect.ignore(Effect.andThen(fs.remove(hint, { force: true }), linkOnce(String(after), hint)))
      return number
    }
  }
})

/** Gives back all that the owners' tokens have in the directories of the claims. */
export const reclaim = Effect.fnUntraced(function*(
  claims: ReadonlyArray<{ readonly owner: ClaimOwner; readonly data: { readonly directory: string } }>,
  { dryRun }: { readonly dryRun: boolean }
) {
  const fs = yield* FileSystem.FileSystem
  const directories = [...new Set(claims.map(({ data }) => data.directory))]
  const scanned = new Map(
    yield* Effect.forEach(
      directories,
      (directory) => Effect.map(Effect.result(scan(directory)), (result) => [directory, result] as const)
    )
  )
  return yield* Effect.forEach(claims, ({ data: { directory }, owner }) =>
    Effect.gen(function*() {
      const found = scanned.get(directory) ?? Result.succeed([])
      if (Result.isFailure(found)) {
        return Verdict.Stuck({ why: found.failure.message, remedy: `see to it that ${directory} can be read` })
      }
      const ours = found.success.filter((one) => one.owner.token === owner.token)
      if (ours.length === 0) return Verdict.Absent()
      if (dryRun) return Verdict.Released()
      const paths = ours.map(({ name }) => `${slotsOf(directory)}/${name}`)
      return yield* Effect.forEach(paths, (path) => fs.remove(path, { force: true })).pipe(
        Effect.as(Verdict.Released()),
        Effect.catch((error) => Effect.succeed(Verdict.Stuck({ why: error.message, remedy: `rm ${paths.join(" ")}` })))
      )
    }), { concurrency: 8 })
})
