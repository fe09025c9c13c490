import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import * as NodeFs from "node:fs/promises"
import { createServer, type Server, type Socket } from "node:net"
import * as NodeOs from "node:os"
import { dirname, join, resolve } from "node:path"
import { pipeline } from "node:stream/promises"
import { type SupervisorGuard, Watched } from "../../process/SupervisorGuard.ts"
import { HostFailed, type Receiver, type User } from "../QemuHost.ts"

const attempt = <A>(path: string, what: string, run: (signal: AbortSignal) => Promise<A>) =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new HostFailed({ path, why: `${what}: ${String(cause)}`, cause })
  })

const remove = (path: string): Promise<void> => NodeFs.rm(path, { recursive: true, force: true })

const listen = async (path: string, from: User): Promise<Server> => {
  const server = createServer({ pauseOnConnect: true })
  server.listen(path)
  await once(server, "listening")
  await NodeFs.chmod(path, 0o600)
  if (from._tag === "Unprivileged") await NodeFs.chown(path, from.uid, from.gid)
  return server
}

/** Can a user without any rights of its own get at what is in there? */
const isOpenToAll = async (directory: string): Promise<boolean> => {
  const above = dirname(directory)
  const { mode } = await NodeFs.stat(directory)
  return (mode & 0o001) !== 0 && (above === directory || isOpenToAll(above))
}

/** The directory for temporary files, unless it is one of our own and QEMU runs as another user. */
const placeFor = async (from: User): Promise<string> => {
  const usual = NodeOs.tmpdir()
  if (from._tag === "Own") return usual
  const places = [usual, "/tmp", "/dev/shm"]
  const open = await Promise.all(places.map((place) => isOpenToAll(resolve(place)).catch(() => false)))
  return places.find((_, index) => open[index]) ?? usual
}

/**
 * A socket for one connection. Others of the same user cannot come first: they cannot list the directory, and would have
 * to guess 128 bits. Both are gone once there is a connection, or when the scope closes.
 */
export const receive = Effect.fnUntraced(function*(
  guard: SupervisorGuard["Service"],
  file: string,
  from: User
): Effect.fn.Return<Receiver, HostFailed, Scope.Scope> {
  const output = yield* Effect.acquireRelease(
    attempt(file, "it cannot be written", () => NodeFs.open(file, "wx", 0o600)),
    (handle) => Effect.promise(() => handle.close())
  )
  const parent = yield* Effect.promise(() => placeFor(from))
  const directory = join(parent, `microvm-${randomBytes(8).toString("hex")}`)
  // Whoever is killed while it waits for the connection would leave it there.
  yield* Effect.mapError(
    guard.watch(Watched.Directory({ path: directory })),
    (cause) => new HostFailed({ path: directory, why: cause.message, cause })
  )
  yield* Effect.acquireRelease(
    attempt(parent, "no directory for a socket", async () => {
      await NodeFs.mkdir(directory, { mode: 0o700 })
      await NodeFs.chmod(directory, 0o711)
    }),
    () => Effect.promise(() => remove(directory))
  )
  const path = join(directory, randomBytes(16).toString("hex"))
  const server = yield* Effect.acquireRelease(
    attempt(path, "no socket can be made", () => listen(path, from)),
    (made) => Effect.sync(() => made.close())
  )
  const writing = yield* attempt(file, "it cannot be written", async (signal) => {
    const socket = await connection(server, signal)
    await remove(directory)
    await pipeline(socket, output.createWriteStream(), { signal })
  }).pipe(Effect.forkScoped({ startImmediately: true }))
  return { path, received: Fiber.join(writing) }
})

/** The first that connects; nobody else is let in. */
const connection = (server: Server, signal: AbortSignal): Promise<Socket> => {
  const connected = Promise.withResolvers<Socket>()
  server.once("connection", (socket) => {
    server.close()
    // It may be given up while it connects, and before anybody reads.
    const hangUp = () => socket.destroy()
    if (signal.aborted) hangUp()
    else signal.addEventListener("abort", hangUp, { once: true })
    socket.on("error", hangUp)
    connected.resolve(socket)
  })
  signal.addEventListener("abort", () => connected.reject(signal.reason), { once: true })
  return connected.promise
}
