/** JSON read the way `serde_json` reads it into structs: the same refusals, with the same words at the same place. */

/** A refusal, with the place it is told with. */
export class Refused extends Error {
  readonly text: string
  readonly at: number | undefined

  constructor(text: string, at?: number) {
    super(text)
    this.text = text
    this.at = at
  }
}

/** How a value is read. What a type is called is what an error says was expected. */
export interface Shape<out A> {
  readonly read: (reader: Reader) => A
  /** Absent is a value of it, such as for an `Option`. */
  readonly absent: (() => A) | undefined
  /** Also at the end of a list that is read as a struct. */
  readonly defaulted: boolean
}

const digits = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/
const code = (character: string): number => character.charCodeAt(0)
const OPEN = code("{")
const CLOSE = code("}")
const LIST = code("[")
const LIST_END = code("]")
const COMMA = code(",")
const QUOTE = code("\"")

/** How a number that is no integer is printed: its power of ten with a plus, or (the older way) without. */
type Exponent = "e+" | "e"

const floatText = (value: number, exponent: Exponent): string => {
  const text = Math.abs(value) >= 1e16 ? value.toExponential() : String(value)
  return /[.e]/.test(text) ? text.replace("e+", exponent) : `${text}.0`
}

/** What has no room in 64 bits is read as one that is no integer. */
const isInteger = (text: string): boolean =>
  /^-?\d+$/.test(text) && BigInt(text) < 2n ** 64n && BigInt(text) >= -(2n ** 63n)

/** A position in the bytes of a document. */
class Reader {
  readonly bytes: Uint8Array
  readonly exponent: Exponent
  index = 0

  constructor(bytes: Uint8Array, exponent: Exponent) {
    this.bytes = bytes
    this.exponent = exponent
  }

  /** The next byte that is no white space, which is not taken. */
  peek(): number | undefined {
    while (true) {
      const byte = this.bytes[this.index]
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x09 && byte !== 0x0d) return byte
      this.index++
    }
  }

  /** An error of syntax is told at the byte that is wrong. */
  wrong(text: string): Refused {
    return new Refused(text, Math.min(this.bytes.length, this.index + 1))
  }

  /** Gives an error that has no place the present one. */
  placing<A>(read: () => A): A {
    try {
      return read()
    } catch (error) {
      throw error instanceof Refused && error.at === undefined ? new Refused(error.text, this.index) : error
    }
  }

  word(text: string): void {
    for (const character of text) {
      const byte = this.bytes[this.index]
      if (byte === undefined) throw new Refused("EOF while parsing a value", this.index)
      this.index++
      if (byte !== code(character)) throw new Refused("expected ident", this.index)
    }
  }

  /** The text of a number. What follows is left. */
  number(): string {
    const text = Buffer.from(this.bytes.subarray(this.index, this.index + 400)).toString("latin1")
    const found = digits.exec(text)?.[0]
    if (found === undefined || (/^-?0$/.test(found) && /^\d/.test(text.slice(found.length)))) {
      this.index += text.startsWith("-") ? 1 : 0
      throw this.wrong("invalid number")
    }
    this.index += found.length
    return found
  }

  string(): string {
    const start = this.index
    this.index++
    while (true) {
      const byte = this.bytes[this.index]
      if (byte === undefined) throw new Refused("EOF while parsing a string", this.index)
      if (byte < 0x20) {
        this.index++
        throw new Refused("control character (\\u0000-\\u001F) found while parsing a string", this.index)
      }
      this.index += byte === 0x5c ? 2 : 1
      if (byte === QUOTE) break
    }
    try {
      const read: unknown = JSON.parse(Buffer.from(this.bytes.subarray(start, this.index)).toString("utf8"))
      return String(read)
    } catch {
      throw new Refused("invalid escape", this.index)
    }
  }

  /** "invalid type: …" for what comes next. */
  unexpected(expected: string): Refused {
    const told = (what: string) =>
      this.placing(() => new Refused(`invalid type: ${what}, expected ${expected}`, this.index))
    const byte = this.peek()
    switch (byte) {
      case undefined:
        return this.wrong("EOF while parsing a value")
      case code("n"):
        this.word("null")
        return told("null")
      case code("t"):
        this.word("true")
        return told("boolean `true`")
      case code("f"):
        this.word("false")
        return told("boolean `false`")
      case QUOTE:
        return told(`string ${JSON.stringify(this.string())}`)
      case LIST:
        return told("sequence")
      case OPEN:
        return told("map")
      default: {
        if (byte !== code("-") && (byte < 0x30 || byte > 0x39)) return this.wrong("expected value")
        const text = this.number()
        return told(
          isInteger(text) ? `integer \`${text}\`` : `floating point \`${floatText(Number(text), this.exponent)}\``
        )
      }
    }
  }

  /** The elements between two brackets; `element` is called at the start of each. */
  elements(close: number, element: () => void): void {
    const unended = close === CLOSE ? "EOF while parsing an object" : "EOF while parsing a list"
    let first = true
    while (true) {
      let byte = this.peek()
      if (byte === close) return
      if (byte === undefined) throw this.wrong(unended)
      if (!first) {
        if (byte !== COMMA) throw this.wrong(close === CLOSE ? "expected `,` or `}`" : "expected `,` or `]`")
        this.index++
        byte = this.peek()
        if (byte === close) throw this.wrong("trailing comma")
        if (byte === undefined) throw this.wrong("EOF while parsing a value")
      }
      if (close === CLOSE && byte !== QUOTE) throw this.wrong("key must be a string")
      first = false
      element()
    }
  }

  colon(): void {
    const byte = this.peek()
    if (byte === undefined) throw this.wrong("EOF while parsing an object")
    if (byte !== code(":")) throw this.wrong("expected `:`")
    this.index++
  }

  /**
   * What `read` makes of what is between two brackets. The end is looked for even where that has failed, which decides what
   * place the failure is told with.
   */
  between<A>(close: number, read: () => A): A {
    return this.placing(() => {
      this.index++
      let failure: unknown
      let result: { readonly value: A } | undefined
      try {
        result = { value: read() }
      } catch (error) {
        failure = error
      }
      const byte = this.peek()
      if (byte === close) this.index++
      if (result === undefined) throw failure
      if (byte === close) return result.value
      throw this.wrong(
        byte === COMMA
          ? "trailing comma"
          : byte === undefined
          ? close === CLOSE ? "EOF while parsing an object" : "EOF while parsing a list"
          : "trailing characters"
      )
    })
  }
}

const shape = <A>(read: (reader: Reader) => A): Shape<A> => ({ read, absent: undefined, defaulted: false })

const integer = (name: string, bits: number): Shape<number> =>
  shape((reader) =>
    reader.placing(() => {
      const byte = reader.peek()
      if (byte === undefined) throw reader.wrong("EOF while parsing a value")
      if (byte !== code("-") && (byte < 0x30 || byte > 0x39)) throw reader.unexpected(name)
      const text = reader.number()
      if (!isInteger(text)) {
        throw new Refused(
          `invalid type: floating point \`${floatText(Number(text), reader.exponent)}\`, expected ${name}`
        )
      }
      if (text.startsWith("-") || BigInt(text) >= 2n ** BigInt(bits)) {
        throw new Refused(`invalid value: integer \`${text}\`, expected ${name}`)
      }
      return Number(text)
    })
  )

export const u8 = integer("u8", 8)
export const u16 = integer("u16", 16)
export const u32 = integer("u32", 32)
export const u64 = integer("u64", 64)
export const usize = integer("usize", 64)

export const bool: Shape<boolean> = shape((reader) => {
  const byte = reader.peek()
  if (byte === code("t")) reader.word("true")
  else if (byte === code("f")) reader.word("false")
  else throw reader.unexpected("a boolean")
  return byte === code("t")
})

/** A string that `check` may refuse: inside of the reading of the string, or after it. */
const text = <A>(expected: string, check: (value: string) => A, when: "within" | "after"): Shape<A> =>
  shape((reader) => {
    if (reader.peek() !== QUOTE) throw reader.unexpected(expected)
    const value = reader.string()
    return when === "within" ? reader.placing(() => check(value)) : check(value)
  })

export const string: Shape<string> = text("a string", (value) => value, "after")
export const path: Shape<string> = text("path string", (value) => value, "after")
/** A string that a type reads for itself once it has it. */
export const parsed = <A>(parse: (value: string) => A): Shape<A> => text("a string", parse, "after")
export const parsedWithin = <A>(expected: string, parse: (value: string) => A): Shape<A> =>
  text(expected, parse, "within")

export const option = <A>(inner: Shape<A>): Shape<A | undefined> => ({
  read: (reader) => {
    if (reader.peek() !== code("n")) return inner.read(reader)
    reader.word("null")
    return undefined
  },
  absent: () => undefined,
  defaulted: false
})

export const withDefault = <A>(inner: Shape<A>, value: A): Shape<A> => ({
  read: inner.read,
  absent: () => value,
  defaulted: true
})

const listed = (names: ReadonlyArray<string>): string => {
  const quoted = names.map((name) => `\`${name}\``)
  return quoted.length === 0
    ? "there are no"
    : quoted.length > 2
    ? `expected one of ${quoted.join(", ")}`
    : `expected ${quoted.join(" or ")}`
}

export const variant = <const Name extends string>(names: ReadonlyArray<Name>): Shape<Name> =>
  shape((reader) => {
    const byte = reader.peek()
    if (byte === undefined) throw reader.wrong("EOF while parsing a value")
    if (byte === OPEN) reader.index++
    if (reader.peek() !== QUOTE) throw reader.wrong("expected value")
    return reader.placing(() => {
      const found = reader.string()
      const known = names.find((name) => name === found)
      if (known === undefined) throw new Refused(`unknown variant \`${found}\`, ${listed(names)}`)
      return known
    })
  })

export const list = <A>(inner: Shape<A>): Shape<ReadonlyArray<A>> =>
  shape((reader) => {
    if (reader.peek() !== LIST) throw reader.unexpected("a sequence")
    return reader.between(LIST_END, () => {
      const values: Array<A> = []
      reader.elements(LIST_END, () => values.push(inner.read(reader)))
      return values
    })
  })

const keyed = <A>(expected: string, inner: Shape<A>): Shape<ReadonlyMap<string, A>> =>
  shape((reader) => {
    if (reader.peek() !== OPEN) throw reader.unexpected(expected)
    return reader.between(CLOSE, () => {
      const values = new Map<string, A>()
      reader.elements(CLOSE, () => {
        const key = reader.string()
        reader.colon()
        values.set(key, inner.read(reader))
      })
      return values
    })
  })

export const record = <A>(inner: Shape<A>): Shape<ReadonlyMap<string, A>> => keyed("a map", inner)

export type Json = null | boolean | number | string | ReadonlyArray<Json> | { readonly [key: string]: Json }

/** Any value. The keys of an object are in order, as they are in what is printed of it. */
export const json: Shape<Json> = shape((reader): Json => {
  const byte = reader.peek()
  switch (byte) {
    case code("n"):
      reader.word("null")
      return null
    case code("t"):
    case code("f"):
      return bool.read(reader)
    case QUOTE:
      return reader.string()
    case LIST:
      return list(json).read(reader)
    case OPEN: {
      const entries = [...keyed("a map", json).read(reader)]
      return Object.fromEntries(entries.toSorted(([left], [right]) => left < right ? -1 : 1))
    }
    default:
      if (byte === undefined) throw reader.wrong("EOF while parsing a value")
      if (byte !== code("-") && (byte < 0x30 || byte > 0x39)) throw reader.wrong("expected value")
      return Number(reader.number())
  }
})

/** A field that a release knows, or does not know yet. */
export interface Field<out A> {
  readonly shape: Shape<A>
  readonly known: boolean
}

type Fields = Readonly<Record<string, Shape<unknown> | Field<unknown>>>
type Read<F> = F extends Field<infer A> ? A : F extends Shape<infer A> ? A : never

export type Struct<F extends Fields> = { readonly [K in keyof F]: Read<F[K]> }

/** A struct with its fields in order. `open`: those that it does not know are passed over. */
export const struct = <const F extends Fields>(
  name: string,
  fields: F,
  open: "open" | "closed" = "closed"
): Shape<Struct<F>> => {
  const all = Object.entries(fields).map(([key, field]) =>
    "shape" in field ? { key, shape: field.shape, known: field.known } : { key, shape: field, known: true }
  )
  const known = all.filter((field) => field.known)
  const isWhole = (values: ReadonlyMap<string, unknown>, value: unknown): value is Struct<F> =>
    value !== undefined && all.every(({ key }) => values.has(key))
  const whole = (values: Map<string, unknown>): Struct<F> => {
    for (const field of all) {
      if (values.has(field.key)) continue
      if (field.shape.absent === undefined) throw new Refused(`missing field \`${field.key}\``)
      values.set(field.key, field.shape.absent())
    }
    const value: unknown = Object.fromEntries(values)
    if (!isWhole(values, value)) throw new TypeError(`${name} is incomplete`)
    return value
  }
  return shape((reader) => {
    const byte = reader.peek()
    if (byte === LIST) {
      return reader.between(LIST_END, () => {
        const values = new Map<string, unknown>()
        let at = 0
        reader.elements(LIST_END, () => {
          const field = known[at++]
          if (field === undefined) throw reader.wrong("trailing characters")
          values.set(field.key, field.shape.read(reader))
        })
        const missing = known.findIndex((field, index) => index >= at && !field.shape.defaulted)
        if (missing >= 0) {
          throw new Refused(
            `invalid length ${missing}, expected struct ${name} with ${known.length} element${
              known.length === 1 ? "" : "s"
            }`
          )
        }
        return whole(values)
      })
    }
    if (byte !== OPEN) throw reader.unexpected(`struct ${name}`)
    return reader.between(CLOSE, () => {
      const values = new Map<string, unknown>()
      reader.elements(CLOSE, () => {
        const key = reader.string()
        const field = known.find((one) => one.key === key)
        if (field === undefined && open === "closed") {
          throw new Refused(`unknown field \`${key}\`, ${listed(known.map((one) => one.key))}`)
        }
        if (values.has(key) && field !== undefined) throw new Refused(`duplicate field \`${key}\``)
        reader.colon()
        if (field === undefined) json.read(reader)
        else values.set(key, field.shape.read(reader))
      })
      return whole(values)
    })
  })
}

/** Reads a whole document. What is refused is thrown as `Refused`, its text as `serde_json` prints it. */
export const parse = <A>(of: Shape<A>, bytes: Uint8Array, exponent: Exponent = "e+"): A => {
  const reader = new Reader(bytes, exponent)
  try {
    const value = of.read(reader)
    if (reader.peek() !== undefined) throw reader.wrong("trailing characters")
    return value
  } catch (error) {
    if (!(error instanceof Refused) || error.at === undefined) throw error
    const before = Buffer.from(bytes.subarray(0, error.at))
    const line = before.lastIndexOf(0x0a) + 1
    const lines = before.subarray(0, line).reduce((count, byte) => byte === 0x0a ? count + 1 : count, 1)
    throw new Refused(`${error.text} at line ${lines} column ${before.length - line}`)
  }
}
