import * as NodeFs from "node:fs/promises"
import { dirname } from "node:path"
import type { Left } from "../Jail.ts"
import { codeOf } from "./NodeAttempt.ts"

/** A guest that broke out could have made as many and as deep ones as its disk has room for. */
const maxEntries = 1_000_000
const maxDepth = 128
/** So many are named. */
const maxNamed = 20

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = NodeFs.constants

/**
 * Removes a directory and all below it, and goes on after what cannot be removed. Symbolic links are removed and not
 * followed, also one that takes the place of a directory meanwhile; and nothing at or below a mount point is touched.
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
  // `path` is for people. What is done is done by `at`, which leads through the open directory above.
  const attempt = async (path: string, at: string, remove: (at: string) => Promise<void>): Promise<void> => {
    try {
      await remove(at)
    } catch (error) {
      // A directory that is not empty has in it what is named already.
      const code = codeOf(error)
      if (code !== "ENOENT" && !(code === "ENOTEMPTY" && left.length > 0)) keep(path, code)
    }
  }
  const enter = async (path: string, at: string, depth: number): Promise<void> => {
    if (depth > maxDepth) return keep(path, `it is more than ${maxDepth} directories deep`)
    try {
      await using handle = await NodeFs.open(at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
      const here = `/proc/self/fd/${handle.fd}`
      for await (const entry of await NodeFs.opendir(here)) {
        const child = `${path}/${entry.name}`
        const childAt = `${here}/${entry.name}`
        if (++entries > maxEntries) return keep(path, `it has more than ${maxEntries} files`)
        if (mountPoints.has(child)) keep(child, "something is mounted there")
        else if (entry.isDirectory()) await enter(child, childAt, depth + 1)
        else await attempt(child, childAt, NodeFs.unlink)
      }
    } catch (error) {
      if (codeOf(error) !== "ENOENT") keep(path, codeOf(error))
    }
    await attempt(path, at, NodeFs.rmdir)
  }
  // Whoever put another directory or a link in its place would have it removed instead.
  const found = await NodeFs.lstat(directory).catch(() => undefined)
  if (found === undefined) return []
  if (!found.isDirectory() || (await NodeFs.realpath(dirname(directory))) !== dirname(directory)) {
    return [{ path: directory, why: "it is no directory, or is reached by a symbolic link" }]
  }
  await enter(directory, directory, 0)
  return left
}
