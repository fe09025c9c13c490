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

/** Runs `f`; `undefined` when the file or process it looks at is gone or closed to us. */
export const attempt = <A>(f: () => A): A | undefined => {
  try {
    return f()
  } catch {
    return undefined
  }
}
