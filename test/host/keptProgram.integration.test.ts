import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { execFile, execFileSync, spawn } from "node:child_process"
import * as NodeFs from "node:fs"
import { homedir } from "node:os"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { HostCommands, NodeHostCommands } from "../../src/host/index.ts"
import { isAlive } from "./fakePrograms.ts"
import * as Netns from "./netns.ts"

const Seen = Schema.fromJsonString(Schema.Struct({
  again: Schema.Boolean,
  late: Schema.Int,
  left: Schema.String,
  refused: Schema.String,
  removed: Schema.Boolean
}))

const owner = fileURLToPath(new URL("./fixtures/keptOwner.ts", import.meta.url))

const missing = (): string | undefined => {
  if (Netns.skipReason !== undefined) return Netns.skipReason
  try {
    execFileSync("nft", ["--version"], { stdio: "ignore" })
    return undefined
  } catch {
    return "there is no nft(8): install nftables"
  }
}

const reason = missing()
if (reason !== undefined) console.warn(`skipped: ${reason}`)

/** The processes of ours in a network namespace. */
const inside = (netns: Netns.Netns): ReadonlyArray<number> =>
  execFileSync("ip", ["netns", "pids", netns.name], { encoding: "utf8" }).split("\n").filter((line) => line !== "").map(
    Number
  )

const withNft = <A, E>(
  body: (
    apply: (input: string) => Effect.Effect<string, Error>,
    list: (...args: ReadonlyArray<string>) => Effect.Effect<string, Error>,
    netns: Netns.Netns
  ) => Effect.Effect<A, E>
) =>
  Effect.scoped(Effect.gen(function*() {
    const netns = yield* Netns.scoped
    const program = Effect.gen(function*() {
      const { run } = yield* HostCommands.HostCommands
      return yield* body(
        (input) => run({ program: "nft", args: ["-f", "-"], input, what: "a test" }),
        (...args) => run({ program: "nft", args: ["-j", ...args], what: "a test" }),
        netns
      )
    })
    const done = yield* Effect.provide(program, NodeHostCommands.layerIn(netns.path))
    assert.deepStrictEqual(inside(netns), [])
    return done
  }))

describe.skipIf(reason !== undefined)("an nft that is kept", () => {
  it.live("is one process, takes a text whole or not at all, and knows what it has not done", () =>
    withNft((apply, list, netns) =>
      Effect.gen(function*() {
        const good = "add table inet t\nadd chain inet t c\nadd set inet t s { type ipv4_addr; }\n"
        yield* apply(good)
        const before = yield* list("list tables")
        const [pid] = inside(netns)
        for (const last of ["add rule inet t no-such accept", "add rule inet t c no-such", "}"]) {
          const input = `${good}add table inet u\nadd chain inet u c\nadd element inet t s { 192.0.2.1 }\n${last}\n`
          const { message } = yield* Effect.flip(apply(input))
          assert.include(message, `a test: nft failed at "${last}": /dev/stdin:7:`)
          assert.strictEqual(yield* list("list tables"), before)
          assert.notInclude(yield* list("list set inet t s"), "192.0.2.1")
          assert.include((yield* Effect.flip(list("list table inet u"))).message, "No such file or directory")
          assert.include((yield* Effect.flip(apply("add chain inet u c\n"))).message, "No such file or directory")
        }
        yield* apply("add table inet u\nadd chain inet u c\nadd element inet t s { 192.0.2.1 }\n")
        assert.include(yield* list("list table inet u"), `"name": "c"`)
        assert.include(yield* list("list set inet t s"), "192.0.2.1")
        assert.notInclude(yield* list("-t", "list sets inet"), "192.0.2.1")
        assert.deepStrictEqual(inside(netns).filter((one) => one === pid), [pid])
        assert.lengthOf(inside(netns), 2)
      })
    ))

  it.live("sees what another nft has changed meanwhile", () =>
    withNft((apply, list, netns) =>
      Effect.gen(function*() {
        const other = (text: string) => netns.exec("nft", text)
        yield* apply("add table inet t\nadd chain inet t a\n")
        for (let round = 0; round < 5; round++) {
          yield* list("list table inet t")
          other(
            "add chain inet t b; add rule inet t b accept; add set inet t s { type ipv4_addr; }; add element inet t s { 192.0.2.1 }"
          )
          assert.include(yield* list("list table inet t"), `"chain": "b"`)
          yield* apply("add rule inet t a jump b\nadd element inet t s { 192.0.2.2 }\n")
          assert.include(yield* list("list set inet t s"), "192.0.2.1")
          other("flush chain inet t a; delete chain inet t b; delete set inet t s")
          assert.include((yield* Effect.flip(apply("add rule inet t a jump b\n"))).message, "No such file or directory")
          assert.include((yield* Effect.flip(list("list set inet t s"))).message, "No such file or directory")
          other("delete table inet t; add table inet t; add chain inet t a")
          yield* apply("add rule inet t a accept\n")
        }
      })
    ))

  it.live("has done what it was told when it has answered, and what is long was told to another", () =>
    withNft((apply, _list, netns) =>
      Effect.gen(function*() {
        for (const length of [3_000, 100_000]) {
          const elements = Array.from({ length }, (_, at) => `10.2${at >> 16}.${at >> 8 & 255}.${at & 255}`)
          yield* apply(
            `add table inet t\nadd set inet t s { type ipv4_addr; }\nadd element inet t s {\n${
              elements.join(",\n")
            } }\n`
          )
          const count = netns.exec("sh", "-c", "nft list set inet t s | grep -o '10[.]2[01][.]' | wc -l")
          assert.strictEqual(Number(count), length)
          yield* apply("delete table inet t\n")
          assert.strictEqual(netns.exec("nft", "list ruleset"), "")
          const [pid = 0] = inside(netns)
          const [, kib] = /VmRSS:\s+(\d+)/.exec(NodeFs.readFileSync(`/proc/${pid}/status`, "utf8")) ?? []
          assert.isBelow(Number(kib), 32 * 1024)
        }
      })
    ))

  it.live("writes down nothing of what it was told", () =>
    Effect.gen(function*() {
      const histories = ["/.nft.history", `${homedir()}/.nft.history`]
      const seen = () => histories.map((file) => NodeFs.statSync(file, { throwIfNoEntry: false })?.mtimeMs)
      const before = seen()
      yield* withNft((apply) => apply("add table inet t\n"))
      assert.deepStrictEqual(seen(), before)
    }))

  it("dies with its owner", async () => {
    const child = spawn("unshare", ["--net", process.execPath, ...process.execArgv, owner], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    const line = await new Promise<string>((resolve) => createInterface({ input: child.stdout }).once("line", resolve))
    const pids = line.split(" ").map(Number)
    const names = pids.filter(isAlive).map((pid) => NodeFs.readFileSync(`/proc/${pid}/comm`, "utf8").trim())
    assert.deepStrictEqual(names.toSorted().filter((name) => name !== "pgrep"), ["ip", "nft", "nft"])
    child.kill("SIGKILL")
    for (const deadline = performance.now() + 5_000; pids.some(isAlive) && performance.now() < deadline;) {
      await promisify(execFile)("sleep", ["0.02"])
    }
    assert.deepStrictEqual(pids.filter(isAlive), [])
  })
})

describe.skipIf(reason !== undefined)("a link that is removed", () => {
  const remover = fileURLToPath(new URL("./fixtures/linkRemover.ts", import.meta.url))

  it("is not waited for when it is gone, and its ip is when the layer closes", async () => {
    const { stdout } = await promisify(execFile)("unshare", ["--net", process.execPath, ...process.execArgv, remover])
    const { again, late, left, refused, removed } = Schema.decodeUnknownSync(Seen)(stdout)
    assert.isTrue(removed)
    assert.isTrue(again)
    // The kernel may be quick, but not each time.
    assert.isAbove(late, 0)
    assert.strictEqual(left, "")
    assert.match(refused, /Cannot find device/)
  })
})
