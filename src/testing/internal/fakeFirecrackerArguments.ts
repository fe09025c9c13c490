/** The command line as Firecracker and its jailer read it. */

export interface Argument {
  readonly name: string
  readonly kind: "flag" | "value" | "values"
  readonly required?: boolean
  readonly requires?: string
  readonly forbids?: ReadonlyArray<string>
}

export class BadArguments extends Error {
  readonly debug: string

  constructor(text: string, debug: string) {
    super(text)
    this.debug = debug
  }
}

export interface Arguments {
  readonly help: boolean
  readonly version: boolean
  readonly flag: (name: string) => boolean
  readonly value: (name: string) => string | undefined
  readonly values: (name: string) => ReadonlyArray<string> | undefined
  /** What stands behind `--`. */
  readonly extra: ReadonlyArray<string>
}

const bad = (kind: string, names: ReadonlyArray<string>, text: string) =>
  new BadArguments(text, `${kind}(${names.map((name) => JSON.stringify(name)).join(", ")})`)

export const parse = (known: ReadonlyArray<Argument>, argv: ReadonlyArray<string>): Arguments => {
  const end = argv.indexOf("--")
  const own = end < 0 ? argv : argv.slice(0, end)
  const extra = end < 0 ? [] : argv.slice(end + 1)
  const given = new Map<string, Array<string>>()
  const answer: Arguments = {
    help: own.includes("--help") || own.includes("-h"),
    version: own.includes("--version"),
    flag: (name) => given.has(name),
    value: (name) => given.get(name)?.[0],
    values: (name) => given.get(name),
    extra
  }
  // Either wins over all that is wrong with the rest.
  if (answer.help || answer.version) return answer

  const rest = [...own]
  for (let word = rest.shift(); word !== undefined; word = rest.shift()) {
    if (!word.startsWith("--")) {
      throw bad(
        "UnexpectedArgument",
        [word],
        `Found argument '${word}' which wasn't expected, or isn't valid in this context.`
      )
    }
    const name = word.slice(2)
    const argument = known.find((one) => one.name === name)
    if (argument === undefined) {
      throw bad(
        "UnexpectedArgument",
        [name],
        `Found argument '${name}' which wasn't expected, or isn't valid in this context.`
      )
    }
    const former = given.get(name)
    if (former !== undefined && argument.kind !== "values") {
      throw bad("DuplicateArgument", [name], `The argument '${name}' was provided more than once.`)
    }
    if (argument.kind === "flag") {
      given.set(name, [])
      continue
    }
    const value = rest.shift()
    if (value === undefined || value.startsWith("--")) {
      throw bad("MissingValue", [name], `The argument '${name}' requires a value, but none was supplied.`)
    }
    given.set(name, [...former ?? [], value])
  }
  for (const argument of known.toSorted((left, right) => left.name < right.name ? -1 : 1)) {
    const missing = argument.required === true && !given.has(argument.name)
      ? argument.name
      : given.has(argument.name) && argument.requires !== undefined && !given.has(argument.requires)
      ? argument.requires
      : undefined
    if (missing !== undefined) {
      throw bad("MissingArgument", [missing], `Argument '${missing}' required, but not found.`)
    }
    const forbidden = given.has(argument.name) ? argument.forbids?.find((name) => given.has(name)) : undefined
    if (forbidden !== undefined) {
      throw bad(
        "ForbiddenArgument",
        [argument.name, forbidden],
        `Argument '${forbidden}' cannot be used together with argument '${argument.name}'.`
      )
    }
  }
  return answer
}

/** Why a name is none for a machine. */
export const badId = (id: string): { readonly text: string; readonly debug: string } | undefined => {
  const length = Buffer.byteLength(id)
  if (length < 1 || length > 64) {
    return {
      text: `Invalid len (${length});  the length must be between 1 and 64`,
      debug: `InvalidLen(${length}, 1, 64)`
    }
  }
  const characters = Array.from(id)
  const at = characters.findIndex((character) => !/^[\p{Alphabetic}\p{N}-]$/u.test(character))
  return at < 0 ? undefined : {
    text: `Invalid char (${characters[at]}) at position ${at}`,
    debug: `InvalidChar('${characters[at]}', ${at})`
  }
}
