/**
 * What V8 makes of the program is kept for its next start, which takes half of the time then. Loaded before all else, so this
 * needs nothing but Node.
 *
 * Node's own cache keeps a module as it is when it has been loaded, with the functions that were compiled by then, and V8 compiles
 * most of them only when they are first called: at each start anew. So the program is one script, and what is kept of it is made
 * after a run, with just the functions that a run calls.
 *
 * Sources: "vm.Script" and "script.createCachedData" of Node's documentation.
 */
import * as NodeFs from "node:fs"
import * as NodeModule from "node:module"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { pathToFileURL } from "node:url"
import type { main } from "./NodeMain.ts"

type Main = typeof main

/** As `ImageStore.cacheDirectory` says. */
const cacheDirectory = (): string => {
  const { HOME = "", MICROVM_CACHE_DIR = "", XDG_CACHE_HOME = "" } = process.env
  // To the configuration, a variable that is empty is none.
  if (MICROVM_CACHE_DIR !== "") return NodePath.resolve(MICROVM_CACHE_DIR)
  const home = HOME === "" ? NodeOs.homedir() : HOME
  const base = NodePath.isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : NodePath.join(home, ".cache")
  return NodePath.join(base, "effect-microvm-runtime")
}

/** Where it is kept, or nothing. */
const place = (): string | undefined => {
  try {
    const directory = NodePath.join(cacheDirectory(), "compiled")
    // In a cache that is there: to make all of the path is the business of the stores.
    if (!NodeFs.existsSync(directory)) NodeFs.mkdirSync(directory, { mode: 0o700 })
    // It is code: nobody else may have written it.
    const { mode, uid } = NodeFs.lstatSync(directory)
    return uid === process.geteuid?.() && (mode & 0o077) === 0 ? directory : undefined
  } catch {
    // No home, no room, no rights.
    return undefined
  }
}

/** Which file it is of, and in which state. V8 itself looks at its version, its flags and the length of the text, and at nothing else. */
const identify = (file: string): { readonly name: string; readonly state: string } => {
  const { ctimeNs, dev, ino, mtimeNs, size } = NodeFs.statSync(file, { bigint: true })
  return {
    name: `microvm-${process.version}-${process.arch}-${dev}-${ino}`,
    state: [size, mtimeNs, ctimeNs].join(" ")
  }
}

/** The digest, the state and whether it is of a whole run; V8 wants what comes after them to begin at a multiple of eight. */
const headBytes = 256

const digestOf = (bytes: Uint8Array): string => process.getBuiltinModule("node:crypto").hash("sha256", bytes)

interface Kept {
  readonly data: Buffer
  readonly isWhole: boolean
}

/** V8 executes what was torn or damaged, too, so its digest is looked at before. */
const read = (file: string, state: string): Kept | undefined => {
  try {
    const bytes = NodeFs.readFileSync(file)
    const [digest, told, whole] = bytes.toString("latin1", 0, headBytes).trimEnd().split("\n")
    const data = bytes.subarray(headBytes)
    return told === state && digest === digestOf(data) ? { data, isWhole: whole === "whole" } : undefined
  } catch {
    return undefined
  }
}

const monthMillis = 30 * 24 * 60 * 60 * 1000

/** What was not made in the last month is of a program, or of a Node, that may be gone; where not, it is made again. */
const sweep = (directory: string): void => {
  for (const name of NodeFs.readdirSync(directory)) {
    const path = NodePath.join(directory, name)
    if (Date.now() - NodeFs.statSync(path).mtimeMs > monthMillis) NodeFs.rmSync(path, { recursive: true, force: true })
  }
}

/** Best effort: without it, the next start makes it again. */
const write = (file: string, state: string, { data, isWhole }: Kept): void => {
  const own = `${file}.${process.pid}`
  try {
    const head = [digestOf(data), state, isWhole ? "whole" : "part"].join("\n").padEnd(headBytes)
    NodeFs.writeFileSync(own, Buffer.concat([Buffer.from(head, "latin1"), data]), { mode: 0o600 })
    NodeFs.renameSync(own, file)
    sweep(NodePath.dirname(file))
  } catch {
    NodeFs.rmSync(own, { force: true })
  }
}

/**
 * Loads the program from its one file, whose text is a function: it takes a `require`, the file's URL, and whom to tell of `main`.
 *
 * What is kept is made again once, when a command has run through that had all of a run to do: what was made before, as after
 * `--help`, has little of it.
 *
 * @internal
 */
export const load = (file: string): Main => {
  const { setFlagsFromString } = process.getBuiltinModule("node:v8")
  const { Script } = process.getBuiltinModule("node:vm")
  const directory = place()
  const { name, state } = identify(file)
  const found = directory === undefined ? undefined : read(NodePath.join(directory, name), state)
  // Nothing in it is other than ASCII.
  const script = new Script(NodeFs.readFileSync(file, "latin1"), {
    filename: file,
    ...(found === undefined ? {} : { cachedData: found.data })
  })
  const kept = script.cachedDataRejected === true ? undefined : found
  const mayKeep = directory !== undefined && kept?.isWhole !== true
  // V8 drops the code of what has not been called for some collections: all that is called but once, at the start.
  if (mayKeep) setFlagsFromString("--no-flush-bytecode")
  const told: Array<Main> = []
  const program: unknown = script.runInThisContext()
  if (typeof program === "function") {
    Reflect.apply(program, undefined, [
      NodeModule.createRequire(file),
      pathToFileURL(file).href,
      (one: Main) => void told.push(one)
    ])
  }
  const [start] = told
  if (start === undefined) throw new Error(`${file} is no program`)
  return (exit) =>
    start((code, isWhole) => {
      if (mayKeep && (kept === undefined || isWhole)) {
        // What is kept is refused where other flags are set.
        setFlagsFromString("--flush-bytecode")
        write(NodePath.join(directory, name), state, { data: script.createCachedData(), isWhole })
      }
      exit(code, isWhole)
    })
}
