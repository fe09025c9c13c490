/** Who lives in a machine. */
import type { Duplex } from "node:stream"
import type { Json } from "./fakeSerde.ts"

/** What a guest does with itself. */
export type End = "powerdown" | "halt" | "reboot"

export interface Guest {
  /** The host has connected to a port; `false` when nobody listens there. */
  readonly listen: (port: number, connection: Duplex) => boolean
  /** Stands still, and goes on. */
  readonly pause: () => void
  readonly resume: () => void
  /** What a snapshot has of it. */
  readonly save: () => Json
  readonly stop: () => Promise<void>
  /** Is it one of the folder `image`, which says what it was asked for when all is written? */
  readonly tellsWritten: boolean
}

interface GuestOptions {
  /** The names of its channels; the first is served on `firstPort`, and each next on the port after. */
  readonly channels: ReadonlyArray<string>
  readonly firstPort: number
  /** What `save` of another one has given. */
  readonly saved: Json | undefined
  readonly onEnd: (end: End) => void
}

export type MakeGuest = (options: GuestOptions) => Guest

/** `microvm.vsock=FIRSTPORT,NAME,NAME…` among the arguments of the kernel. */
export const channelsOf = (
  bootArgs: string
): { readonly firstPort: number; readonly channels: ReadonlyArray<string> } => {
  const [, value = ""] = /(?:^|\s)microvm\.vsock=(\S*)/.exec(bootArgs) ?? []
  const [port, ...channels] = value.split(",")
  return { firstPort: Number(port), channels }
}

const still = {
  pause: () => {},
  resume: () => {},
  save: () => null,
  stop: () => Promise.resolve(),
  tellsWritten: false
}

/** Nobody listens. */
export const none: MakeGuest = () => ({ ...still, listen: () => false })

/** Every port says what it hears. */
export const echo: MakeGuest = () => ({
  ...still,
  listen: (_port, connection) => {
    connection.pipe(connection)
    return true
  }
})
