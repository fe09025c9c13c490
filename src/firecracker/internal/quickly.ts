/**
 * The short way to what most bodies are: right. A schema is read once and becomes functions, which make nothing but the copy of
 * what they are given. They know the plain parts of schemas only, and never say why not.
 */
import * as SchemaAST from "effect/SchemaAST"

/** Not right, or not known here: ask the schema. */
export const unsure = Symbol("unsure")

type Read = (input: unknown) => unknown

const options: SchemaAST.ParseOptions = {}

const that = (is: (input: unknown) => boolean): Read => (input) => is(input) ? input : unsure

const objects = (ast: SchemaAST.Objects): Read => {
  const fields = ast.propertySignatures.map(({ name, type }) => ({
    name,
    isOptional: SchemaAST.isOptional(type),
    read: readerOf(type)
  }))
  return (input) => {
    if (typeof input !== "object" || input === null || Array.isArray(input)) return unsure
    const copy: Record<PropertyKey, unknown> = {}
    let known = 0
    for (const { isOptional, name, read } of fields) {
      if (!Object.hasOwn(input, name)) {
        if (isOptional && !(name in input)) continue
        return unsure
      }
      const value = read(Reflect.get(input, name))
      if (value === unsure) return unsure
      copy[name] = value
      known++
    }
    return Reflect.ownKeys(input).length === known ? copy : unsure
  }
}

const list = (read: Read): Read => (input) => {
  if (!Array.isArray(input)) return unsure
  const copy = Array.from(input, read)
  return copy.includes(unsure) ? unsure : copy
}

const union = (reads: ReadonlyArray<Read>): Read => (input) => {
  for (const read of reads) {
    const value = read(input)
    if (value !== unsure) return value
  }
  return unsure
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
      return ast.indexSignatures.length === 0 && ast.propertySignatures.length > 0 ? objects(ast) : () => unsure
    case "Arrays": {
      const [rest, ...more] = ast.rest
      return rest !== undefined && more.length === 0 && ast.elements.length === 0 ? list(readerOf(rest)) : () => unsure
    }
    case "Union":
      return ast.options?.mode === "oneOf" ? () => unsure : union(ast.types.map(readerOf))
    default:
      return () => unsure
  }
}

const passes = (check: SchemaAST.Check<unknown>, value: unknown, ast: SchemaAST.AST): boolean =>
  check._tag === "FilterGroup"
    ? check.checks.every((one) => passes(one, value, ast))
    : check.run(value, ast, options) === undefined

/** What reads a value as the schema would: a copy without anything that the schema does not tell of, or `unsure`. */
export const readerOf = (ast: SchemaAST.AST): Read => {
  const { checks, encoding } = ast
  if (encoding !== undefined || Reflect.get(ast, "encodingChecks") !== undefined) return () => unsure
  const read = shapeOf(ast)
  if (checks === undefined) return read
  return (input) => {
    const value = read(input)
    return value === unsure || checks.every((check) => passes(check, value, ast)) ? value : unsure
  }
}
