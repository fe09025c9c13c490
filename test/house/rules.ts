/** The rules of the house, as functions from modules to what is wrong with them. */
import { posix } from "node:path"
import type { Module, Occurrence } from "./source.ts"

export interface Violation {
  /** `path:line` */
  readonly at: string
  readonly what: string
}

/** Which folder of `src` may import which: the levels of the design, as data. */
export const mayImport: Readonly<Record<string, ReadonlyArray<string>>> = {
  lifecycle: [],
  process: ["lifecycle"],
  microvm: ["lifecycle"],
  guest: ["lifecycle"],
  service: ["lifecycle", "process"],
  journal: ["lifecycle", "process"],
  image: ["lifecycle", "process"],
  host: ["lifecycle", "process", "journal"],
  firecracker: ["lifecycle", "process", "journal", "host", "microvm"],
  qemu: ["lifecycle", "process", "journal", "host", "microvm"],
  warm: ["lifecycle", "process", "microvm", "guest", "image"],
  supervisor: ["lifecycle", "process", "microvm", "journal", "host"],
  testing: [
    "lifecycle",
    "process",
    "microvm",
    "guest",
    "service",
    "journal",
    "image",
    "host",
    "firecracker",
    "qemu",
    "warm",
    "supervisor"
  ],
  cli: [
    "lifecycle",
    "process",
    "microvm",
    "guest",
    "service",
    "journal",
    "image",
    "host",
    "firecracker",
    "qemu",
    "warm",
    "supervisor"
  ]
}

const folderOf = (path: string): string => path.split("/")[1] ?? ""

const fileOf = (path: string): string => posix.basename(path)

const at = (module: Module, { line }: { readonly line: number }): string => `${module.path}:${line}`

/** The module a relative import names. */
const target = (module: Module, specifier: string): string | undefined =>
  specifier.startsWith(".") ? posix.join(posix.dirname(module.path), specifier) : undefined

/** Real time, `node:` and other ways to the machine are for these. */
const touchesTheMachine = (path: string): boolean =>
  /^Node[A-Z]\w*\.ts$/.test(fileOf(path)) || folderOf(path) === "testing" || folderOf(path) === "cli"

const found = (
  module: Module,
  occurrences: ReadonlyArray<Occurrence>,
  wanted: ReadonlyArray<string>,
  what: (text: string) => string
): ReadonlyArray<Violation> =>
  occurrences.filter(({ text }) => wanted.includes(text)).map((one) => ({ at: at(module, one), what: what(one.text) }))

/** What can be said of a module by looking at it alone. */
export const moduleRules: Readonly<Record<string, (module: Module) => ReadonlyArray<Violation>>> = {
  "a folder imports only folders below it": (module) =>
    module.imports.flatMap((one) => {
      const from = folderOf(module.path)
      const to = target(module, one.specifier)
      if (to === undefined || folderOf(to) === from) return []
      const allowed = mayImport[from]
      // The command tells its version.
      if (from === "cli" && to === "package.json") return []
      if (!to.startsWith("src/")) return [{ at: at(module, one), what: `${one.specifier} is outside of src` }]
      if (allowed === undefined) return [{ at: at(module, one), what: `the import table has no folder ${from}` }]
      return allowed.includes(folderOf(to))
        ? []
        : [{ at: at(module, one), what: `${from} may not import ${folderOf(to)}` }]
    }),

  "a folder imports the modules of others, not what is private to them, nor their index": (module) =>
    module.imports.flatMap((one) => {
      const to = target(module, one.specifier)
      if (/^effect-microvm-runtime(\/|$)/.test(one.specifier)) {
        return [{ at: at(module, one), what: `${one.specifier}: inside of src, by relative path` }]
      }
      if (to === undefined || folderOf(to) === folderOf(module.path)) return []
      return to.includes("/internal/") || fileOf(to) === "index.ts"
        ? [{ at: at(module, one), what: one.specifier }]
        : []
    }),

  "`node:` and @effect/platform-node only in Node*.ts, testing and cli": (module) =>
    touchesTheMachine(module.path) ? [] : [
      ...module.imports
        .filter(({ specifier }) => /^(node:|@effect\/platform-node)/.test(specifier))
        .map((one) => ({ at: at(module, one), what: one.specifier })),
      ...module.globals
        .filter(({ text }) => /^(process\.\w+|Buffer)$/.test(text))
        .map((one) => ({ at: at(module, one), what: `${one.text} is Node's` }))
    ],

  "real clocks only in Node*.ts, testing and cli": (module) =>
    touchesTheMachine(module.path) ? [] : found(
      module,
      module.globals,
      ["Date.now", "performance.now", "new Date()", "setTimeout", "setInterval", "setImmediate", "process.hrtime"],
      (name) => `${name} does not follow TestClock: use Effect's Clock`
    ),

  "privileged command lines only in host": (module) =>
    folderOf(module.path) === "host" ? [] : found(
      module,
      module.strings,
      ["ip", "nft", "iptables", "ip6tables", "tc", "bridge"],
      (command) => `"${command}"`
    ),

  "Effect by subpath, not through a barrel": (module) =>
    module.imports
      .filter(({ specifier }) => /^(effect(\/[a-z-]+)?|@effect\/platform-node(-shared)?)$/.test(specifier))
      .map((one) => ({ at: at(module, one), what: `${one.specifier} loads a whole barrel: import its module` })),

  "no silenced checks": (module) => [
    ...module.assertions
      .filter(({ text }) => text !== "const")
      .map((one) => ({ at: at(module, one), what: `as ${one.text}: a checked guard instead` })),
    ...module.comments
      .filter(({ text }) => /@ts-(ignore|expect-error|nocheck)|(oxlint|eslint)-disable/.test(text))
      .map((one) => ({ at: at(module, one), what: one.text.trim() }))
  ],

  "no module above 600 lines": (module) =>
    module.lines > 600 ? [{ at: `${module.path}:600`, what: `${module.lines} lines: is it still one concept?` }] : [],

  "flat folders of PascalCase modules, an index that only re-exports, camelCase in internal": (module) => {
    const [, folder = "", ...rest] = module.path.split("/")
    const name = rest.at(-1) ?? folder
    const here = `${module.path}:1`
    if (/\/(core|common|shared|utils?|helpers?)\//.test(module.path)) {
      return [{ at: here, what: "a folder named for nothing" }]
    }
    if (rest.length === 1 && name === "index.ts") {
      return module.onlyReExports ? [] : [{ at: here, what: "an index only re-exports" }]
    }
    if (module.path === "src/cli/bin.ts") return []
    if (rest.length === 1 && /^[A-Z]\w*\.ts$/.test(name)) return []
    if (rest.length === 2 && rest[0] === "internal" && /^([a-z]\w*|Node[A-Z]\w*)\.ts$/.test(name)) return []
    return [{ at: here, what: "neither folder/Module.ts nor folder/internal/module.ts" }]
  }
}

/** The ways from a module back to itself, each once; imports of types count too. */
export const cycles = (modules: ReadonlyArray<Module>): ReadonlyArray<Violation> => {
  const byPath = new Map(modules.map((module) => [module.path, module]))
  const settled = new Set<string>()
  const violations: Array<Violation> = []
  const walk = (path: string, trail: ReadonlyArray<string>): void => {
    const start = trail.indexOf(path)
    if (start >= 0) {
      violations.push({ at: `${path}:1`, what: [...trail.slice(start), path].join(" → ") })
      return
    }
    const module = byPath.get(path)
    if (module === undefined || settled.has(path)) return
    for (const { specifier } of module.imports) {
      const to = target(module, specifier)
      if (to !== undefined) walk(to, [...trail, path])
    }
    settled.add(path)
  }
  for (const { path } of modules) walk(path, [])
  return violations
}

/** The edges of the two kinds of program: a command, and a service. */
const edges = new Set(["src/cli/bin.ts", "src/service/NodeService.ts"])

/** Who ends the process decides the exit code, so each kind of program has one such place. */
export const processExits = (modules: ReadonlyArray<Module>): ReadonlyArray<Violation> =>
  modules.flatMap((module) => {
    const all = found(module, module.globals, ["process.exit"], (name) => name)
    return edges.has(module.path) ? all.slice(1) : all
  })
