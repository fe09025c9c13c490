import { relative } from "node:path"
import { fileURLToPath } from "node:url"
import type { Plugin } from "vite"
import { exampleTag, runnable, snippets } from "./snippets.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const check = fileURLToPath(new URL("./check.ts", import.meta.url))

/** Makes a test of each marked example in the JSDoc comments of a module, in the module itself. */
export const doctest = (): Plugin => ({
  name: "doctest",
  enforce: "pre",
  transform: {
    filter: { id: /\/src\/.*\.ts$/, code: exampleTag },
    handler: (code, id) => {
      const examples = snippets(id, code).filter(({ tag }) => tag === exampleTag)
      const tests = examples.map((example) => {
        const name = JSON.stringify(`${relative(root, id)}:${example.line}`)
        try {
          return `it(${name}, async () => {\n${runnable(example.code, { insideFunction: true })}\n})`
        } catch (error) {
          return `it(${name}, () => { throw new Error(${JSON.stringify(String(error))}) })`
        }
      })
      const suite = [
        `const { it } = import.meta.vitest`,
        `const { check: __check } = await import(${JSON.stringify(check)})`,
        ...tests
      ]
      return { code: `${code}\nif (import.meta.vitest) {\n${suite.join("\n")}\n}\n`, map: null }
    }
  }
})
