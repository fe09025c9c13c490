import type { Fault } from "../FirecrackerError.ts"
import { byteLength } from "./byteLength.ts"

/** What a socket address holds (unix(7)); a longer path is reached through `/proc/self/fd`. */
export const longestPath = 107

/** `/proc/self/fd/1048576/` and this are below 107 bytes. */
const longestName = 80

/** Of `path`, as the `field` that a caller gave. */
export const faultsOf = (field: string, path: string): ReadonlyArray<Fault> => {
  if (path === "" || path.includes("\0")) return [{ field, value: path, remedy: "give the path of a unix socket" }]
  return byteLength(path) > longestPath && byteLength(path.slice(path.lastIndexOf("/") + 1)) > longestName
    ? [{ field, value: path, remedy: `use a name of ${longestName} bytes at most, or a path of ${longestPath}` }]
    : []
}
