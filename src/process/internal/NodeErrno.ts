/** The name of a system error (`"ENOENT"`), or what else an exception says of itself. */
export const errnoName = (cause: unknown): string =>
  cause instanceof Error
    ? ("code" in cause && typeof cause.code === "string" ? cause.code : cause.message)
    : String(cause)

/** Runs `f`; `undefined` when the file or process it looks at is gone or closed to us. */
export const attempt = <A>(f: () => A): A | undefined => {
  try {
    return f()
  } catch {
    return undefined
  }
}
