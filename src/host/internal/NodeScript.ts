/** A file of ours that has no name, so nothing of it is left however we end; a child of ours finds it by our descriptor. */
import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs"
import { tmpdir } from "node:os"
import type { Script } from "./keptProgram.ts"

const { O_DIRECTORY, O_RDWR } = NodeFs.constants

/** open(2): Node does not name it. */
const O_TMPFILE = 0o20000000 | O_DIRECTORY

const openIn = (directory: string): number | undefined => {
  try {
    return NodeFs.openSync(directory, O_TMPFILE | O_RDWR, 0o600)
  } catch {
    return undefined
  }
}

const write = (fd: number, text: string): boolean => {
  try {
    NodeFs.ftruncateSync(fd)
    const bytes = new TextEncoder().encode(text)
    for (let at = 0; at < bytes.length;) at += NodeFs.writeSync(fd, bytes, at, bytes.length - at, at)
    return true
  } catch {
    return false
  }
}

/** In memory where there is such a directory. None where there is no file system that has files without names. */
export const open = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => openIn("/dev/shm") ?? openIn(tmpdir())),
    (fd) => Effect.sync(() => fd === undefined ? undefined : NodeFs.closeSync(fd))
  ),
  (fd): Script | undefined =>
    fd === undefined
      ? undefined
      : { path: `/proc/${process.pid}/fd/${fd}`, write: (text) => write(fd, text) }
)
