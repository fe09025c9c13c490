/**
 * Checks for `Readiness.awaitReady` that look at the host.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import { errnoName } from "./internal/NodeErrno.ts"

/**
 * Why a check says no.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotYet extends Data.TaggedError("NotYet")<{ readonly what: string; readonly code: string }> {
  override get message(): string {
    return `${this.what}: ${this.code}`
  }
}

/**
 * There is something at the path.
 *
 * @category checks
 * @since 0.1.0
 */
export const pathExists = (path: string): Effect.Effect<void, NotYet> =>
  Effect.try({
    try: () => NodeFs.accessSync(path),
    catch: (cause) => new NotYet({ what: path, code: errnoName(cause) })
  })

const accepts = (what: string, address: NodeNet.NetConnectOpts): Effect.Effect<void, NotYet> =>
  Effect.callback((resume) => {
    const socket = NodeNet.connect(address)
    socket.once("connect", () => {
      socket.destroy()
      resume(Effect.void)
    })
    socket.on("error", (cause) => resume(Effect.fail(new NotYet({ what, code: errnoName(cause) }))))
    return Effect.sync(() => socket.destroy())
  })

/**
 * A server accepts connections on a unix socket. It sees a connection that is closed at once.
 *
 * @category checks
 * @since 0.1.0
 */
export const unixSocketAccepts = (path: string): Effect.Effect<void, NotYet> => accepts(path, { path })

/**
 * A server accepts connections on a TCP port. It sees a connection that is closed at once.
 *
 * **Gotchas**
 *
 * - It may be another server than the one you wait for: choose the port so that it can only be yours.
 *
 * @category checks
 * @since 0.1.0
 */
export const tcpPortAccepts = (port: number, host = "127.0.0.1"): Effect.Effect<void, NotYet> =>
  accepts(`${host}:${port}`, { host, port })
