import * as NodeFs from "node:fs"

/** The name of a system error (`"ENOENT"`), or what else an exception says of itself. */
export const errnoName = (cause: unknown): string =>
  cause instanceof Error
    ? ("code" in cause && typeof cause.code === "string" ? cause.code : cause.message)
    : String(cause)

/** The same error with nothing but its system error: what Node throws for a spawn also has all arguments, secrets too. */
export const withoutArguments = (cause: unknown): unknown => {
  if (!(cause instanceof Error) || !("code" in cause)) return cause
  const { code } = cause
  const errno = "errno" in cause ? cause.errno : undefined
  const syscall = "syscall" in cause ? cause.syscall : undefined
  return Object.assign(new Error(`spawn ${errnoName(cause)}`), { code, errno, syscall })
}

/** A descriptor that is open for nothing but to be closed when there is no other. */
let reserve: number | undefined
/** Has another thread taken its place, as one that opens a file for us may do just then? */
let isLost = false

/** Keeps the reserve from now on, or again. */
export const keepReserve = (): void => {
  try {
    reserve ??= NodeFs.openSync("/dev/null", "r")
    isLost = false
  } catch {
    // There is none left by now.
    isLost = true
  }
}

const once = <A>(f: () => A): A => {
  const result = f()
  if (isLost) keepReserve()
  return result
}

/** Has this process no descriptor left, or the whole machine no file? */
export const isShortage = (cause: unknown): boolean => ["EMFILE", "ENFILE"].includes(errnoName(cause))

const again = <A>(f: () => A, cause: unknown): A => {
  if (!isShortage(cause) || reserve === undefined) throw cause
  NodeFs.closeSync(reserve)
  reserve = undefined
  try {
    return f()
  } finally {
    keepReserve()
  }
}

/**
 * Runs `f`, which opens one descriptor and closes it again; once more in place of the reserve when there is none left (EMFILE,
 * ENFILE). What cannot be looked at would be taken for gone, and a process that nobody has ended for one that has.
 */
export const withReserve = <A>(f: () => A): A => {
  try {
    return once(f)
  } catch (cause) {
    return again(f, cause)
  }
}

/** Runs `f` like `withReserve`; `undefined` when the file or process it looks at is gone or closed to us. */
export const attempt = <A>(f: () => A): A | undefined => {
  try {
    return once(f)
  } catch (cause) {
    try {
      return again(f, cause)
    } catch {
      return undefined
    }
  }
}

/** O_PATH, which Node does not name. */
export const pathOnly = 0o10000000

/**
 * Throws EMFILE or ENFILE unless a child with so many pipes can be started: two descriptors for each, and two by which libuv hears
 * of its execve(2). When it has the pipes and not these, Node never closes the pipes.
 */
export const needDescriptors = (pipes: number): void => {
  const taken: Array<number> = []
  try {
    while (taken.length < 2 * pipes + 2) taken.push(NodeFs.openSync("/", pathOnly))
  } finally {
    taken.forEach((fd) => NodeFs.closeSync(fd))
  }
}
