import * as NodeFs from "node:fs/promises"
import { dirname } from "node:path"
import type { Left } from "../Jail.ts"
import { codeOf } from "./NodeAttempt.ts"

/** A guest that broke out could have made as many and as deep ones as its disk has room for. */
const maxEntries = 1_000_000
const maxDepth = 128
/** So many are named. */
const maxNamed = 20

/**
 * Removes a directory and all below it, and goes on after what cannot be removed. Symbolic links are removed and not
 * followed, and nothing at or below a mount point is touched. No process may be at work there meanwhile.
 */
export const removeTree = async (
  directory: string,
  mountPoints: ReadonlySet<string>
): Promise<ReadonlyArray<Left>> => {
  const left: Array<Left> = []
  let entries = 0
  const keep = (path: string, why: string): void => {
    if (left.length < maxNamed) left.push({ path, why })
  }
  const attempt = async (path: string, remove: (path: string) => Promise<void>): Promise<void> => {
    try {
      await remove(path)
    } catch (error) {
      // A directory that is not empty has in it what is named already.
      const code = codeOf(error)
      if (code !== "ENOENT" && !(code === "ENOTEMPTY" && left.length > 0)) keep(path, code)
    }
  }
  const enter = async (path: string, depth: number): Promise<void> => {
    if (depth > maxDepth) return keep(path, `it is more than ${maxDepth} directories deep`)
    try {
      for await (const entry of await NodeFs.opendir(path)) {
        const child = `${path}/${entry.name}`
        if (++entries > maxEntries) return keep(path, `it has more than ${maxEntries} files`)
        if (mountPoints.has(child)) keep(child, "something is mounted there")
        else if (entry.isDirectory()) await enter(child, depth + 1)
        else await attempt(child, NodeFs.unlink)
      }
    } catch (error) {
      if (codeOf(error) !== "ENOENT") keep(path, codeOf(error))
    }
    await attempt(path, NodeFs.rmdir)
  }
  // Whoever put another directory or a link in its place would have it removed instead.
  const found = await NodeFs.lstat(directory).catch(() => undefined)
  if (found === undefined) return []
  if (!found.isDirectory() || (await NodeFs.realpath(dirname(directory))) !== dirname(directory)) {
    return [{ path: directory, why: "it is no directory, or is reached by a symbolic link" }]
  }
  await enter(directory, 0)
  return left
}
