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
import type { main } from "./NodeMain.ts"

type Main = typeof main

// A module that imports them makes Node load all that they could give, streams and all: a tenth of the time until the program is loaded.
const fs = () => process.getBuiltinModule("node:fs")
const path = () => process.getBuiltinModule("node:path")

/** As `ImageStore.cacheDirectory` says. */
const cacheDirectory = (): string => {
  const { HOME = "", MICROVM_CACHE_DIR = "", XDG_CACHE_HOME = "" } = process.env
  // To the configuration, a variable that is empty is none.
  if (MICROVM_CACHE_DIR !== "") return path().resolve(MICROVM_CACHE_DIR)
  const home = HOME === "" ? process.getBuiltinModule("node:os").homedir() : HOME
  const base = path().isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : path().join(home, ".cache")
  return path().join(base, "effect-microvm-runtime")
}

/**
 * Where it is kept, or nothing. The directory is held open until the process ends: whoever may write beside it could put another one
 * in its place.
 */
const place = (): string | undefined => {
  try {
    const own = path().join(cacheDirectory(), "compiled")
    // In a cache that is there: to make all of the path is the business of the stores.
    if (!fs().existsSync(own)) fs().mkdirSync(own, { mode: 0o700 })
    const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = fs().constants
    const directory = fs().openSync(own, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
    // It is code: nobody else may have written it.
    const { mode, uid } = fs().fstatSync(directory)
    if (uid === process.geteuid?.() && (mode & 0o077) === 0) return `/proc/self/fd/${directory}`
    fs().closeSync(directory)
  } catch {
    // No home, no room, no rights.
  }
  return undefined
}

const isWritable = (directory: string): boolean => {
  try {
    fs().accessSync(directory, fs().constants.W_OK)
    return true
  } catch {
    return false
  }
}

const digestOf = (bytes: Uint8Array): string => process.getBuiltinModule("node:crypto").hash("sha256", bytes)

/** What is kept for another Node, or of another program, is beside it. */
const nameOf = (program: string): string => `microvm-${process.version}-${process.arch}-${program.slice(0, 16)}`

/** The digests of the rest and of the program, and whether it is of a whole run; V8 wants what follows to begin at a multiple of eight. */
const headBytes = 256

interface Kept {
  readonly data: Buffer
  readonly isWhole: boolean
}

/** V8 looks at its version, its flags and the length of the text. It executes what was torn, damaged or made of another text, too. */
const read = (directory: string, program: string): Kept | undefined => {
  try {
    const bytes = fs().readFileSync(path().join(directory, nameOf(program)))
    const [digest, of, whole] = bytes.toString("latin1", 0, headBytes).trimEnd().split("\n")
    const data = bytes.subarray(headBytes)
    return of === program && digest === digestOf(data) ? { data, isWhole: whole === "whole" } : undefined
  } catch {
    return undefined
  }
}

const monthMillis = 30 * 24 * 60 * 60 * 1000

/** What was not made in the last month is of a program, or of a Node, that may be gone; where not, it is made again. */
const sweep = (directory: string): void => {
  for (const one of fs().readdirSync(directory)) {
    if (!one.startsWith("microvm-v")) continue
    const file = path().join(directory, one)
    if (Date.now() - fs().lstatSync(file).mtimeMs > monthMillis) fs().rmSync(file, { force: true })
  }
}

const remove = (file: string): void => {
  try {
    fs().rmSync(file, { force: true })
  } catch {
    // It is swept in a month.
  }
}

/** Best effort: without it, the next start makes it again. */
const write = (directory: string, program: string, made: () => Kept): void => {
  const file = path().join(directory, nameOf(program))
  const own = `${file}.${process.pid}`
  try {
    const { data, isWhole } = made()
    const head = [digestOf(data), program, isWhole ? "whole" : "part"].join("\n").padEnd(headBytes)
    fs().writeFileSync(own, Buffer.concat([Buffer.from(head, "latin1"), data]), { flag: "wx", mode: 0o600 })
    fs().renameSync(own, file)
    sweep(directory)
  } catch {
    remove(own)
  }
}

/** Is this a Node that flags were measured with? One that V8 does not know would be told on stderr. */
const takesFlags = Number.parseInt(process.versions.node) <= 24

const setFlag = (flag: string): void => {
  if (takesFlags) process.getBuiltinModule("node:v8").setFlagsFromString(flag)
}

/** What Node has kept of them is refused while a flag is set, so these are loaded before that. */
const needed = ["child_process", "dgram", "fs/promises", "net", "readline", "worker_threads"]

/**
 * V8 looks through what is new at each megabyte or two, and while a program begins, all of it stays. So it is to make room for all of
 * it when it sees that, at once. How much that is it knows from then on.
 */
const withRoom = (begin: () => void): void => {
  if (!takesFlags) return begin()
  for (const one of needed) process.getBuiltinModule(`node:${one}`)
  setFlag("--semi-space-growth-factor=16")
  begin()
  setFlag("--semi-space-growth-factor=2")
}

/**
 * Effect looks at two stack traces when it is loaded, for names. To tell their lines, too, V8 would count all lines of the program.
 */
const withoutLines = (begin: () => void): void => {
  const before: unknown = Reflect.get(Error, "prepareStackTrace")
  Error.prepareStackTrace = (_, sites) =>
    sites.map((site) => `${site.getFunctionName()} [as ${site.getMethodName()}]`).join("\n")
  try {
    begin()
  } finally {
    Reflect.set(Error, "prepareStackTrace", before)
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
  const { Script } = process.getBuiltinModule("node:vm")
  const directory = place()
  const text = fs().readFileSync(file)
  const program = digestOf(text)
  const found = directory === undefined ? undefined : read(directory, program)
  // Nothing in it is other than ASCII.
  const script = new Script(text.toString("latin1"), {
    filename: file,
    ...(found === undefined ? {} : { cachedData: found.data })
  })
  const kept = script.cachedDataRejected === true ? undefined : found
  const mayKeep = directory !== undefined && kept?.isWhole !== true && isWritable(directory)
  // V8 drops the code of what has not been called for some collections: all that is called but once, at the start.
  if (mayKeep) setFlag("--no-flush-bytecode")
  const told: Array<Main> = []
  const begin: unknown = script.runInThisContext()
  if (typeof begin === "function") {
    const parts = [
      process.getBuiltinModule("node:module").createRequire(file),
      process.getBuiltinModule("node:url").pathToFileURL(file).href,
      (one: Main) => void told.push(one)
    ]
    withRoom(() => withoutLines(() => void Reflect.apply(begin, undefined, parts)))
  }
  const [start] = told
  if (start === undefined) throw new Error(`${file} is no program`)
  return (exit) =>
    start((code, isWhole) => {
      if (mayKeep && (kept === undefined || isWhole)) {
        // What is kept is refused where other flags are set.
        setFlag("--flush-bytecode")
        write(directory, program, () => ({ data: script.createCachedData(), isWhole }))
      }
      exit(code, isWhole)
    })
}
