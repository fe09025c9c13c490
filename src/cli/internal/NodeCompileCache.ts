/**
 * What V8 makes of the program is kept for its next start, which is a third faster then. Loaded before all else, so this
 * needs nothing but Node.
 *
 * Sources: "module.enableCompileCache" and "v8.setFlagsFromString" of Node's documentation.
 */
import * as NodeFs from "node:fs"
import * as NodeModule from "node:module"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import * as NodeV8 from "node:v8"

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
 * Node keeps a module as it is when it has been loaded, with the functions that were compiled by then, and V8 compiles most of them
 * only when they are first called: at each start anew. So all are compiled at once, which takes the first start a tenth of a second.
 * The flag is part of what V8 tells the kept by, so it is set at each start. A host where nothing can be kept is none the worse for it.
 *
 * @internal
 */
export const keepCompiled = (): void => {
  if (!("enableCompileCache" in NodeModule)) return
  try {
    const directory = NodePath.join(cacheDirectory(), "compiled")
    // In a cache that is there: to make all of the path is the business of the stores.
    if (!NodeFs.existsSync(directory)) NodeFs.mkdirSync(directory, { mode: 0o700 })
    // It is code: nobody else may have written it.
    const { mode, uid } = NodeFs.lstatSync(directory)
    if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) return
    NodeFs.accessSync(directory, NodeFs.constants.W_OK)
    const { status } = NodeModule.enableCompileCache(directory)
    if (status === NodeModule.constants.compileCacheStatus.ENABLED) NodeV8.setFlagsFromString("--no-lazy")
  } catch {
    // No home, no room, no rights.
  }
}
