/**
 * What V8 makes of the program is kept for its next start, which is a quarter faster then. Loaded before all else, so this
 * needs nothing but Node.
 *
 * Source: "module.enableCompileCache" of Node's documentation.
 */
import * as NodeFs from "node:fs"
import * as NodeModule from "node:module"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"

/** As `ImageStore.cacheDirectory` says. */
const cacheDirectory = (): string => {
  const { HOME = "", MICROVM_CACHE_DIR = "", XDG_CACHE_HOME = "" } = process.env
  // To the configuration, a variable that is empty is none.
  if (MICROVM_CACHE_DIR !== "") return NodePath.resolve(MICROVM_CACHE_DIR)
  const home = HOME === "" ? NodeOs.homedir() : HOME
  const base = NodePath.isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : NodePath.join(home, ".cache")
  return NodePath.join(base, "effect-microvm-runtime")
}

/**
 * Of all commands, `run` is the one that is waited for. What is kept is what the first run has used, so the others, which use
 * little of it, keep nothing. A host where nothing can be kept is none the worse for it.
 *
 * @internal
 */
export const keepCompiled = (): void => {
  if (process.argv[2] !== "run" || !("enableCompileCache" in NodeModule)) return
  try {
    const directory = NodePath.join(cacheDirectory(), "compiled")
    // In a cache that is there: to make all of the path is the business of the stores.
    if (!NodeFs.existsSync(directory)) NodeFs.mkdirSync(directory, { mode: 0o700 })
    // It is code: nobody else may have written it.
    const { mode, uid } = NodeFs.lstatSync(directory)
    if (uid === process.geteuid?.() && (mode & 0o077) === 0) NodeModule.enableCompileCache(directory)
  } catch {
    // No home, no room, no rights.
  }
}
