import { FakeFirecracker } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Row } from "./firecrackerAnswers.ts"
import * as Client from "./firecrackerClient.ts"
import { boot, bytes, commands, loads, scenes, type Step } from "./firecrackerScenes.ts"
import { haltingKernel } from "./haltingKernel.ts"

/** A Firecracker that can be asked. */
export interface Started {
  readonly socketPath: string
  /** Its end: `exit 1`, or the name of a signal. */
  readonly ended: Effect.Effect<string>
}

export interface Target {
  /** Starts one in a directory, with its socket there. */
  readonly start: (directory: string) => Effect.Effect<Started, Error, Scope.Scope>
  /** What it does with arguments, where it ends by itself. */
  readonly command: ((directory: string, args: ReadonlyArray<string>) => string) | undefined
}

/** What was recorded was of this architecture, with a guest that does nothing. */
export const options = { architecture: "x86_64", guest: "none", drivers: false, checkKernel: true } as const

/** A fake in this process. */
export const served = (version: string): Target => ({
  start: (directory) =>
    Effect.map(
      FakeFirecracker.serve({
        ...options,
        version,
        socketPath: join(directory, "api.sock"),
        cwd: directory
      }),
      ({ ended, socketPath }) => ({
        socketPath,
        ended: Effect.map(ended, (how) => "code" in how ? `exit ${how.code}` : how.signal)
      })
    ),
  command: undefined
})

const names: Readonly<Record<string, RegExp>> = {
  "<time>": /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}/g,
  "<place>": /src\/firecracker\/src\/main\.rs:\d+:\d+/g
}
const named = (text: string): string =>
  Object.entries(names).reduce((all, [name, pattern]) => all.replace(pattern, name), text)

/** A program. */
export const spawned = (binary: string): Target => ({
  start: (directory) =>
    Effect.gen(function*() {
      const child = yield* Effect.acquireRelease(
        Effect.sync(() => spawn(binary, ["--api-sock", "api.sock"], { cwd: directory, stdio: "ignore" })),
        (running) =>
          Effect.callback<void>((resume) => {
            if (running.exitCode !== null || running.signalCode !== null) return resume(Effect.void)
            running.once("close", () => resume(Effect.void))
            running.kill("SIGKILL")
          })
      )
      const ended = new Promise<string>((resolve) => {
        child.once("exit", (code, signal) => resolve(signal ?? `exit ${code}`))
      })
      const socketPath = join(directory, "api.sock")
      yield* Effect.scoped(Client.connect(socketPath)).pipe(
        Effect.retry(Schedule.spaced("10 millis")),
        Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.die("there is no socket") })
      )
      return { socketPath, ended: Effect.promise(() => ended) }
    }),
  command: (directory, args) => {
    const { signal, status, stderr, stdout } = spawnSync(binary, args, {
      cwd: directory,
      encoding: "utf8",
      timeout: 10_000
    })
    return named(`${signal ?? `exit ${status}`}\n${stderr}--\n${stdout}`)
  }
})

/** A directory with what the scenes speak of. */
const place: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const directory = Fs.mkdtempSync(join(tmpdir(), "answers-"))
    const at = (name: string) => join(directory, name)
    Fs.writeFileSync(at("k.elf"), haltingKernel())
    Fs.writeFileSync(at("text"), "hello\n")
    Fs.writeFileSync(at("disk.img"), "")
    Fs.truncateSync(at("disk.img"), 2 ** 20)
    Fs.writeFileSync(at("odd.img"), Buffer.alloc(1000))
    Fs.mkdirSync(at("dir"))
    return directory
  }),
  (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true }))
)

const asked = (text: string): string => text.replace(/(.)\1{99,}/gs, (all, one: string) => `${one}*${all.length}`)

/** Plays a scene, each step on a connection of its own, until it ends. */
const play = Effect.fnUntraced(function*({ ended, socketPath }: Started, steps: ReadonlyArray<Step>) {
  const rows: Array<Row> = []
  for (const [method, path, body] of steps) {
    const answer = yield* Client.ask(socketPath, method, path, body).pipe(
      Effect.catch((error) => Effect.succeed(error.message.split(" ").slice(0, 2).join(" ")))
    )
    rows.push([asked([method, path, body ?? ""].join(" ").trim()), asked(answer)])
    // It ends once it has told that a machine cannot be restored; not where the time for that is past.
    if (!answer.startsWith("400 Load snapshot error") || answer.includes("not allowed")) continue
    const end = yield* Effect.timeoutOption(ended, "300 millis")
    if (Option.isNone(end)) continue
    rows.push(["then", end.value])
    break
  }
  return rows
})

type Rows = Effect.Effect<ReadonlyArray<Row>, Error, Scope.Scope>

/** A part of all that is asked. */
export interface Section {
  readonly name: string
  /** A machine has to run for it. */
  readonly runs: boolean
  readonly of: (target: Target, quiet?: number) => Rows
}

const sceneSections = Object.entries(scenes).map(([name, steps]): Section => ({
  name,
  runs: steps.some(([, , body]) => body?.includes("InstanceStart")),
  of: (target) => Effect.flatMap(Effect.flatMap(place, target.start), (started) => play(started, steps))
}))

const saving: ReadonlyArray<Step> = [
  ...boot,
  ["PUT", "/drives/d1", `{"drive_id":"d1","is_root_device":true,"path_on_host":"disk.img"}`],
  ["PUT", "/vsock", `{"guest_cid":3,"uds_path":"v.sock"}`],
  ["PUT", "/balloon", `{"amount_mib":1,"deflate_on_oom":true}`],
  ["PUT", "/actions", `{"action_type":"InstanceStart"}`],
  ["PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`],
  ["PATCH", "/vm", `{"state":"Paused"}`],
  ["PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`]
]

const snapshots: Section = {
  name: "snapshots",
  runs: true,
  of: Effect.fnUntraced(function*(target) {
    const first = yield* place
    const rows = [...yield* Effect.scoped(Effect.flatMap(target.start(first), (started) => play(started, saving)))]
    rows.push(["memory", String(Fs.statSync(join(first, "m")).size)])
    for (const [name, { steps, truncate }] of Object.entries(loads)) {
      const load = Effect.gen(function*() {
        const directory = yield* place
        for (const file of ["s", "m", "disk.img"]) {
          const path = join(directory, file)
          Fs.rmSync(path, { force: true })
          if (truncate?.[0] !== file) Fs.linkSync(join(first, file), path)
          else if (truncate[1] !== undefined) Fs.writeFileSync(path, Buffer.alloc(truncate[1]))
        }
        return yield* play(yield* target.start(directory), steps)
      })
      rows.push(...(yield* Effect.scoped(load)).map(([what, answer]): Row => [`${name}: ${what}`, answer]))
    }
    return rows
  })
}

const http: Section = {
  name: "bytes",
  runs: false,
  // For how many milliseconds nothing has come when all has come.
  of: Effect.fnUntraced(function*(target, quiet = 100) {
    const { socketPath } = yield* target.start(yield* place)
    return yield* Effect.forEach(bytes, (all) =>
      Effect.gen(function*() {
        const connection = yield* Client.connect(socketPath)
        let answer = ""
        const pieces = typeof all === "string" ? [all] : all
        for (const [index, piece] of pieces.entries()) {
          yield* connection.send(Buffer.from(piece, "latin1"))
          // Pieces that are short go one at a time, and none but the last is answered.
          answer += yield* connection.until(piece.length === 1 && index + 1 < pieces.length ? 1 : quiet)
        }
        const text = typeof all === "string" ? all : JSON.stringify(all)
        return [asked(text), asked(Client.shortHeads(answer))] as const
      }).pipe(Effect.scoped), { concurrency: 8 })
  })
}

const arguments_: Section = {
  name: "arguments",
  runs: false,
  of: Effect.fnUntraced(function*({ command }) {
    if (command === undefined) return []
    const directory = yield* place
    return commands.map((args): Row => [args.join(" "), command(directory, args)])
  })
}

export const sections: ReadonlyArray<Section> = [...sceneSections, snapshots, http, arguments_]
