/**
 * Names for unix sockets that are short enough. A path that is given to connect(2) or bind(2) has 107 bytes at most
 * (unix(7)); one in a jail is easily longer. Then the directory is opened, and the socket is reached through
 * `/proc/self/fd` (proc(5)).
 */
import * as NodeFs from "node:fs"
import { basename, dirname } from "node:path"
import { byteLength } from "./byteLength.ts"
import { longestPath } from "./socketPath.ts"

/** O_PATH, which Node does not name: a directory that may be searched need not be readable (open(2)). */
export const pathOnly = 0o10000000

export interface Alias {
  readonly path: string
  /** What was reached stays open; the alias leads nowhere any more. May be called more than once. */
  readonly close: () => void
}

const none = () => {}

/** Throws when there is no such directory. */
export const open = (path: string): Alias => {
  if (byteLength(path) <= longestPath) return { path, close: none }
  const fd = NodeFs.openSync(dirname(path), NodeFs.constants.O_DIRECTORY | pathOnly)
  let isOpen = true
  return {
    path: `/proc/self/fd/${fd}/${basename(path)}`,
    close: () => {
      if (isOpen) NodeFs.closeSync(fd)
      isOpen = false
    }
  }
}
