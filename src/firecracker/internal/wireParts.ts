/**
 * The small parts that the bodies of requests are made of. What a check expects is written so that "give …" can stand
 * before it.
 */
import * as Schema from "effect/Schema"
import { byteLength } from "./byteLength.ts"

/** Has it so many bytes in UTF-8 at most? A unit of UTF-16 has three at most, so that mostly nothing has to be counted. */
export const isWithin = (text: string, bytes: number): boolean => 3 * text.length <= bytes || byteLength(text) <= bytes

const whole = (minimum: number, maximum: number) =>
  Schema.Int.check(
    Schema.isBetween({ minimum, maximum }, { expected: `a whole number from ${minimum} to ${maximum}` })
  )

export const between = whole
export const U16 = whole(0, 2 ** 16 - 1)
export const U32 = whole(0, 2 ** 32 - 1)
/** As far as a number of JavaScript is exact. */
export const U64 = whole(0, Number.MAX_SAFE_INTEGER)

/** The API splits a path at "/" and looks no further: any other character would be another request. */
export const ResourceId = Schema.String.check(
  Schema.isPattern(/^[A-Za-z0-9_]{1,255}$/, { expected: "1 to 255 letters, digits and \"_\"" })
)

const path = (limit: number) => {
  const expected = `a path of 1 to ${limit} bytes without NUL`
  return Schema.String.check(
    Schema.makeFilter(
      (text) => text !== "" && !text.includes("\0") && text.isWellFormed() && isWithin(text, limit),
      { expected }
    )
  )
}

/** PATH_MAX of Linux without its NUL. */
export const Path = path(4095)
/** What `sun_path` of unix(7) holds without its NUL. */
export const SocketPath = path(107)

/** IFNAMSIZ of Linux without its NUL. */
export const HostDevice = Schema.String.check(
  Schema.isPattern(/^(?!\.{1,2}$)[!-.0-9;-~]{1,15}$/, {
    expected: "the name of a TAP device: 1 to 15 printable characters without \"/\", \":\" and white space"
  })
)

export const Mac = Schema.String.check(
  Schema.isPattern(/^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$/, { expected: "six pairs of hexadecimal digits, with \":\"" })
)

/** A text that can stand in JSON. */
export const Text = Schema.String.check(
  Schema.makeFilter((text: string) => text.isWellFormed(), { expected: "a text without half characters" })
)
