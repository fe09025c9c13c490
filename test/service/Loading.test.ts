import { assert, describe, it } from "@effect/vitest"
import { posix } from "node:path"
import { type Module, parse, readText } from "../house/source.ts"

/** Everything that is loaded with a module: what it imports at once, and what that imports. */
const loadedWith = (path: string, loaded = new Map<string, Module>()): ReadonlyMap<string, Module> => {
  if (loaded.has(path)) return loaded
  const module = parse(path, readText(path))
  loaded.set(path, module)
  for (const { kind, specifier } of module.imports) {
    if (kind === "value" && specifier.startsWith(".")) loadedWith(posix.join(posix.dirname(path), specifier), loaded)
  }
  return loaded
}

/** As much to load as all the rest of a service: for those that serve or ask somebody over HTTP. */
const isHeavy = (specifier: string): boolean =>
  /^effect\/(http|http-api|observability)\/|^node:https?$|^@effect\/platform-node\/Node(Http|WS)/.test(specifier)

describe("what a service loads", () => {
  const loaded = loadedWith("src/service/index.ts")

  it("is known", () => {
    assert.include([...loaded.keys()], "src/service/NodeHttpListener.ts")
  })

  it("has nothing of HTTP before a part of it needs that", () => {
    const heavy = [...loaded.values()].flatMap(({ imports, path }) =>
      imports.filter(({ kind, specifier }) => kind === "value" && isHeavy(specifier)).map(({ line, specifier }) =>
        `${path}:${line} loads ${specifier}: import it where it is used, or as a type`
      )
    )
    assert.deepStrictEqual(heavy, [])
  })
})
