import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as NodeCrypto from "node:crypto"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import * as NodePath from "node:path"
import { ProvisionerError } from "../Provisioner.ts"
import * as Bind from "./NodeHttpBind.ts"

export const codeOf = (cause: unknown): string =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : "unknown error"

const remedies: Readonly<Record<string, string>> = {
  EROFS: "it is on a read-only file system: give a state directory that can be written",
  EACCES: "permission denied: give a state directory that this user can write",
  EPERM: "not permitted: give a state directory that this user can write",
  EEXIST: "there is a file of that name: give another state directory",
  ENOTDIR: "a part of the path is a file: give another state directory",
  ENOSPC: "no space left: make room, or give a state directory elsewhere"
}

/** Does something to a file below the state directory. */
export const onState = <A>(path: string, action: () => A): Effect.Effect<A, ProvisionerError> =>
  Effect.try({
    try: action,
    catch: (cause) => {
      const code = codeOf(cause)
      return new ProvisionerError({ message: `${path}: ${remedies[code] ?? code} (${code})`, cause })
    }
  })

export const readText = (path: string): string | undefined => {
  try {
    return NodeFs.readFileSync(path, "utf8")
  } catch (cause) {
    if (codeOf(cause) === "ENOENT") return undefined
    throw cause
  }
}

/** Replaces a file as a whole; only its owner may read it. */
const writeText = (path: string, text: string): void => {
  const next = `${path}.next`
  NodeFs.rmSync(next, { force: true })
  NodeFs.writeFileSync(next, text, { mode: 0o600, flag: "wx" })
  NodeFs.renameSync(next, path)
}

/**
 * Of the server below `directory`: made once, so that connection strings stay what they were. `settle` makes a new one that
 * of the data; only then it is written down, so that no start finds a password that is not theirs.
 */
export const password = <R = never>(
  directory: string,
  settle: (fresh: Redacted.Redacted) => Effect.Effect<void, ProvisionerError, R> = () => Effect.void
): Effect.Effect<Redacted.Redacted, ProvisionerError, R> =>
  Effect.gen(function*() {
    const path = NodePath.join(directory, "password")
    const known = yield* onState(path, () => readText(path)?.trim())
    if (known) return Redacted.make(known)
    const fresh = Redacted.make(NodeCrypto.randomBytes(24).toString("base64url"))
    yield* settle(fresh)
    yield* onState(path, () => writeText(path, Redacted.value(fresh)))
    return fresh
  })

/** A port of the loopback address that nobody has now; somebody may take it before it is bound. */
export const freePort = (wanted: number): Effect.Effect<number, ProvisionerError> =>
  Effect.callback<number, NodeJS.ErrnoException>((resume) => {
    const server = NodeNet.createServer()
    server.once("error", (cause) => resume(Effect.fail(cause)))
    server.listen({ port: wanted, host: "127.0.0.1", exclusive: true }, () => {
      const address = server.address()
      const port = typeof address === "object" && address !== null ? address.port : 0
      server.close(() => resume(Effect.succeed(port)))
    })
    return Effect.sync(() => server.close())
  }).pipe(
    Effect.catch((cause) =>
      wanted === 0
        ? Effect.fail(new ProvisionerError({ message: `no free port on 127.0.0.1: ${codeOf(cause)}`, cause }))
        : freePort(0)
    )
  )

/** The port of the server below `directory`: that of the last run, if it can still be had. */
export const port = (directory: string): Effect.Effect<number, ProvisionerError> => {
  const path = NodePath.join(directory, "port")
  return Effect.gen(function*() {
    const last = Number(yield* onState(path, () => readText(path)))
    const found = yield* freePort(Number.isInteger(last) && last > 0 && last < 65_536 ? last : 0)
    if (found !== last) yield* onState(path, () => writeText(path, String(found)))
    return found
  })
}

/**
 * Makes a directory and those above it, one by one: `recursive` of mkdir(3) takes a read-only file system for a path that is
 * not there. A server that runs as another user has to be able to pass through those that root makes.
 */
export const makeDirectory = (path: string): Effect.Effect<void, ProvisionerError> => {
  const mode = process.getuid?.() === 0 ? 0o711 : 0o700
  const make = (directory: string): void => {
    if (NodeFs.statSync(directory, { throwIfNoEntry: false })?.isDirectory() === true) return
    if (NodePath.dirname(directory) !== directory) make(NodePath.dirname(directory))
    try {
      NodeFs.mkdirSync(directory, { mode })
    } catch (cause) {
      // Another one may have made it meanwhile.
      if (!NodeFs.statSync(directory, { throwIfNoEntry: false })?.isDirectory()) throw cause
    }
  }
  return onState(path, () => make(path))
}

/** How long somebody who holds a claim may take to say who it is. */
const introduction = 1000

/** Who listens at a path: nobody (any more), or what it says of itself. */
const askHolder = (path: string): Effect.Effect<{ readonly alive: boolean; readonly name: string }> =>
  Effect.callback((resume) => {
    const socket = NodeNet.connect(path)
    let text = ""
    const alive = (): void => {
      socket.destroy()
      resume(Effect.succeed({ alive: true, name: text || "a process that does not say who it is" }))
    }
    socket.setTimeout(introduction, alive)
    socket.on("data", (chunk) => {
      text = (text + chunk.toString()).slice(0, 1000)
    })
    socket.on("end", alive)
    socket.on("error", (cause) => {
      const code = codeOf(cause)
      if (code === "ECONNREFUSED" || code === "ENOENT") resume(Effect.succeed({ alive: false, name: "" }))
      else alive()
    })
    return Effect.sync(() => socket.destroy())
  })

/**
 * Takes a directory for oneself, until the scope closes. Who comes second fails, and learns who holds it.
 *
 * A claim is a socket in the directory that somebody listens on: the kernel closes it however its holder dies, so a claim
 * cannot be stale for long, nor be mistaken for that of another process with the same pid, also from another container. First
 * everybody shows his own claim, then he looks for others: of two that come at the same moment at most one goes on.
 */
export const claim = (directory: string, holder: string): Effect.Effect<void, ProvisionerError, Scope.Scope> =>
  Effect.gen(function*() {
    yield* makeDirectory(directory)
    // Through the descriptor the path of the socket is short, however long that of the directory is (unix(7): 107 bytes).
    const fd = yield* Effect.acquireRelease(
      onState(directory, () => NodeFs.openSync(directory, NodeFs.constants.O_RDONLY | NodeFs.constants.O_DIRECTORY)),
      (opened) => Effect.sync(() => NodeFs.closeSync(opened))
    )
    const at = (name: string) => `/proc/self/fd/${fd}/${name}`
    const own = `claim-${NodeCrypto.randomBytes(6).toString("hex")}`
    const server = NodeNet.createServer((socket) => {
      socket.on("error", () => {})
      // Who asks need not end as well: nobody holds up our end.
      socket.end(holder, () => socket.destroy())
    })
    yield* Effect.acquireRelease(
      Effect.mapError(
        Bind.listen(server, { path: at(`.${own}`) }),
        (cause) => new ProvisionerError({ message: `${directory}: cannot be claimed: ${codeOf(cause)}`, cause })
      ),
      () =>
        Effect.callback<void>((resume) => {
          for (const name of [own, `.${own}`]) NodeFs.rmSync(at(name), { force: true })
          server.close(() => resume(Effect.void))
        })
    )
    server.unref()
    // It gets its name when it is ready: nobody can meet it half made.
    yield* onState(directory, () => NodeFs.renameSync(at(`.${own}`), at(own)))
    const others = yield* onState(
      directory,
      () => NodeFs.readdirSync(directory).filter((name) => name.startsWith("claim-") && name !== own)
    )
    for (const name of others) {
      const other = yield* askHolder(at(name))
      if (other.alive) {
        return yield* new ProvisionerError({
          message: `${directory} is in use by ${other.name}: stop it, or give this service another state directory`
        })
      }
      yield* onState(directory, () => NodeFs.rmSync(at(name), { force: true }))
    }
  })
