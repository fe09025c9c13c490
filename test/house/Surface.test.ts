import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, it } from "vitest"
import { isRecord } from "./manifest.ts"
import { root } from "./source.ts"
import { recorded, subpaths, surface, surfaceOf } from "./surface.ts"

describe("surface", () => {
  it("package.json exports each folder of src, and nothing else", () => {
    const folders = readdirSync(join(root, "src")).filter((folder) => existsSync(join(root, "src", folder, "index.ts")))
    expect(subpaths().toSorted()).toEqual(folders.toSorted())
  })

  it("the exported names are the recorded ones (`npm run surface` records them)", () => {
    expect(surface()).toEqual(recorded())
  })

  it.each(subpaths())("%s has at run time the values that its text says", async (subpath) => {
    const loaded: unknown = await import(`../../src/${subpath}/index.ts`)
    const values = Object.entries(surfaceOf(subpath)).map(([name, words]) =>
      [name, words.filter((word) => !word.startsWith("type "))] as const
    )
    if (!isRecord(loaded)) throw new Error("a module is a record")
    expect(Object.keys(loaded).toSorted()).toEqual(values.map(([name]) => name))
    for (const [name, words] of values) expect(Object.keys(loaded[name] ?? {}).toSorted()).toEqual(words)
  })
})
