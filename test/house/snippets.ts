/** The code that documentation shows, found and made runnable. */
import { parseSync } from "vite"

export interface Snippet {
  readonly path: string
  /** Of its first line of code. */
  readonly line: number
  /** What stands after the backticks. */
  readonly tag: string
  readonly code: string
}

/** The tag of an example in a JSDoc comment that is run with the tests. */
export const exampleTag = "ts import.meta.vitest"

/** The fenced blocks of a markdown text, or, in a `.ts` file, of its JSDoc comments. */
export const snippets = (path: string, text: string): ReadonlyArray<Snippet> => {
  const opening = path.endsWith(".ts") ? /^[ \t]*\*[ \t]?```(.*)$/ : /^[ \t]*```(.*)$/
  const margin = path.endsWith(".ts") ? /^[ \t]*\*[ \t]?/ : /^/
  const found: Array<Snippet> = []
  let open: { readonly tag: string; readonly line: number; readonly code: Array<string> } | undefined
  for (const [index, line] of text.split("\n").entries()) {
    const tag = opening.exec(line)?.[1]?.trim()
    if (open === undefined) {
      if (tag !== undefined) open = { tag, line: index + 2, code: [] }
    } else if (tag === "") {
      found.push({ path, line: open.line, tag: open.tag, code: open.code.join("\n") })
      open = undefined
    } else open.code.push(line.replace(margin, ""))
  }
  if (open !== undefined) throw new Error(`${path}:${open.line - 1}: a fence is not closed`)
  return found
}

interface Edit {
  readonly start: number
  readonly end: number
  readonly text: string
}

const assertion = /^[ \t]*\/\/ => (.+)/

/**
 * Turns `expression // => expected` and `const name = … // => expected` at the top level of an example into a call of
 * `__check(actual, expected)`; and its imports into `await import(…)`, when it is to run inside of a function.
 */
export const runnable = (code: string, options: { readonly insideFunction: boolean }): string => {
  const { comments, errors, program } = parseSync("example.ts", code)
  if (errors.length > 0) throw new Error(errors.map((error) => error.message).join("; "))
  const edits: Array<Edit> = []
  let checks = 0
  for (const statement of program.body) {
    const expected = assertion.exec(code.slice(statement.end).split("\n", 1)[0] ?? "")?.[1]
    if (statement.type === "ExpressionStatement" && expected !== undefined) {
      const { end, start } = statement.expression
      edits.push({
        start: statement.start,
        end: statement.end,
        text: `;__check(${code.slice(start, end)}, (${expected}));`
      })
      checks++
    }
    if (statement.type === "VariableDeclaration" && expected !== undefined) {
      const names = statement.declarations.flatMap(({ id }) => id.type === "Identifier" ? [id.name] : [])
      for (const name of names) {
        edits.push({ start: statement.end, end: statement.end, text: `; __check(${name}, (${expected}))` })
      }
      checks += names.length
    }
    if (statement.type === "ImportDeclaration" && options.insideFunction) {
      const from = JSON.stringify(statement.source.value)
      const bindings = statement.importKind === "type" ? [] : statement.specifiers.flatMap((specifier) => {
        switch (specifier.type) {
          case "ImportNamespaceSpecifier":
            return [`const ${specifier.local.name} = await import(${from});`]
          case "ImportDefaultSpecifier":
            return [`const { default: ${specifier.local.name} } = await import(${from});`]
          case "ImportSpecifier": {
            const name = specifier.imported.type === "Literal"
              ? JSON.stringify(specifier.imported.value)
              : specifier.imported.name
            return specifier.importKind === "type"
              ? []
              : [`const { ${name}: ${specifier.local.name} } = await import(${from});`]
          }
        }
      })
      edits.push({ start: statement.start, end: statement.end, text: bindings.join(" ") })
    }
  }
  const written = comments.filter(({ value }) => value.startsWith(" => ")).length
  if (written !== checks) {
    throw new Error(
      "a `// =>` is not behind an expression or a `const name = …` at the top level, so nothing would check it"
    )
  }
  return edits.toReversed().reduce((text, edit) => text.slice(0, edit.start) + edit.text + text.slice(edit.end), code)
}
