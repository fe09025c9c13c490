/**
 * Holds a value against a schema, and tells every fault with its field, its value and the remedy.
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type { Fault } from "../FirecrackerError.ts"
import { isSure, readerOf } from "./quickly.ts"

const remedyOf: SchemaIssue.LeafHook = (issue) => {
  if (issue._tag === "MissingKey") return "give it: it is needed"
  if (issue._tag === "UnexpectedKey") {
    const known = issue.ast._tag === "Objects" ? issue.ast.propertySignatures.map(({ name }) => String(name)) : []
    return known.length === 0 ? "leave it out" : `leave it out; there are ${known.join(", ")}`
  }
  return SchemaIssue.defaultLeafHook(issue)
}

const issuesOf = SchemaIssue.makeFormatterStandardSchemaV1({ leafHook: remedyOf })

const valueAt = (input: unknown, path: ReadonlyArray<PropertyKey>): unknown =>
  path.reduce<unknown>(
    (value, key) => typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined,
    input
  )

/** `drives[1].path_on_host`; `at` when it is the whole. */
const nameOf = (path: ReadonlyArray<PropertyKey>, at: string): string => {
  if (path.length === 0) return at
  const name = path.map((key) => {
    if (typeof key === "number") return `[${key}]`
    const text = String(key)
    return /^[\w$]+$/.test(text) ? `.${text}` : `[${JSON.stringify(text)}]`
  }).join("")
  return name.startsWith(".") ? name.slice(1) : name
}

/**
 * `at` names the value as a whole. Schemas of requests change nothing, so what comes out is what was given, in the order of
 * the schema.
 */
export const checked = <A>(
  schema: Schema.Decoder<A>,
  at: string
): (input: unknown) => Result.Result<A, ReadonlyArray<Fault>> => {
  const quick = readerOf(schema.ast)
  const isRead = (read: unknown): read is A => isSure(read)
  const decode = Schema.decodeUnknownResult(schema, { errors: "all", onExcessProperty: "error" })
  return (input) => {
    // To look for all faults takes many times as long, and mostly there is none.
    const read = quick(input)
    if (isRead(read)) return Result.succeed(read)
    return Result.mapError(decode(input), ({ issue }) => {
      const faults = new Map<string, Fault>()
      for (const { message, path = [] } of issuesOf(issue).issues) {
        const keys = path.map((segment) => typeof segment === "object" ? segment.key : segment)
        const field = nameOf(keys, at)
        // Of two rules of one field the later one is the narrower, and says it all.
        faults.set(field, { field, value: valueAt(input, keys), remedy: message.replace(/^Expected /, "give ") })
      }
      return [...faults.values()]
    })
  }
}
