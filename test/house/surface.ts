/**
 * What the package exports: for each subpath its modules, for each module its names. `npm run surface` writes it down in
 * surface.json, so that a change of it is a line to read in a review.
 */
import { readFileSync, writeFileSync } from "node:fs"
import { posix } from "node:path"
import { fileURLToPath } from "node:url"
import { isRecord, readManifest } from "./manifest.ts"
import { type Export, parse, readText, root } from "./source.ts"

export type Surface = Readonly<Record<string, Readonly<Record<string, ReadonlyArray<string>>>>>

const word = ({ kind, name }: Export): string => kind === "type" ? `type ${name}` : name

/** The subpaths of package.json that lead to a folder of `src`. */
export const subpaths = (): ReadonlyArray<string> => {
  const { exports } = readManifest(root)
  if (!isRecord(exports)) throw new Error("package.json has no exports")
  return Object.entries(exports).flatMap(([path, to]) => isRecord(to) ? [path.slice("./".length)] : [])
}

/** The surface of one folder of `src`. */
export const surfaceOf = (folder: string): Surface[string] => {
  const index = `src/${folder}/index.ts`
  const modules = parse(index, readText(index)).exports.map(({ name, namespaceOf }) => {
    if (namespaceOf === undefined || name === "*") {
      throw new Error(`${index}: only \`export * as Name from "./Name.ts"\``)
    }
    const path = posix.join("src", folder, namespaceOf)
    return [name, parse(path, readText(path)).exports.map(word).toSorted()] as const
  })
  return Object.fromEntries(modules.toSorted(([a], [b]) => a < b ? -1 : 1))
}

export const surface = (): Surface => Object.fromEntries(subpaths().map((folder) => [folder, surfaceOf(folder)]))

const file = fileURLToPath(new URL("surface.json", import.meta.url))

export const recorded = (): unknown => JSON.parse(readFileSync(file, "utf8"))

if (import.meta.main) writeFileSync(file, `${JSON.stringify(surface(), null, 2)}\n`)
