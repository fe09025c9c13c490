import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { ListenOptions, Server } from "node:net"

/** The name of a system error (`"EADDRINUSE"`). */
const codeOf = (cause: unknown): string | undefined =>
  cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined

const remedies: Readonly<Record<string, string>> = {
  EADDRINUSE: "the port is taken: end who has it, or choose another one",
  EACCES: "not permitted: a port below 1024 needs CAP_NET_BIND_SERVICE",
  EADDRNOTAVAIL: "this machine has no such address",
  ENOTFOUND: "no such host name",
  ERR_SOCKET_BAD_PORT: "a port is a whole number from 0 to 65535",
  EINVAL: "the file descriptor is no socket that can listen"
}

/** Why a server does not listen, and what to do about it. */
export const whyNot = (cause: unknown): string => {
  const code = codeOf(cause)
  const remedy = code === undefined ? undefined : remedies[code]
  return remedy === undefined ? cause instanceof Error ? cause.message : String(cause) : `${remedy} (${code})`
}

/** Listens; fails with what Node says. */
export const listen = (server: Server, where: ListenOptions | { readonly fd: number }): Effect.Effect<void, unknown> =>
  Effect.callback((resume) => {
    const failed = (cause: unknown) => {
      server.off("error", failed)
      resume(Effect.fail(cause))
    }
    server.on("error", failed)
    try {
      server.listen(where, () => {
        server.off("error", failed)
        resume(Effect.void)
      })
    } catch (cause) {
      failed(cause)
    }
    return Effect.sync(() => server.close())
  })

/** accept(2) fails with these for ever; with all others (no descriptors left, a client that has gone) it may be tried again. */
const permanent = new Set(["EBADF", "EINVAL", "ENOTSOCK", "EFAULT", "EOPNOTSUPP"])

const complainEvery = Duration.seconds(10)

/**
 * Tells when a server that listens does not any more. Most failures of accept(2) are those of one connection, or pass: a
 * service does not end for them. (libuv keeps these to itself, and closes what it has no descriptor for.)
 */
export const watchAccept = Effect.fnUntraced(function*(
  server: Server,
  name: string,
  over: (cause: Error) => Effect.Effect<void>
) {
  const run = Effect.runForkWith(yield* Effect.context())
  let complained = -Infinity
  const complain = Effect.fnUntraced(function*(why: string) {
    const now = yield* Clock.currentTimeMillis
    if (now - complained < Duration.toMillis(complainEvery)) return
    complained = now
    yield* Effect.logWarning(`${name}: a connection was not accepted: ${why}`)
  })
  let isOver = false
  server.on("error", (cause) => {
    const code = codeOf(cause)
    if (code === undefined || !permanent.has(code)) {
      run(complain(cause.message))
    } else if (!isOver) {
      isOver = true
      // It would fail again in each round of the event loop.
      server.close()
      run(over(cause))
    }
  })
})
