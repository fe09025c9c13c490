/**
 * A Firecracker without a virtual machine monitor: a program, or a server in this process, that listens on a real unix socket and
 * answers as the releases 1.7 to 1.17 do, byte for byte where a client can tell. It opens the files that it is told of, binds vsock
 * sockets, writes and reads snapshots, prints a console, logs and metrics, and can be made to misbehave.
 *
 * What it knows was taken from Firecracker's sources and documentation, and not from this package's own client: where
 * the two disagree, one of them is wrong. Nothing runs in its machines but what `guest` names. A kernel is opened and never
 * looked at, and a TAP is not opened at all.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import type { Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type * as FakeGuestAgent from "./FakeGuestAgent.ts"
import { agent } from "./internal/fakeFirecrackerAgent.ts"
import { echo, type MakeGuest, none } from "./internal/fakeFirecrackerGuest.ts"
import * as Instance from "./internal/fakeFirecrackerInstance.ts"
import * as Settings from "./internal/fakeFirecrackerSettings.ts"
import { make as makeWorld } from "./internal/fakeFirecrackerWorld.ts"

/**
 * Which requests a fault is meant for: by what they say, or by which one it is, the first being 1. All that is said must fit.
 *
 * @category models
 * @since 0.1.0
 */
export interface On {
  readonly method?: "GET" | "PUT" | "PATCH" | "DELETE" | undefined
  readonly path?: string | undefined
  readonly call?: number | undefined
}

/**
 * What goes wrong:
 *
 * - `Slow`: the request is looked at after so many milliseconds, and no other meanwhile.
 * - `Hang`: it is never answered, and neither is any other.
 * - `Split`: the answer comes in pieces of so many bytes (default 1).
 * - `Truncate`: only so many bytes of the answer come (default half), then the connection ends.
 * - `Raw`: these very bytes (of Latin-1) are the answer.
 * - `Die`: the process ends with a code (default 1) or by a signal; before it does anything, with half of the answer sent, or
 *   (default) once it has answered.
 * - `NeverBind`, `BindLate`: there is no socket, or only after so many milliseconds.
 * - `IgnoreTerm`: SIGTERM is ignored.
 *
 * @category models
 * @since 0.1.0
 */
export type Fault =
  | On & { readonly _tag: "Slow"; readonly millis: number }
  | On & { readonly _tag: "Hang" }
  | On & { readonly _tag: "Split"; readonly bytes?: number | undefined }
  | On & { readonly _tag: "Truncate"; readonly bytes?: number | undefined }
  | On & { readonly _tag: "Raw"; readonly answer: string }
  | On & {
    readonly _tag: "Die"
    readonly moment?: "Before" | "Half" | "After" | undefined
    readonly code?: number | undefined
    readonly signal?: string | undefined
  }
  | { readonly _tag: "NeverBind" | "IgnoreTerm" }
  | { readonly _tag: "BindLate"; readonly millis: number }

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** As `--version` tells it: `1.7.0` to `1.17.0`, also `1.17.0-dev`. Default `1.16.1`. */
  readonly version?: string | undefined
  /** Default: that of this machine. */
  readonly architecture?: "x86_64" | "aarch64" | undefined
  /** The format of its snapshots. Default: that of its version. */
  readonly snapshotVersion?: string | undefined
  /**
   * Who is in the machine: nobody; someone who says back what is said to any port; or (default) the guest of
   * `FakeGuestAgent`, whose channels are on the ports that `microvm.vsock=FIRSTPORT,NAME,NAME…` among the boot arguments gives
   * them.
   */
  readonly guest?: "none" | "echo" | "agent" | undefined
  /** The guest has drivers for its devices. Default true; without them nothing but the API answers. */
  readonly drivers?: boolean | undefined
  /** How long after the start somebody listens in the guest. Default 20. */
  readonly bootMillis?: number | undefined
  /** What is no kernel fails the start, as it does really. Default false: any file will do. */
  readonly checkKernel?: boolean | undefined
  /** The guest does nothing on Ctrl-Alt-Del. Default false: it reboots, which ends the process. */
  readonly ignoreCtrlAltDel?: boolean | undefined
  /** Lines that the guest prints once it is up, if `console=ttyS0` is among its boot arguments. */
  readonly console?: ReadonlyArray<string> | undefined
  readonly faults?: ReadonlyArray<Fault> | undefined
}

/**
 * A request as it came.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  /** Which connection it came on, the first being 1. */
  readonly connection: number
  readonly method: string
  readonly path: string
  readonly body: string | undefined
}

/**
 * What has been seen at the socket.
 *
 * @category models
 * @since 0.1.0
 */
export interface Seen {
  /** All requests, in order. */
  readonly requests: Effect.Effect<ReadonlyArray<Request>>
  /** The most connections that were open at once, and how many were turned away. */
  readonly connections: Effect.Effect<{ readonly most: number; readonly refused: number }>
}

/**
 * A fake that can be started as often as one likes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Installed extends Seen {
  /** The command. */
  readonly binary: string
  /** The directory that it lies in, for whatever else belongs to it. Removed with the scope. */
  readonly directory: string
  readonly version: string
  /** Options for those that are started from now on, over those there are. */
  readonly update: (options: Options) => Effect.Effect<void>
}

/**
 * How a fake has ended.
 *
 * @category models
 * @since 0.1.0
 */
export type Ended = { readonly code: number } | { readonly signal: string }

/**
 * A fake that serves in this process.
 *
 * @category models
 * @since 0.1.0
 */
export interface Served extends Seen {
  readonly socketPath: string
  /** Its machine has ended, or a fault has ended it. */
  readonly ended: Effect.Effect<Ended>
  /** What it has written to its stdout: its log unless that went elsewhere, and the guest's console. */
  readonly stdout: Effect.Effect<string>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface ServeOptions extends Options {
  /** Where it listens. The file must not be there yet, and stays when the scope closes. */
  readonly socketPath: string
  /** What relative paths that it is told lead from. Default: the working directory of this process. */
  readonly cwd?: string | undefined
  readonly id?: string | undefined
  readonly pci?: boolean | undefined
  /** Bytes that the body of a request may have. Default 51200. */
  readonly payloadLimit?: number | undefined
  /** Bytes of metadata that it keeps. Default: as many. */
  readonly mmdsLimit?: number | undefined
  /** For the guest `agent`: its programs, and how it is renewed. */
  readonly agent?: Pick<FakeGuestAgent.Options, "programs" | "directories" | "renewal"> | undefined
  /**
   * Told the socket of a page server (`backend_type: "Uffd"`) that a restored machine has connected to, and how many bytes of memory
   * there are. What Firecracker would send is a userfaultfd, which only a program of its own can have. Default: nothing is sent.
   */
  readonly onPageServer?: ((socket: Socket, memoryBytes: number) => void) | undefined
}

const Event = Schema.Union([
  Schema.TaggedStruct("Request", {
    connection: Schema.Finite,
    method: Schema.String,
    path: Schema.String,
    body: Schema.optional(Schema.String)
  }),
  Schema.TaggedStruct("Connection", { open: Schema.Finite, accepted: Schema.Boolean })
])

const readEvents = Schema.decodeUnknownSync(Schema.Array(Schema.fromJsonString(Event)))

const seen = (events: Effect.Effect<ReadonlyArray<typeof Event.Type>>): Seen => ({
  requests: Effect.map(events, (all) =>
    all.flatMap((event) =>
      event._tag === "Request"
        ? [{ connection: event.connection, method: event.method, path: event.path, body: event.body }]
        : []
    )),
  connections: Effect.map(events, (all) => {
    const connections = all.flatMap((event) => event._tag === "Connection" ? [event] : [])
    return {
      most: Math.max(0, ...connections.map(({ open }) => open)),
      refused: connections.filter(({ accepted }) => !accepted).length
    }
  })
})

const settingsOf = (options: Options & { readonly events?: string | undefined }): Settings.Settings =>
  Settings.read(JSON.stringify(options), undefined)

const isSource = import.meta.url.endsWith(".ts")

// Beside this module both where it is a file of its own and where it is a part of a bundle.
const programPath = (name: string): string =>
  fileURLToPath(new URL(`./internal/${name}.${isSource ? "ts" : "js"}`, import.meta.url))

const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`

/** @internal */
export const command = (program: string, optionsFile: string): string => {
  // Types are stripped once, not at each start: that takes longer than all else.
  const cache = isSource
    ? `NODE_COMPILE_CACHE=${quoted(fileURLToPath(new URL("../../.cache/node", import.meta.url)))} `
    : ""
  const words = [
    process.execPath,
    "--disable-warning=ExperimentalWarning",
    "--disable-sigusr1",
    programPath(program),
    optionsFile
  ]
  return `#!/bin/sh\n${cache}exec ${words.map(quoted).join(" ")} "$@"\n`
}

/** @internal */
export const temporaryDirectory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "fake-firecracker-"))),
  (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
)

/**
 * Makes a command `firecracker` in a directory of its own, which is removed when the scope closes. What is started from it
 * is not ended then. Each start reads its options anew, and over them those in the variable `FAKE_FIRECRACKER` (JSON).
 *
 * ```ts import.meta.vitest
 * import { FakeFirecracker } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import { execFileSync } from "node:child_process"
 *
 * const program = Effect.gen(function*() {
 *   const { binary } = yield* FakeFirecracker.install({ version: "1.14.4" })
 *   return execFileSync(binary, ["--version"], { encoding: "utf8" }).split("\n")[0]
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => "Firecracker v1.14.4"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const install = Effect.fn("FakeFirecracker.install")(function*(
  options: Options = {}
): Effect.fn.Return<Installed, never, Scope.Scope> {
  const directory = yield* temporaryDirectory
  const binary = join(directory, "firecracker")
  const optionsFile = join(directory, "options.json")
  const events = join(directory, "events")
  let current: Options = options
  const write = () => writeFileSync(optionsFile, JSON.stringify({ ...settingsOf({ ...current, events }) }))
  write()
  writeFileSync(binary, command("fakeFirecrackerProgram", optionsFile))
  chmodSync(binary, 0o755)
  return {
    binary,
    directory,
    version: settingsOf(options).version,
    update: (more) =>
      Effect.sync(() => {
        current = { ...current, ...more }
        write()
      }),
    ...seen(Effect.sync(() =>
      existsSync(events)
        ? readEvents(readFileSync(events, "utf8").split("\n").filter((line) => line !== ""))
        : []
    ))
  }
})

const guestOf = (options: ServeOptions): MakeGuest =>
  options.guest === "none" ? none : options.guest === "echo" ? echo : agent(options.agent)

/**
 * Serves in this process until the scope closes.
 *
 * ```ts import.meta.vitest
 * import { FakeFirecracker } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 * import { mkdtempSync, rmSync } from "node:fs"
 * import { request } from "node:http"
 * import { tmpdir } from "node:os"
 * import { join } from "node:path"
 *
 * const directory = mkdtempSync(join(tmpdir(), "example-"))
 * const program = Effect.gen(function*() {
 *   const { socketPath } = yield* FakeFirecracker.serve({ socketPath: join(directory, "api.sock") })
 *   return yield* Effect.callback<number | undefined>((resume) => {
 *     request({ socketPath, path: "/", agent: false }, (answer) => resume(Effect.succeed(answer.statusCode))).end()
 *   })
 * })
 * await Effect.runPromise(Effect.scoped(program)) // => 200
 * rmSync(directory, { recursive: true })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const serve = Effect.fn("FakeFirecracker.serve")(function*(
  options: ServeOptions
): Effect.fn.Return<Served, never, Scope.Scope> {
  const { agent: _, cwd, id, mmdsLimit, onPageServer, payloadLimit = 51_200, pci = false, socketPath, ...rest } =
    options
  const events: Array<Instance.Event> = []
  const ended = Deferred.makeUnsafe<Ended>()
  let stdout = ""
  const instance = Instance.make({
    settings: settingsOf(rest),
    world: makeWorld({ cwd }),
    guest: () => Promise.resolve(guestOf(options)),
    pci,
    api: true,
    payloadLimit,
    mmdsLimit: mmdsLimit ?? payloadLimit,
    stdout: (text) => {
      stdout += text
    },
    stderr: () => {},
    onEvent: (event) => events.push(event),
    onExit: (exit) => Deferred.doneUnsafe(ended, Effect.succeed(exit)),
    onPageServer
  })
  if (id !== undefined) instance.setId(id)
  yield* Effect.acquireRelease(
    Effect.promise(() => instance.listen(socketPath)),
    () => Effect.promise(() => instance.exit({ signal: "SIGKILL" }))
  )
  return {
    socketPath,
    ended: Deferred.await(ended),
    stdout: Effect.sync(() => stdout),
    ...seen(Effect.sync(() => [...events]))
  }
})
