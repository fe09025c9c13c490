import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ConsoleRing from "../../src/firecracker/ConsoleRing.ts"

const encode = (text: string): Uint8Array => new TextEncoder().encode(text)

const tailOf = (
  options: ConsoleRing.Options,
  ...pieces: ReadonlyArray<Uint8Array | string>
) =>
  Effect.gen(function*() {
    const ring = yield* ConsoleRing.make(options)
    for (const piece of pieces) yield* ring.push(typeof piece === "string" ? encode(piece) : piece)
    return yield* ring.tail
  })

describe("the lines that are kept", () => {
  const rows: ReadonlyArray<
    readonly [what: string, options: ConsoleRing.Options, pieces: ReadonlyArray<Uint8Array | string>, tail: unknown]
  > = [
    ["all, the oldest first", {}, ["a\nb\nc\n"], ["a", "b", "c"]],
    ["the last of five", { maxLines: 2 }, ["1\n2\n3\n4\n5\n"], ["4", "5"]],
    ["and once more, piece by piece", { maxLines: 2 }, ["1\n", "2\n3", "\n4\n", "5"], ["4", "5"]],
    ["a line over the limit, marked", { maxLineBytes: 10 }, [`${"x".repeat(50)}\n`], [`${"x".repeat(10)}…[truncated]`]],
    ["one that is as long as the limit", { maxLineBytes: 10 }, [`${"x".repeat(10)}\r\n`], ["x".repeat(10)]],
    ["one that grows past it in pieces", { maxLineBytes: 3 }, ["ab", "cd", "ef\nx\n"], ["abc…[truncated]", "x"]],
    ["no character is cut in two", { maxLineBytes: 10 }, ["123456789€XYZ\n"], ["123456789…[truncated]"]],
    ["bytes that are no characters are cut anywhere", { maxLineBytes: 6 }, [new Uint8Array(9).fill(0x80)], [
      `${"\ufffd".repeat(6)}…[truncated]`
    ]],
    ["empty lines", {}, ["a\n\nb\n"], ["a", "", "b"]],
    ["one carriage return goes with the newline", {}, ["win\r\nlin\nold\r\r\n"], ["win", "lin", "old\r"]],
    ["also when it comes apart from it", {}, ["win\r", "\n"], ["win"]],
    ["a last line without newline", {}, ["a\nlogin: "], ["a", "login: "]],
    ["it takes the place of an older one", { maxLines: 1 }, ["a\nlogin: "], ["login: "]],
    ["with no place at all, nothing", { maxLines: 0 }, ["a\nb\nc"], []],
    ["with no length at all, that there was something", { maxLineBytes: 0 }, ["a\n\nb"], [
      "…[truncated]",
      "",
      "…[truncated]"
    ]],
    ["invalid UTF-8 is replaced, and it goes on", {}, [Uint8Array.of(0x61, 0xff, 0xc3, 0x0a), "b\n"], [
      "a\ufffd\ufffd",
      "b"
    ]],
    ["a character that came in two pieces", {}, [Uint8Array.of(0xe2, 0x82), Uint8Array.of(0xac)], ["€"]],
    ["a byte order mark", {}, ["\ufeffa"], ["\ufeffa"]]
  ]
  it.effect.each(rows)(
    "%s",
    ([, options, pieces, expected]) =>
      Effect.map(tailOf(options, ...pieces), (tail) => assert.deepStrictEqual(tail, expected))
  )

  it.effect.prop(
    "do not depend on how the output is cut, and are bounded",
    [
      Schema.Array(Schema.Literals(["a", "€", "\n", "\r", "\r\n", "long line ", "\u{1f600}"])),
      Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 9 })),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 12 }))
    ],
    ([words, step, maxLineBytes]) =>
      Effect.gen(function*() {
        const bytes = encode(words.join(""))
        const pieces = Array.from({ length: Math.ceil(bytes.length / step) }, (_, index) =>
          bytes.subarray(index * step, (index + 1) * step))
        const options = { maxLines: 4, maxLineBytes }
        const tail = yield* tailOf(options, ...pieces)
        assert.deepStrictEqual(tail, yield* tailOf(options, bytes))
        assert.isAtMost(tail.length, 4)
        for (const line of tail) {
          assert.isAtMost(encode(line).length, maxLineBytes + encode("…[truncated]").length)
          assert.notInclude(line, "\ufffd")
        }
      })
  )

  it.effect("an endless line does not grow", () =>
    Effect.gen(function*() {
      const ring = yield* ConsoleRing.make()
      const piece = new Uint8Array(1 << 20).fill(0x78)
      yield* ring.push(piece)
      const before = process.memoryUsage().arrayBuffers
      for (let count = 0; count < 64; count++) yield* ring.push(piece)
      assert.isBelow(process.memoryUsage().arrayBuffers - before, 16 << 20)
      assert.deepStrictEqual(yield* ring.tail, [`${"x".repeat(4096)}…[truncated]`])
    }))

  it.effect("limits that are none are refused, all at once", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(ConsoleRing.make({ maxLines: -1, maxLineBytes: 1.5 }))
      assert.strictEqual(
        error.message,
        "Not possible: maxLines is -1: write a whole number from 0; maxLineBytes is 1.5: write a whole number from 0"
      )
    }))
})

describe("from a stream", () => {
  it.live("is readable while that is open, after its end, and when the scope is closed, also twice", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const taken = yield* Deferred.make<void>()
      const output = Stream.make(encode("a\nb")).pipe(
        Stream.concat(Stream.fromEffect(Effect.as(Deferred.succeed(taken, undefined), new Uint8Array(0)))),
        Stream.concat(Stream.never)
      )
      const ring = yield* Scope.provide(ConsoleRing.fromStream(output), scope)
      yield* Deferred.await(taken)
      assert.deepStrictEqual(yield* ring.tail, ["a", "b"])
      // The stream is silent: that must not hold up the close.
      yield* Effect.timeout(Scope.close(scope, Exit.void), "1 second")
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* ring.tail, ["a", "b"])
    }))

  it.effect("a failure is the end of it", () =>
    Effect.gen(function*() {
      const read = yield* Deferred.make<void>()
      const output = Stream.make(encode("a\n")).pipe(
        Stream.concat(Stream.fail("EIO")),
        Stream.ensuring(Deferred.succeed(read, undefined))
      )
      const ring = yield* ConsoleRing.fromStream(output)
      yield* Deferred.await(read)
      assert.deepStrictEqual(yield* ring.tail, ["a"])
    }))
})
