/** Names that a machine may ask for: `example.com`, or `*.example.com` for all below it, at any depth, but not itself. */

/** By what is to be looked up: each text in lower case without its last dot, with the texts that were given for it. */
export type Names = ReadonlyMap<string, ReadonlyArray<string>>

const label = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/

const normal = (text: string): string => text.toLowerCase().replace(/\.$/, "")

/** What to give instead of a text that is no name; none if it is one. */
export const remedyFor = (text: string): string | undefined => {
  const name = normal(text).replace(/^\*\./, "")
  if (!/^[ -~]*$/.test(name)) return "give the ASCII form of the name, xn--…"
  if (name.length > 253) return "give a name of 253 letters at most"
  return name.split(".").every((part) => label.test(part))
    ? undefined
    : "give a name such as example.com, or *.example.com for all below it"
}

export const make = (texts: ReadonlyArray<string>): Names => Map.groupBy(new Set(texts), normal)

/** Which of the texts allow a name? */
export const allowing = (names: Names, name: string): ReadonlyArray<string> => {
  const found = [...(names.get(name) ?? [])]
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
    found.push(...(names.get(`*${name.slice(dot)}`) ?? []))
  }
  return found
}
