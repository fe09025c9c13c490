/**
 * Sockets that the service manager has opened for us (systemd.socket(5), sd_listen_fds(3)).
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs"
import type { PassedSockets } from "./ServiceConfig.ts"
import { fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface PassedSocket {
  /** For `server.listen({ fd })`. */
  readonly fd: number
  /** `FileDescriptorName=` of its unit; systemd's default is the name of the unit. */
  readonly name: string
}

const firstDescriptor = 3

const isSocket = (fd: number): boolean => {
  try {
    return NodeFs.fstatSync(fd).isSocket()
  } catch {
    return false
  }
}

/**
 * The sockets that were passed to this process, in the order of the unit. None when they were passed to another one: the
 * variables are inherited, the sockets are not.
 *
 * Fails with `ConfigInvalid` when a descriptor is no socket, because then somebody counts on a port that nobody serves.
 *
 * **Gotchas**
 *
 * - Each is there once: who closes its server has closed the socket.
 *
 * @category constructors
 * @since 0.1.0
 */
export const open = (passed: PassedSockets): Effect.Effect<ReadonlyArray<PassedSocket>, ServiceError> =>
  Effect.suspend(() => {
    if (passed.pid !== process.pid) return Effect.succeed([])
    const sockets: Array<PassedSocket> = []
    for (let index = 0; index < passed.count; index++) {
      const fd = firstDescriptor + index
      if (!isSocket(fd)) {
        const why =
          `LISTEN_FDS: ${passed.count}, but descriptor ${fd} is no socket: let the service manager pass it, or unset ` +
          "the variable"
        return Effect.fail(fromReason(ServiceErrorReason.ConfigInvalid({ faults: [why] })))
      }
      sockets.push({ fd, name: passed.names[index] || "unknown" })
    }
    return Effect.succeed(sockets)
  })
