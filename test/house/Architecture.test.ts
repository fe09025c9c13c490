import { readdirSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, it } from "vitest"
import { cycles, mayImport, moduleRules, processExits } from "./rules.ts"
import { modulesBelow, parse, root } from "./source.ts"

describe("src keeps the rules", () => {
  const modules = modulesBelow("src")

  it.each(Object.entries(moduleRules))("%s", (_, rule) => {
    expect(modules.flatMap(rule)).toEqual([])
  })

  it("no import cycles", () => {
    expect(cycles(modules)).toEqual([])
  })

  it("process.exit at the edges only, once in each", () => {
    expect(processExits(modules)).toEqual([])
  })

  it("each folder has its row in the import table", () => {
    const folders = readdirSync(join(root, "src"), { withFileTypes: true }).map((entry) => entry.name)
    expect(folders.filter((folder) => !(folder in mayImport))).toEqual([])
  })
})

describe("the import table", () => {
  it("has levels: no two folders may import each other, by any way", () => {
    const reachable = (folder: string): ReadonlyArray<string> =>
      (mayImport[folder] ?? []).flatMap((to) => [to].concat(reachable(to)))
    expect(Object.keys(mayImport).filter((folder) => reachable(folder).includes(folder))).toEqual([])
  })
})

describe("the reader", () => {
  const read = (text: string) => parse("src/process/X.ts", text)

  it("finds every form of import", () => {
    const text = [
      `import * as A from "a"`,
      `import {`,
      `  type B1,`,
      `  b2`,
      `} from 'b'`,
      `import type { C } from "c"`,
      `import { type D1, type D2 } from "d"`,
      `import "e"`,
      `export * as F from "f"`,
      `export { g, type G } from "g"`,
      `export type { H } from "h"`,
      `export type I = import("i").I`,
      `export const j = () => import("j")`,
      "// import k from \"k\"",
      "export const l = `import m from \"m\"`"
    ].join("\n")
    expect(read(text).imports).toEqual([
      { specifier: "a", kind: "value", line: 1 },
      { specifier: "b", kind: "value", line: 2 },
      { specifier: "c", kind: "type", line: 6 },
      { specifier: "d", kind: "type", line: 7 },
      { specifier: "e", kind: "value", line: 8 },
      { specifier: "f", kind: "value", line: 9 },
      { specifier: "g", kind: "value", line: 10 },
      { specifier: "h", kind: "type", line: 11 },
      { specifier: "i", kind: "type", line: 12 },
      { specifier: "j", kind: "dynamic", line: 13 }
    ])
  })

  it("finds every form of export", () => {
    const text = [
      `export const a = 1, { b, c: [d], ...e } = f`,
      `export function g() {}`,
      `export class H {}`,
      `export interface I {}`,
      `export type J = 1`,
      `const k = 1`,
      `export { k, type J as L }`,
      `export * as M from "./M.ts"`,
      `export declare namespace N {}`
    ].join("\n")
    expect(read(text).exports).toEqual([
      { name: "a", kind: "value" },
      { name: "b", kind: "value" },
      { name: "d", kind: "value" },
      { name: "e", kind: "value" },
      { name: "g", kind: "value" },
      { name: "H", kind: "value" },
      { name: "I", kind: "type" },
      { name: "J", kind: "type" },
      { name: "k", kind: "value" },
      { name: "L", kind: "type" },
      { name: "M", kind: "value", namespaceOf: "./M.ts" },
      { name: "N", kind: "value" }
    ])
  })
})

describe("each rule sees its violation, and only that", () => {
  const violations = (path: string, text: string) => {
    const module = parse(path, text)
    return Object.entries(moduleRules).filter(([, rule]) => rule(module).length > 0).map(([name]) => name)
  }
  const direction = "a folder imports only folders below it"
  const privacy = "a folder imports the modules of others, not what is private to them, nor their index"
  const machine = "`node:` and @effect/platform-node only in Node*.ts, testing and cli"
  const clocks = "real clocks only in Node*.ts, testing and cli"
  const privileged = "privileged command lines only in host"
  const barrels = "Effect by subpath, not through a barrel"
  const silenced = "no silenced checks"
  const size = "no module above 600 lines"
  const layout = "flat folders of PascalCase modules, an index that only re-exports, camelCase in internal"

  it.each<readonly [path: string, text: string, broken: ReadonlyArray<string>]>([
    ["src/process/X.ts", `import * as A from "../lifecycle/A.ts"`, []],
    ["src/process/internal/x.ts", `import * as A from "../../lifecycle/A.ts"`, []],
    ["src/lifecycle/X.ts", `import * as A from "../process/A.ts"`, [direction]],
    ["src/lifecycle/X.ts", `import type { A } from "../process/A.ts"`, [direction]],
    ["src/qemu/X.ts", `export const f = () => import("../guest/A.ts")`, [direction]],
    ["src/cli/X.ts", `import * as A from "../testing/A.ts"`, [direction]],
    ["src/cli/X.ts", `import * as A from "../../test/A.ts"`, [direction]],
    ["src/cli/X.ts", `import manifest from "../../package.json" with { type: "json" }`, []],
    ["src/process/X.ts", `import manifest from "../../package.json" with { type: "json" }`, [direction]],
    ["src/unknown/X.ts", `import * as A from "../lifecycle/A.ts"`, [direction]],
    ["src/process/X.ts", `import * as A from "../lifecycle/internal/a.ts"`, [privacy]],
    ["src/process/X.ts", `import * as A from "./internal/a.ts"`, []],
    ["src/process/X.ts", `import { A } from "../lifecycle/index.ts"`, [privacy]],
    ["src/process/X.ts", `import { A } from "effect-microvm-runtime/lifecycle"`, [privacy]],
    ["src/process/X.ts", `import * as fs from "node:fs"`, [machine]],
    ["src/process/X.ts", `import type { Socket } from "node:net"`, [machine]],
    ["src/process/X.ts", `import * as S from "@effect/platform-node/NodeSocket"`, [machine]],
    ["src/process/X.ts", `export const a = process.pid`, [machine]],
    ["src/process/X.ts", `export const f = (process: Handle) => process.pid`, []],
    ["src/process/X.ts", `export const f = ({ a: process }) => { return process.exit }`, []],
    ["src/process/X.ts", `export const f = () => { const process = g(); return process.exit }`, []],
    ["src/process/X.ts", `export const f = () => { const process = g() }; export const a = process.pid`, [machine]],
    ["src/process/X.ts", `import { process, setTimeout } from "./Y.ts"; setTimeout(process.pid)`, []],
    ["src/process/NodeX.ts", `import * as fs from "node:fs"; export const a = process.pid + Date.now()`, []],
    ["src/process/Nodes.ts", `import * as fs from "node:fs"`, [machine]],
    ["src/testing/X.ts", `import * as fs from "node:fs"; export const a = Date.now()`, []],
    ["src/process/X.ts", `export const a = Date.now()`, [clocks]],
    ["src/process/X.ts", `export const a = new Date()`, [clocks]],
    ["src/process/X.ts", `export const a = new Date(0)`, []],
    ["src/process/X.ts", `export const a = performance.now()`, [clocks]],
    ["src/process/X.ts", `setTimeout(() => {}, 1)`, [clocks]],
    ["src/process/X.ts", `globalThis.setInterval(() => {}, 1)`, [clocks]],
    ["src/process/X.ts", `export const a = [1].map(setTimeout)`, [clocks]],
    ["src/process/X.ts", `export const a = b.setTimeout({ setInterval: 1 }) // Date.now()`, []],
    ["src/process/X.ts", `export const a = run("ip", ["link"])`, [privileged]],
    ["src/host/X.ts", `export const a = run("nft", ["list"])`, []],
    ["src/process/X.ts", `export const a = "ip link"`, []],
    ["src/process/X.ts", `import { Effect } from "effect"`, [barrels]],
    ["src/process/X.ts", `import { Command } from "effect/cli"`, [barrels]],
    ["src/cli/X.ts", `import { NodeRuntime } from "@effect/platform-node"`, [barrels]],
    ["src/process/X.ts", `import * as Effect from "effect/Effect"\nimport * as Command from "effect/cli/Command"`, []],
    ["src/process/X.ts", `export const a = b as any`, [silenced]],
    ["src/process/X.ts", `export const a = <Foo> b`, [silenced]],
    ["src/process/X.ts", `export const a = ["b"] as const`, []],
    ["src/process/X.ts", `// @ts-ignore\nexport const a = 1`, [silenced]],
    ["src/process/X.ts", `/* oxlint-disable no-console */`, [silenced]],
    ["src/process/X.ts", "\n".repeat(600), []],
    ["src/process/X.ts", "\n".repeat(601), [size]],
    ["src/process/x.ts", "", [layout]],
    ["src/process/deep/X.ts", "", [layout]],
    ["src/process/utils/X.ts", "", [layout]],
    ["src/process/internal/X.ts", "", [layout]],
    ["src/process/internal/NodeX.ts", "", []],
    ["src/process/index.ts", `export * as X from "./X.ts"`, []],
    ["src/process/index.ts", `export const x = 1`, [layout]],
    ["src/cli/bin.ts", `export const x = 1`, []]
  ])("%s: %s", (path, text, broken) => {
    expect(violations(path, text)).toEqual(broken)
  })

  it("cycles, also through types, and each only once", () => {
    const modules = [
      parse("src/a/A.ts", `import type { B } from "./B.ts"\nimport * as C from "./C.ts"`),
      parse("src/a/B.ts", `import * as C from "./C.ts"`),
      parse("src/a/C.ts", `export { A } from "./A.ts"`),
      parse("src/a/D.ts", `import * as A from "./A.ts"\nimport * as E from "./E.ts"`),
      parse("src/a/E.ts", "")
    ]
    expect(cycles(modules).map(({ what }) => what)).toEqual([
      "src/a/A.ts → src/a/B.ts → src/a/C.ts → src/a/A.ts"
    ])
    expect(cycles(modules.slice(3))).toEqual([])
  })

  it("a process.exit beside the edges, and a second one in an edge", () => {
    const edge = parse("src/cli/bin.ts", "process.exit(1)")
    const beside = parse("src/cli/B.ts", "globalThis.process.exit(2)")
    const twice = parse("src/service/NodeService.ts", "process.exit(1)\nprocess.exit(2)")
    expect(processExits([edge])).toEqual([])
    expect(processExits([edge, beside, twice]).map((violation) => violation.at)).toEqual([
      "src/cli/B.ts:1",
      "src/service/NodeService.ts:2"
    ])
  })
})
