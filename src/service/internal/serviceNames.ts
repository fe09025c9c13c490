/** What a service may be called: its name stands in units, manifests and paths, its prefix in names of variables. */

const nameRule = /^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/

/** Each name that several have. */
export const repeated = (what: string, named: ReadonlyArray<{ readonly name: string }>): ReadonlyArray<string> => {
  const names = named.map(({ name }) => name)
  return Array.from(new Set(names.filter((name, index) => names.indexOf(name) !== index)))
    .map((name) => `two ${what} are called ${JSON.stringify(name)}: rename one`)
}

export const faults = (name: string, prefix: string): ReadonlyArray<string> => [
  ...(nameRule.test(name)
    ? []
    : [`the service is called ${JSON.stringify(name)}: use 1 to 63 letters, digits and "-", no "-" at the ends`]),
  ...(/^[A-Z][A-Z0-9_]*$/.test(prefix)
    ? []
    : [`the prefix is ${JSON.stringify(prefix)}: use capital letters, digits and "_", a letter first`])
]
