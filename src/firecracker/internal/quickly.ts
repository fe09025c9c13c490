/**
 * The short way to what most bodies are: right. A schema is read once and becomes functions, which make nothing but the copy of
 * what they are given. They know the plain parts of schemas only, and never say why not.
 */
import * as SchemaAST from "effect/SchemaAST"

/** Not right: ask the schema why. */
const wrong = Symbol("wrong")
/** Not known here: what would be right by what comes after it may be read otherwise by this. */
const unknown = Symbol("unknown")

type Read = (input: unknown) => unknown

/** Has it been read? Else, ask the schema. */
export const isSure = (read: unknown): boolean => read !== wrong && read !== unknown

const options: SchemaAST.ParseOptions = {}

const that = (is: (input: unknown) => boolean): Read => (input) => is(input) ? input : wrong

const unread: Read = () => unknown

const objects = (ast: SchemaAST.Objects): Read => {
  const fields = ast.propertySignatures.map(({ name, type }) => ({
    name,
    // A transformation may make something of nothing.
    isOptional: SchemaAST.isOptional(type) && type.encoding === undefined,
    read: readerOf(type)
  }))
  if (fields.some(({ name }) => name === "__proto__")) return unread
  return (input) => {
    if (typeof input !== "object" || input === null || Array.isArray(input)) return wrong
    const copy: Record<PropertyKey, unknown> = {}
    let known = 0
    for (const { isOptional, name, read } of fields) {
      if (!Object.hasOwn(input, name)) {
        if (isOptional && !(name in input)) continue
        return unknown
      }
      const value = read(Reflect.get(input, name))
      if (!isSure(value)) return value
      copy[name] = value
      known++
    }
    return Reflect.ownKeys(input).length === known ? copy : wrong
  }
}

const list = (read: Read): Read => (input) => {
  if (!Array.isArray(input)) return wrong
  const copy: Array<unknown> = []
  // By its numbers: what it says of itself when it is walked is another matter.
  for (let at = 0; at < input.length; at++) {
    const value = read(input[at])
    if (!isSure(value)) return value
    copy.push(value)
  }
  return copy
}

const union = (reads: ReadonlyArray<Read>): Read => (input) => {
  for (const read of reads) {
    const value = read(input)
    if (value !== wrong) return value
  }
  return wrong
}

const shapeOf = (ast: SchemaAST.AST): Read => {
  switch (ast._tag) {
    case "String":
      return that((input) => typeof input === "string")
    case "Number":
      return that((input) => typeof input === "number")
    case "Boolean":
      return that((input) => typeof input === "boolean")
    case "Undefined":
      return that((input) => input === undefined)
    case "Literal":
      return that((input) => input === ast.literal)
    case "Objects":
      return ast.indexSignatures.length === 0 && ast.propertySignatures.length > 0 ? objects(ast) : unread
    case "Arrays": {
      const [rest, ...more] = ast.rest
      return rest !== undefined && more.length === 0 && ast.elements.length === 0 ? list(readerOf(rest)) : unread
    }
    case "Union":
      return ast.options?.mode === "oneOf" ? unread : union(ast.types.map(readerOf))
    default:
      return unread
  }
}

const passes = (check: SchemaAST.Check<unknown>, value: unknown, ast: SchemaAST.AST): boolean =>
  check._tag === "FilterGroup"
    ? check.checks.every((one) => passes(one, value, ast))
    : check.run(value, ast, options) === undefined

/** What reads a value as the schema would: a copy without anything that the schema does not tell of. It may not be sure. */
export const readerOf = (ast: SchemaAST.AST): Read => {
  const { checks, encoding } = ast
  if (encoding !== undefined || Reflect.get(ast, "encodingChecks") !== undefined) return unread
  const read = shapeOf(ast)
  if (checks === undefined) return read
  return (input) => {
    const value = read(input)
    return !isSure(value) || checks.every((check) => passes(check, value, ast)) ? value : wrong
  }
}
