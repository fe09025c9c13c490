import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { toTerminal } from "../../src/cli/internal/terminalText.ts"

const shown = (...chunks: ReadonlyArray<string | Uint8Array>) =>
  Stream.fromIterable(chunks).pipe(
    Stream.map((chunk) => typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk),
    toTerminal,
    Stream.decodeText,
    Stream.mkString
  )
const reset = "\u001B[0m"

describe("what was written, on a terminal", () => {
  const cases: ReadonlyArray<readonly [what: string, text: string, shown: string]> = [
    ["plain text", "one\n\ttwo 🐝", "one\n\ttwo 🐝"],
    ["colours", "\u001B[1;31mred\u001B[0m \u001B[38:5:4mblue", "\u001B[1;31mred\u001B[0m \u001B[38:5:4mblue"],
    ["a title", "\u001B]0;owned\u0007", "\\u{1b}]0;owned\\u{7}"],
    ["a screen that is cleared", "\u001B[2J\u001Bc\u009B2J", "\\u{1b}[2J\\u{1b}c\\u{9b}2J"],
    ["a colour of C1 controls", "\u009B31mred", "\\u{9b}31mred"],
    ["the ends of a console's lines", "one\r\ntwo\r\r\n", "one\ntwo\n"],
    ["a line that is written over", "10 %\r20 %\r", "10 %\n20 %\n"],
    ["letters that are written over", "rm\b\bls\u007F", "rm\\u{8}\\u{8}ls\\u{7f}"],
    ["text that is turned round", "a\u202Eb", "a\\u{202e}b"],
    ["half a colour", "a\u001B[3", "a\\u{1b}[3"],
    ["a colour without end", `\u001B[${"1".repeat(200)}`, `\\u{1b}[${"1".repeat(200)}`]
  ]
  it.effect.each(cases)("%s", ([, text, expected]) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* shown(text), expected + reset)
    }))

  it.effect("is the same however it comes", () =>
    Effect.gen(function*() {
      for (const [what, text, expected] of cases) {
        const bytes = new TextEncoder().encode(text)
        const each = Array.from(bytes, (byte) => new Uint8Array([byte]))
        assert.strictEqual(yield* shown(...each), expected + reset, what)
      }
    }))

  it.effect("what is no UTF-8 is told as such", () =>
    Effect.gen(function*() {
      assert.strictEqual(
        yield* shown(new Uint8Array([0x61, 0xff, 0x9b, 0x32, 0x4a, 0xc3])),
        `a\uFFFD\uFFFD2J\uFFFD${reset}`
      )
    }))

  it.effect.prop(
    "has no power, whatever it is",
    [Schema.Array(Schema.Uint8Array)],
    ([chunks]) =>
      Effect.gen(function*() {
        const text = yield* shown(...chunks)
        assert.notMatch(
          text.replaceAll(/(?![\n\t\u0080-\u009F])\p{Cc}\[[\d;:]*m/gu, ""),
          /(?![\n\t])[\p{Cc}\p{Bidi_Control}\u2028\u2029]/u
        )
      })
  )

  it.effect("holds nothing back but what may be half a colour", () =>
    Effect.gen(function*() {
      const first = yield* toTerminal(Stream.concat(Stream.make(new TextEncoder().encode("prompt> ")), Stream.never))
        .pipe(
          Stream.decodeText,
          Stream.take(1),
          Stream.mkString
        )
      assert.strictEqual(first, "prompt> ")
    }))
})
