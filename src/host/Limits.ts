/**
 * Limits of a machine: control groups of its own, with memory, processor time, processes and disk traffic as the host lets us.
 *
 * Each machine has a cgroup (v2) wherever one can be made, with limits or without: it is what dies with the machine. Controllers
 * that the host keeps in hierarchies of version 1 are used there, in further cgroups of the same name; the machine has to be
 * in all of them. What cannot be limited here is told, one by one, with the reason; what is `required` and cannot be is an error
 * before anything is made.
 *
 * The cgroups are made below our own cgroup, in `effect-microvm-machines`, which goes with the last of them; below the root if
 * that is ours. In version 2, a cgroup other than the root cannot have both processes and controllers for those below it
 * (cgroups(7), "no internal processes"). So a supervisor that runs as a systemd unit needs `Delegate=yes` and
 * `DelegateSubgroup=supervisor`: it is found in the sub-group then, and the machines are made beside that.
 *
 * Nothing is held: a machine may outlive us. `kind` removes what was made.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Schema from "effect/Schema"
import type { Owner, ResourceKind } from "../journal/ResourceKind.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import * as HostError from "./HostError.ts"
import * as Layout from "./internal/cgroupLayout.ts"
import { directoriesOf, reclaim } from "./internal/cgroupReclaim.ts"
import * as Values from "./internal/limitValues.ts"

/**
 * Of one disk, in bytes and in operations each second.
 *
 * @category options
 * @since 0.1.0
 */
export interface IoLimit {
  /** The numbers of a whole disk: `"254:0"` (`lsblk`). */
  readonly device: string
  readonly readBytes?: number | undefined
  readonly writeBytes?: number | undefined
  readonly readOperations?: number | undefined
  readonly writeOperations?: number | undefined
}

/**
 * @category models
 * @since 0.1.0
 */
export type Name = "memory" | "swap" | "cpus" | "pids" | "io"

/**
 * What a machine may use. What is not given is not limited.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Of the monitor and the memory of its guest together: what is beyond is reclaimed, or it is killed. */
  readonly memoryMib?: number | undefined
  /** How much of it may be in swap besides. Default 0, with `memoryMib`. */
  readonly swapMib?: number | undefined
  /** How many processors' time: 0.5 is half of one. */
  readonly cpus?: number | undefined
  /** Processes and threads. */
  readonly pids?: number | undefined
  /** In version 1, only what is read, and what is written past the page cache. */
  readonly io?: ReadonlyArray<IoLimit> | undefined
  /** Which of these it must not go without. Default none. */
  readonly required?: ReadonlyArray<Name> | undefined
  /** A cgroup (v2) that was delegated to us, as a path of the file system. Default: as above. */
  readonly root?: string | undefined
}

/**
 * What holds a limit: the directory of a cgroup; or why nothing does.
 *
 * @category models
 * @since 0.1.0
 */
export type Applied =
  & { readonly limit: Name; readonly value: string }
  & ({ readonly by: string } | { readonly unavailable: string; readonly remedy: string })

const AbsolutePath = Schema.String.check(Schema.isPattern(/^\/(?!.*\/\.\.?(\/|$)).+/))

/**
 * Data of a claim: the directories of a machine's cgroups. The last part of each is its token.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Data = Schema.Struct({
  /** Of version 2. */
  path: Schema.optionalKey(AbsolutePath),
  /** Of version 1. */
  v1: Schema.Array(AbsolutePath)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Data = typeof Data.Type

/**
 * What is going to be made. Nothing is yet: claim `data` first.
 *
 * @category models
 * @since 0.1.0
 */
export interface Plan {
  readonly data: Data
  readonly applied: ReadonlyArray<Applied>
  readonly required: ReadonlyArray<Name>
  /** Controllers that are switched on below a cgroup (v2), if they are not yet. */
  readonly enable: ReadonlyArray<{ readonly below: string; readonly controllers: ReadonlyArray<string> }>
  /** What is written, in this order. */
  readonly settings: ReadonlyArray<{ readonly limit: Name; readonly file: string; readonly text: string }>
}

/**
 * What happened to a machine for its limits, and these; `undefined` where that is not counted, or there is none.
 *
 * @category models
 * @since 0.1.0
 */
export interface Events {
  /** Processes of it that were killed because it was out of memory. */
  readonly oomKills: number | undefined
  /** What it may use of it, in MiB. */
  readonly memoryMib: number | undefined
  /** Processes and threads of it that could not be started because it had too many. */
  readonly pidsRefused: number | undefined
  /** How many it may have. */
  readonly pids: number | undefined
}

/**
 * The cgroups of a machine.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limited {
  readonly data: Data
  readonly applied: ReadonlyArray<Applied>
  /** All directories that the monitor has to enter, before it starts anything and while it has the right to. */
  readonly enter: ReadonlyArray<string>
}

/** Beside the guest's memory: the monitor itself, its page tables and the kernel's. */
const defaultOverhead = 192

/** A monitor has a thread for each processor, and dozens for disks. */
const defaultPids = 512

/**
 * Limits for a machine by what its guest was given: its memory and 192 MiB for the monitor, its processors, 512 threads.
 *
 * ```ts import.meta.vitest
 * import { Limits } from "effect-microvm-runtime/host"
 * Limits.forGuest({ memoryMib: 512, vcpus: 2 }) // => { memoryMib: 704, cpus: 2, pids: 512 }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const forGuest = (
  { memoryMib, vcpus }: { readonly memoryMib: number; readonly vcpus: number },
  { overheadMib = defaultOverhead }: { readonly overheadMib?: number | undefined } = {}
): Options => ({ memoryMib: memoryMib + overheadMib, cpus: vcpus, pids: defaultPids })

/**
 * Looks where the cgroups of a machine can be and what limits they can have, and makes nothing.
 *
 * Fails with `InvalidArgument` for limits that cannot be, all at once, and with `Unavailable` when one that is required cannot be
 * had here.
 *
 * ```ts import.meta.vitest
 * import { Limits } from "effect-microvm-runtime/host"
 * import * as Effect from "effect/Effect"
 * import * as FileSystem from "effect/FileSystem"
 *
 * // A host without cgroups; NodeFileSystem.layer has that of this one.
 * const none = FileSystem.layerNoop({})
 * const plan = (options: Limits.Options) =>
 *   Limits.plan({ token: "00112233445566ff" }, options).pipe(
 *     Effect.map(({ applied }) => applied.map((one) => "unavailable" in one ? one.unavailable : one.by)),
 *     Effect.catchTag("HostError", ({ message }) => Effect.succeed(message)),
 *     Effect.provide(none)
 *   )
 * await Effect.runPromise(plan({ pids: 100 })) // => ["no cgroup v2 file system is mounted"]
 * await Effect.runPromise(plan({ cpus: 0 })) // => "cpus: 0 cannot be: give a number from 0.01 to 10000"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const plan = Effect.fn("Limits.plan")(function*(
  owner: Pick<Owner, "token">,
  options: Options
): Effect.fn.Return<Plan, HostError.HostError, FileSystem.FileSystem> {
  const { required = [], root } = options
  const faults = Values.faultsOf(options, required)
  if (faults.length > 0) return yield* HostError.fail(new HostError.InvalidArgument({ faults }))
  const { places, unified } = yield* Layout.detect(root)
  const below = (base: string): string => `${base}/${Layout.parentName}/${owner.token}`
  const path = "base" in unified ? below(unified.base) : undefined
  const wanted = Values.wantedOf(options).map((one) => {
    const place = places[one.controller]
    const directory = place.by === "v1" ? below(place.base) : place.by === "v2" ? path : undefined
    return { what: one, place, directory }
  })
  const applied = wanted.map(({ directory, place, what: { limit, value } }): Applied =>
    directory === undefined
      ? { limit, value, ...(place.by === "none" ? { unavailable: place.why, remedy: place.remedy } : noCgroup) }
      : { limit, value, by: directory }
  )
  yield* mustHave(required, applied)
  const own = wanted.flatMap(({ place, what }) => place.by === "v2" ? [what.controller] : [])
  return {
    data: {
      ...(path === undefined ? {} : { path }),
      v1: [...new Set(wanted.flatMap(({ directory, place }) => place.by === "v1" && directory ? [directory] : []))]
    },
    applied,
    required,
    enable: "base" in unified && own.length > 0
      ? [
        { below: unified.base, controllers: unified.enable.filter((name) => own.includes(name)) },
        { below: `${unified.base}/${Layout.parentName}`, controllers: [...new Set(own)] }
      ].filter(({ controllers }) => controllers.length > 0)
      : [],
    settings: wanted.flatMap(({ directory, place, what: { limit, v1, v2 } }) =>
      directory === undefined
        ? []
        : (place.by === "v1" ? v1 : v2).map(([file, text]) => ({ limit, file: `${directory}/${file}`, text }))
    )
  }
})

const noCgroup = { unavailable: "no cgroup can be made", remedy: "have one delegated to this user" } as const

const mustHave = (required: ReadonlyArray<Name>, applied: ReadonlyArray<Applied>) => {
  const missing = applied.flatMap((one) => "unavailable" in one && required.includes(one.limit) ? [one] : [])
  const [first] = missing
  return first === undefined ? Effect.void : HostError.fail(
    new HostError.Unavailable({
      what: missing.map(({ limit, value }) => `the limit ${limit} of ${value}`).join(" and "),
      why: [...new Set(missing.map(({ unavailable }) => unavailable))].join("; "),
      remedy: first.remedy
    })
  )
}

const writeFile = (file: string, text: string) =>
  // Never creates one: a file that is not there is a limit that is not known here.
  FileSystem.FileSystem.use((fs) => fs.writeFileString(file, text, { flag: "r+" }))

/** Somebody else's last machine may take the directory above away again, just before ours is in it. */
const tries = 5

const makeDirectories = Effect.fnUntraced(function*({ data, enable }: Plan) {
  const fs = yield* FileSystem.FileSystem
  const parentOf = (path: string): string => path.slice(0, path.lastIndexOf("/"))
  const makeAll = Effect.gen(function*() {
    for (const path of directoriesOf(data)) {
      yield* fs.makeDirectory(parentOf(path), { recursive: true })
      for (const { below, controllers } of path === data.path ? enable : []) {
        yield* writeFile(`${below}/cgroup.subtree_control`, controllers.map((name) => `+${name}`).join(" "))
      }
      // Its own, from the attempt before, is no obstacle: its name has the token.
      yield* fs.makeDirectory(path, { recursive: true })
    }
  })
  yield* Effect.retry(makeAll, { times: tries, while: ({ reason }) => reason._tag === "NotFound" })
})

/**
 * Makes the cgroups of a plan, with their limits. A limit that turns out not to be possible is told in `applied`. When it fails,
 * nothing is left: with `Unavailable` for a limit that is required, else with `IoFailed`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fn("Limits.make")(function*(
  planned: Plan
): Effect.fn.Return<Limited, HostError.HostError, FileSystem.FileSystem | ProcessHost> {
  const { data, required, settings } = planned
  const directories = directoriesOf(data)
  return yield* Effect.gen(function*() {
    yield* makeDirectories(planned).pipe(
      Effect.mapError((cause) =>
        HostError.make(
          new HostError.IoFailed({ operation: "making the cgroups of a machine", path: directories.join(", "), cause })
        )
      )
    )
    const refused = new Map<Name, string>()
    for (const { file, limit, text } of settings) {
      yield* Effect.catch(writeFile(file, text), (error) =>
        Effect.sync(() => {
          refused.set(limit, `${file} does not take ${text}: ${error.message}`)
        }))
    }
    const applied = planned.applied.map(({ limit, value, ...how }): Applied => {
      const unavailable = refused.get(limit)
      return unavailable === undefined || "unavailable" in how
        ? { limit, value, ...how }
        : { limit, value, unavailable, remedy: "see what the kernel of this host was built and started with" }
    })
    yield* mustHave(required, applied)
    return { data, applied, enter: directories }
  }).pipe(Effect.onError(() => Effect.forEach(directories, (path) => remove(path))))
})

const remove = (path: string) => ProcessHost.use((host) => host.cgroup(path).remove)

const numberIn = (text: string, name: string): number | undefined => {
  const found = text.split("\n").find((line) => line.startsWith(`${name} `))
  return found === undefined ? undefined : Number(found.slice(name.length + 1))
}

/** Version 1 says no word for no limit, but a number that nobody would give. */
const limitIn = (text: string): number | undefined => {
  const limit = Number(text)
  return limit < 2 ** 62 ? limit : undefined
}

/**
 * One phrase for people.
 *
 * ```ts import.meta.vitest
 * import { Limits } from "effect-microvm-runtime/host"
 * Limits.format([
 *   { limit: "memory", value: "448 MiB", by: "/sys/fs/cgroup/m" },
 *   { limit: "cpus", value: "2", unavailable: "no cgroup can be made", remedy: "have one delegated to this user" }
 * ]) // => "memory 448 MiB; not here: cpus 2 (no cgroup can be made)"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (applied: ReadonlyArray<Applied>): string => {
  const had = applied.flatMap((one) => "by" in one ? [`${one.limit} ${one.value}`] : [])
  const missing = applied.flatMap((one) =>
    "unavailable" in one ? [`${one.limit} ${one.value} (${one.unavailable})`] : []
  )
  return [had.join(", "), missing.length === 0 ? "" : `not here: ${missing.join(", ")}`]
    .filter((part) => part !== "").join("; ")
}

/**
 * Counts what has happened so far. Ask before the cgroups are removed.
 *
 * @category accessors
 * @since 0.1.0
 */
export const events = Effect.fn("Limits.events")(
  function*(data: Data): Effect.fn.Return<Events, never, FileSystem.FileSystem> {
    const fs = yield* FileSystem.FileSystem
    const look = Effect.fnUntraced(function*(file: string, read: (text: string) => number | undefined) {
      for (const path of directoriesOf(data)) {
        const text = yield* Effect.orElseSucceed(fs.readFileString(`${path}/${file}`), () => undefined)
        const found = text === undefined ? undefined : read(text)
        if (found !== undefined) return found
      }
      return undefined
    })
    const bytes = (yield* look("memory.max", limitIn)) ?? (yield* look("memory.limit_in_bytes", limitIn))
    const killed = (text: string) => numberIn(text, "oom_kill")
    return {
      oomKills: (yield* look("memory.events", killed)) ?? (yield* look("memory.oom_control", killed)),
      memoryMib: bytes === undefined ? undefined : Math.floor(bytes / 2 ** 20),
      pidsRefused: yield* look("pids.events", (text) => numberIn(text, "max")),
      pids: yield* look("pids.max", limitIn)
    }
  }
)

/**
 * What to put before a command, so that it runs in these cgroups: a shell that enters them and becomes it. Its exit code is 125
 * when it cannot. No process of the command is ever outside of them.
 *
 * ```ts import.meta.vitest
 * import { Limits } from "effect-microvm-runtime/host"
 * Limits.prefix(["/sys/fs/cgroup/memory/m", "/sys/fs/cgroup/unified/m"]).slice(3) // => ["sh", "2", "/sys/fs/cgroup/memory/m", "/sys/fs/cgroup/unified/m"]
 * Limits.prefix([]) // => []
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const prefix = (enter: ReadonlyArray<string>): ReadonlyArray<string> =>
  enter.length === 0 ? [] : ["/bin/sh", "-c", enterAll, "sh", String(enter.length), ...enter]

const enterAll = [
  "left=$1",
  "shift",
  `while [ "$left" -gt 0 ]; do`,
  `  { echo 0 > "$1/cgroup.procs"; } 2>/dev/null || { echo "cannot enter cgroup $1" >&2; exit 125; }`,
  "  shift",
  "  left=$((left - 1))",
  "done",
  "unset left",
  `exec "$@"`
].join("\n")

/**
 * Claims of the kind `cgroup`: kills all that is in a machine's cgroups, and removes them. One that is not named after the
 * machine is not touched.
 *
 * @category kinds
 * @since 0.1.0
 */
export const kind: ResourceKind<Data, FileSystem.FileSystem | ProcessHost> = {
  kind: "cgroup",
  data: Data,
  describe: (data) => `cgroup ${directoriesOf(data).join(", ")}`,
  reclaim: Effect.fn("Limits.reclaim")((claims, { dryRun }) =>
    Effect.forEach(claims, (one) => reclaim(one, dryRun), { concurrency: "unbounded" })
  )
}
