import * as Effect from "effect/Effect"
import * as ChildProcess from "effect/process/ChildProcess"
import type * as Redacted from "effect/Redacted"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import * as OutputTail from "../../process/OutputTail.ts"
import { ProcessSpawner } from "../../process/ProcessSpawner.ts"
import { ProvisionerError } from "../Provisioner.ts"
import { onState, readText } from "./NodeLocalState.ts"

/** The user that the server runs as, when we are root: it refuses to run as root. */
export interface ServerUser {
  readonly uid: number
  readonly gid: number
}

/** A PostgreSQL that can run here. */
export interface Programs {
  /** The directory that `postgres` and `initdb` are in. */
  readonly bin: string
  /** Such as `"15.18"`. */
  readonly version: string
  readonly user: ServerUser | undefined
}

/** All that the server and its tools get of the environment: nothing of the service's own. English, as we read messages. */
const environment = { PATH: "/usr/local/bin:/usr/bin:/bin", LC_ALL: "C", PGCLIENTENCODING: "UTF8" }

/** A command of the server's user. */
export const asUser = (
  user: ServerUser | undefined,
  program: string,
  args: ReadonlyArray<string>,
  env: Readonly<Record<string, string | Redacted.Redacted>> = {}
): ChildProcess.Command => {
  const options = { cwd: "/", env: { ...environment, ...env }, stdin: "ignore" } as const
  return user === undefined
    ? ChildProcess.make(program, args, options)
    : ChildProcess.make("setpriv", [
      `--reuid=${user.uid}`,
      `--regid=${user.gid}`,
      "--clear-groups",
      "--",
      program,
      ...args
    ], options)
}

/** Runs a command to its end, and gives what it printed. */
export const run = Effect.fnUntraced(
  function*(what: string, command: ChildProcess.Command) {
    const spawner = yield* ProcessSpawner
    const process = yield* spawner.spawn(command)
    const fail = (why: string, cause?: unknown) => new ProvisionerError({ message: `${what}: ${why}`, cause })
    const status = yield* process.exit.pipe(
      Effect.timeoutOrElse({ duration: "2 minutes", orElse: () => Effect.fail(fail("took longer than 2 minutes")) })
    )
    const tail = yield* process.tail
    if (!ExitStatus.isSuccess(status)) {
      return yield* fail([ExitStatus.format(status), OutputTail.format(tail)].filter((text) => text !== "").join("\n"))
    }
    return tail.stdout.text
  },
  Effect.scoped,
  Effect.catchTag("ProcessError", (cause) => Effect.fail(new ProvisionerError({ message: cause.message, cause })))
)

/** Where packages put it when it is not on PATH: Debian, Fedora, source. */
const places = ["/usr/lib/postgresql", "/usr"]

const installations = (path: string): ReadonlyArray<string> => {
  const packaged = places.flatMap((place) => {
    try {
      return NodeFs.readdirSync(place)
        .filter((name) => place.endsWith("postgresql") || name.startsWith("pgsql-"))
        // The newest first.
        .toSorted((a, b) => Number(b.replace(/^\D+/, "")) - Number(a.replace(/^\D+/, "")))
        .map((name) => NodePath.join(place, name, "bin"))
    } catch {
      return []
    }
  })
  const known = new Set<string>()
  return [...path.split(":"), ...packaged, "/usr/local/pgsql/bin"].filter((directory) => {
    try {
      for (const program of ["postgres", "initdb", "createdb"]) {
        NodeFs.accessSync(NodePath.join(directory, program), NodeFs.constants.X_OK)
      }
      const real = NodeFs.realpathSync(directory)
      return NodePath.isAbsolute(directory) && !known.has(real) && known.add(real) !== undefined
    } catch {
      return false
    }
  })
}

/** `postgres` where there is one, else `nobody`, whose number is the same everywhere. */
const unprivileged = (): ServerUser => {
  const line = /^postgres:[^:]*:(\d+):(\d+):/m.exec(readText("/etc/passwd") ?? "")
  return line === null ? { uid: 65_534, gid: 65_534 } : { uid: Number(line[1]), gid: Number(line[2]) }
}

/** Root gives the server to another user; data that are there already, to the one that they belong to. */
const chooseUser = (data: string): ServerUser | undefined => {
  if (process.getuid?.() !== 0) return undefined
  const stat = NodeFs.statSync(data, { throwIfNoEntry: false })
  return stat === undefined || stat.uid === 0 ? unprivileged() : { uid: stat.uid, gid: stat.gid }
}

const nearest = (path: string): string => NodeFs.existsSync(path) ? path : nearest(NodePath.dirname(path))

/** Told apart from what `postgres` itself may exit with. */
const cannotEnter = 117

/** Enters a directory as the server would, and asks the server for its version. */
const tryOut = (bin: string, directory: string, user: ServerUser | undefined) =>
  run(
    NodePath.join(bin, "postgres"),
    asUser(user, "/bin/sh", [
      "-c",
      `cd -- "$1" || exit ${cannotEnter}; exec "$2" --version`,
      "sh",
      directory,
      NodePath.join(bin, "postgres")
    ])
  )

/**
 * A PostgreSQL that can run with its data in `data`: that of the version which made the data, if there are any, else the
 * first of PATH, else the newest. Changes nothing.
 */
export const find = Effect.fnUntraced(function*(data: string) {
  const { dataVersion, directory, found, user } = yield* onState(data, () => ({
    dataVersion: readText(NodePath.join(data, "PG_VERSION"))?.trim(),
    user: chooseUser(data),
    found: installations(process.env["PATH"] ?? ""),
    directory: nearest(NodePath.dirname(data))
  }))
  const faults: Array<string> = []
  for (const bin of found) {
    const output = yield* Effect.result(tryOut(bin, directory, user))
    if (output._tag === "Failure") {
      faults.push(
        output.failure.message.includes(`code ${cannotEnter}`)
          ? `the server, as root may not run it, would be user ${user?.uid}, who cannot enter ${directory}: choose a state ` +
            "directory that others may pass through, such as one below /var/lib"
          : output.failure.message
      )
      continue
    }
    const version = /(\d+(?:\.\d+)*)/.exec(output.success)?.[1] ?? "unknown"
    if (dataVersion === undefined || version.split(".")[0] === dataVersion.split(".")[0]) {
      return { bin, version, user } satisfies Programs
    }
    faults.push(
      `${bin} has version ${version}, but ${data} was made by version ${dataVersion}: install that one, or dump ` +
        "the data with it, remove the directory, and load them again"
    )
  }
  return yield* new ProvisionerError({
    message: found.length === 0
      ? "no PostgreSQL server on this machine (postgres, initdb and createdb, on PATH or in /usr/lib/postgresql): install " +
        "it, for example the package postgresql, or use the embedded one: npm install @electric-sql/pglite"
      : [...new Set(faults)].join("; ")
  })
})
