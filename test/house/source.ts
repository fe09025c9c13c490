/** What a TypeScript file says about itself, read from its syntax tree. */
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseSync } from "vite"

export const root = fileURLToPath(new URL("../..", import.meta.url))

export interface Import {
  readonly specifier: string
  readonly kind: "value" | "type" | "dynamic"
  readonly line: number
}

/** Something written in the file: a name that is used, a string, a type asserted with `as`, a comment. */
export interface Occurrence {
  readonly text: string
  readonly line: number
}

export interface Export {
  readonly name: string
  readonly kind: "value" | "type"
  /** Where it comes from, for `export * as name from "…"`. */
  readonly namespaceOf?: string
}

export interface Module {
  /** Relative to the project, with `/`. */
  readonly path: string
  readonly lines: number
  readonly imports: ReadonlyArray<Import>
  readonly exports: ReadonlyArray<Export>
  /** What is read and not bound in the file: `setTimeout`, `Date.now`, `new Date()`. Without a leading `globalThis.`. */
  readonly globals: ReadonlyArray<Occurrence>
  readonly strings: ReadonlyArray<Occurrence>
  readonly assertions: ReadonlyArray<Occurrence>
  readonly comments: ReadonlyArray<Occurrence>
  /** Whether the file has nothing but imports and re-exports at its top level. */
  readonly onlyReExports: boolean
}

interface Node {
  readonly type: string
  readonly start: number
  readonly [key: string]: unknown
}

const isRecord = (u: unknown): u is Record<string, unknown> => typeof u === "object" && u !== null

const isNode = (u: unknown): u is Node => isRecord(u) && typeof u["type"] === "string" && typeof u["start"] === "number"

const childrenOf = (node: Node): ReadonlyArray<Node> =>
  Object.entries(node).flatMap(([key, value]) => {
    // The name after a dot, or before a colon, is no reference.
    if (node["computed"] === false && (key === "property" || key === "key")) return []
    return (Array.isArray(value) ? value : [value]).filter(isNode)
  })

const nameOf = (u: unknown): string | undefined => {
  if (!isNode(u)) return undefined
  if (u.type === "Identifier") return String(u["name"])
  if (u.type === "Literal") return String(u["value"])
  if (u.type !== "MemberExpression" || u["computed"] === true) return undefined
  const object = nameOf(u["object"])
  const property = nameOf(u["property"])
  return object === undefined || property === undefined
    ? undefined
    : object === "globalThis"
    ? property
    : `${object}.${property}`
}

/** The names a declaration or a binding pattern brings. */
const boundNames = (u: unknown): ReadonlyArray<string> => {
  if (!isNode(u)) return []
  switch (u.type) {
    case "Identifier":
      return [String(u["name"])]
    case "VariableDeclaration":
      return nodesIn(u["declarations"]).flatMap((one) => boundNames(one["id"]))
    case "ObjectPattern":
      return nodesIn(u["properties"]).flatMap((one) => boundNames(one["value"] ?? one["argument"]))
    case "ArrayPattern":
      return nodesIn(u["elements"]).flatMap(boundNames)
    case "AssignmentPattern":
      return boundNames(u["left"])
    case "RestElement":
      return boundNames(u["argument"])
    default:
      return boundNames(u["id"])
  }
}

/** The names that hold below a node, of those that it brings itself. */
const bindingsOf = (node: Node): ReadonlyArray<string> => [
  ...nodesIn(node["params"]).flatMap(boundNames),
  ...(node.type === "Program" || node.type === "BlockStatement" ? nodesIn(node["body"]) : []).flatMap((statement) =>
    statement.type === "ImportDeclaration"
      ? nodesIn(statement["specifiers"]).flatMap((one) => boundNames(one["local"]))
      : statement.type.endsWith("Declaration")
      ? boundNames(statement["declaration"] ?? statement)
      : []
  )
]

const nodesIn = (u: unknown): ReadonlyArray<Node> => Array.isArray(u) ? u.filter(isNode) : []

const typeDeclarations = new Set(["TSInterfaceDeclaration", "TSTypeAliasDeclaration"])

const exportsOf = (statement: Node): ReadonlyArray<Export> => {
  if (statement.type === "ExportDefaultDeclaration") return [{ name: "default", kind: "value" }]
  if (statement.type === "ExportAllDeclaration") {
    const specifier = nameOf(statement["source"]) ?? ""
    return [{
      name: nameOf(statement["exported"]) ?? "*",
      kind: kindOf(statement["exportKind"]),
      namespaceOf: specifier
    }]
  }
  if (statement.type !== "ExportNamedDeclaration") return []
  const declaration = statement["declaration"]
  if (isNode(declaration)) {
    const kind = typeDeclarations.has(declaration.type) ? "type" : "value"
    return boundNames(declaration).map((name) => ({ name, kind }))
  }
  return nodesIn(statement["specifiers"]).map((specifier) => ({
    name: nameOf(specifier["exported"]) ?? "",
    kind: statement["exportKind"] === "type" ? "type" : kindOf(specifier["exportKind"])
  }))
}

const kindOf = (u: unknown): "value" | "type" => u === "type" ? "type" : "value"

const importsOf = (node: Node, line: number): ReadonlyArray<Import> => {
  switch (node.type) {
    case "ImportDeclaration":
    case "ExportAllDeclaration":
    case "ExportNamedDeclaration": {
      const specifier = nameOf(node["source"])
      if (specifier === undefined) return []
      const specifiers = nodesIn(node["specifiers"])
      const isType = node["importKind"] === "type" || node["exportKind"] === "type" ||
        (specifiers.length > 0 &&
          specifiers.every((one) => one["importKind"] === "type" || one["exportKind"] === "type"))
      return [{ specifier, kind: isType ? "type" : "value", line }]
    }
    case "ImportExpression":
      return [{ specifier: nameOf(node["source"]) ?? "(computed)", kind: "dynamic", line }]
    case "TSImportType":
      return [{ specifier: nameOf(node["source"]) ?? "(computed)", kind: "type", line }]
    default:
      return []
  }
}

const reExports = new Set(["ImportDeclaration", "ExportAllDeclaration"])

/** Reads one file. Throws when it is not TypeScript. */
export const parse = (path: string, text: string): Module => {
  const { comments, errors, program } = parseSync(path, text)
  if (errors.length > 0) throw new Error(`${path}: ${errors.map((error) => error.message).join("; ")}`)
  const starts = [0, ...Array.from(text.matchAll(/\n/g), (match) => match.index + 1)]
  const lineAt = (offset: number) => starts.findLastIndex((start) => start <= offset) + 1

  const imports: Array<Import> = []
  const globals: Array<Occurrence> = []
  const strings: Array<Occurrence> = []
  const assertions: Array<Occurrence> = []
  const visit = (node: Node, outer: ReadonlySet<string>): void => {
    const line = lineAt(node.start)
    const bound = new Set([...outer, ...bindingsOf(node)])
    const read = (name: string | undefined, head: string | undefined) => {
      if (name !== undefined && head !== undefined && !bound.has(head)) globals.push({ text: name, line })
    }
    imports.push(...importsOf(node, line))
    switch (node.type) {
      case "Identifier":
      case "MemberExpression": {
        const name = nameOf(node)
        read(name, name?.split(".")[0])
        break
      }
      case "NewExpression": {
        const callee = nameOf(node["callee"])
        read(`new ${callee}(${nodesIn(node["arguments"]).length === 0 ? "" : "…"})`, callee)
        break
      }
      case "Literal":
        if (typeof node["value"] === "string") strings.push({ text: node["value"], line })
        break
      case "TSAsExpression":
      case "TSTypeAssertion":
        if (isNode(node["typeAnnotation"])) {
          const { end, start } = node["typeAnnotation"]
          assertions.push({ text: text.slice(start, Number(end)), line })
        }
        break
    }
    for (const child of childrenOf(node)) visit(child, bound)
  }
  if (isNode(program)) visit(program, new Set())

  const statements = nodesIn(program.body)
  return {
    path,
    lines: starts.length - (text.endsWith("\n") ? 1 : 0),
    imports,
    exports: statements.flatMap(exportsOf),
    globals,
    strings,
    assertions,
    comments: comments.map((comment) => ({ text: comment.value, line: lineAt(comment.start) })),
    onlyReExports: statements.every((one) =>
      reExports.has(one.type) || (one.type === "ExportNamedDeclaration" && one["source"] !== null)
    )
  }
}

/** The `.ts` files below a folder of the project, in a stable order. */
export const filesBelow = (folder: string): ReadonlyArray<string> =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => `${folder}/${name}`)
    .toSorted()

export const readText = (path: string): string => readFileSync(join(root, path), "utf8")

export const modulesBelow = (folder: string): ReadonlyArray<Module> =>
  filesBelow(folder).map((path) => parse(path, readText(path)))
