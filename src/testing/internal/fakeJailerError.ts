import { ioError } from "./fakeFirecrackerWorld.ts"

/** What a jailer ends with: for people, and for programmers. */
export class JailerError extends Error {
  readonly debug: string

  constructor(text: string, debug: string) {
    super(text)
    this.debug = debug
  }
}

/** An error by its name in the program. `%s` stands for what the system says. */
export const refuse = (
  name: string,
  text: string,
  values: ReadonlyArray<string>,
  error?: unknown,
  system: "first" | "last" = "last"
): JailerError => {
  const cause = error === undefined ? undefined : ioError(error)
  const shown = values.map((value) => JSON.stringify(value))
  const all = cause === undefined ? shown : system === "first" ? [cause.debug, ...shown] : [...shown, cause.debug]
  return new JailerError(
    text.replace("%s", () => cause?.text ?? ""),
    all.length === 0 ? name : `${name}(${all.join(", ")})`
  )
}
