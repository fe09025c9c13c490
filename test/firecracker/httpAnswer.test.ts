import { describe, expect, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as HttpAnswer from "../../src/firecracker/internal/httpAnswer.ts"

const limit = 1000
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text)

/** The verdict on the pieces, or "more". */
const read = (pieces: Iterable<Uint8Array>): HttpAnswer.Step => {
  const reader = HttpAnswer.make(limit)
  for (const piece of pieces) {
    const step = reader.push(piece)
    if (step._tag !== "More") return step
  }
  return { _tag: "More" }
}

const cut = (bytes: Uint8Array, size: number): ReadonlyArray<Uint8Array> =>
  Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size))

const detailOf = (text: string): string => {
  const step = read([bytesOf(text)])
  return step._tag === "Violation" ? step.detail : step._tag
}

const head = "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"

describe("an answer of Firecracker's", () => {
  it("with a body, as long as the head says", () => {
    const text = `${head}Content-Type: application/json\r\nContent-Length: 14\r\n\r\n{"id":"été"}`
    expect(read([bytesOf(text)])).toEqual({
      _tag: "Done",
      answer: { status: 200, body: `{"id":"été"}`, deprecated: false, keepAlive: true }
    })
  })

  it("with the same head as the last one is held against its own limit", () => {
    const answer = bytesOf(`${head}Content-Length: 4\r\n\r\ntrue`)
    const tagsOf = (limits: ReadonlyArray<number>) => limits.map((most) => HttpAnswer.make(most).push(answer)._tag)
    expect(tagsOf([4, 4, 3, 4, 3, 3])).toEqual(["Done", "Done", "Violation", "Done", "Violation", "Violation"])
  })

  it("has blanks around what its head says, and they are no part of it", () => {
    const blanks = " \t".repeat(100)
    expect(detailOf(`${head}Content-Length:${blanks}2${blanks}\r\n\r\n{}`)).toBe("Done")
  })

  it("without a body ends at the blank line", () => {
    expect(read([bytesOf("HTTP/1.1 204 \r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n")])).toEqual({
      _tag: "Done",
      answer: { status: 204, body: "", deprecated: true, keepAlive: true }
    })
  })

  it.each([
    ["Connection: close", "HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"],
    ["HTTP/1.0", "HTTP/1.0 200 \r\nContent-Length: 2\r\n\r\n{}"],
    ["more than was asked for", "HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 400 \r\n"]
  ])("is the last one of its connection: %s", (_, text) => {
    expect(read([bytesOf(text)])).toMatchObject({ _tag: "Done", answer: { body: "{}", keepAlive: false } })
  })

  it.prop(
    "is the same however it is cut",
    {
      body: Schema.String.check(Schema.isMaxLength(200)),
      size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 9 }))
    },
    ({ body, size }) => {
      const bytes = bytesOf(body)
      const all = Buffer.concat([bytesOf(`${head}Content-Length: ${bytes.length}\r\n\r\n`), bytes])
      expect(read(cut(all, size))).toEqual(read([all]))
      expect(read([all])).toMatchObject({
        _tag: "Done",
        answer: { body: new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes) }
      })
      expect(read([all.subarray(0, -1)])).toEqual({ _tag: "More" })
    }
  )
})

describe("the bytes of an answer", () => {
  it.each([1, 7, 90])("are only lent: what is written over them later is not read, by %i", (size) => {
    const bytes = bytesOf(`${head}Content-Length: 9\r\n\r\n{"a":"b"}`)
    const reader = HttpAnswer.make(limit)
    const lent = new Uint8Array(size)
    const steps = cut(bytes, size).map((piece) => {
      lent.fill(0)
      lent.set(piece)
      return reader.push(lent.subarray(0, piece.length))
    })
    expect(steps.at(-1)).toEqual({
      _tag: "Done",
      answer: { status: 200, body: `{"a":"b"}`, deprecated: false, keepAlive: true }
    })
  })

  it("are those of the last head only when all of them are", () => {
    const read204 = (line: string) => read([bytesOf(`HTTP/1.1 204 \r\n${line}\r\n\r\n`)])
    const answer = { status: 204, body: "", deprecated: false, keepAlive: true }
    expect(read204("Connection: keep-alive")).toEqual({ _tag: "Done", answer })
    expect(read204("Deprecation: true")).toEqual({ _tag: "Done", answer: { ...answer, deprecated: true } })
    expect(read204("Deprecation: trux")).toEqual({ _tag: "Done", answer })
    expect(read204("Deprecation: true\r\nConnection: close")).toEqual({
      _tag: "Done",
      answer: { ...answer, deprecated: true, keepAlive: false }
    })
  })
})

describe("an answer that comes in two pieces", () => {
  const Line = Schema.Literals([
    "Server: Firecracker API",
    "Connection: keep-alive",
    "Connection: close",
    "Deprecation: true",
    "Content-Length: 2",
    "Transfer-Encoding: chunked",
    "no header"
  ])

  it.prop(
    "is the same wherever it was cut, and is none before its last byte",
    {
      status: Schema.Literals(["200", "204", "400", "413", "503", "100"]),
      lines: Schema.Array(Line).check(Schema.isMaxLength(3)),
      body: Schema.Literals(["", "{}", `{"fault_message":"nö"}`, `{ "error": "Too many open connections" }`])
    },
    ({ body, lines, status }) => {
      const length = status === "204" ? [] : [`Content-Length: ${bytesOf(body).length}`]
      const answer = [`HTTP/1.1 ${status} `, ...lines, ...length, "", status === "204" ? "" : body].join("\r\n")
      const bytes = bytesOf(answer)
      const whole = read([bytes])
      for (let at = 1; at < bytes.length; at++) {
        expect(read([bytes.subarray(0, at), bytes.subarray(at)])).toEqual(whole)
        if (whole._tag === "Done") expect(read([bytes.subarray(0, at)])).toEqual({ _tag: "More" })
      }
    }
  )
})

describe("anything else is refused", () => {
  it.each([
    ["no HTTP", "SSH-2.0-OpenSSH", `it starts with "SSH-2.0-OpenSSH"`],
    ["an empty line first", "\r\n\r\n", `it starts with "\\r\\n\\r\\n"`],
    ["no status", "HTTP/1.1 \r\n\r\n", `the status line "HTTP/1.1 "`],
    ["HTTP/1.2", "HTTP/1.2 200 \r\n\r\n", `the status line "HTTP/1.2 200 "`],
    ["a status of four digits", "HTTP/1.1 2000 \r\n\r\n", `the status line "HTTP/1.1 2000 "`],
    ["an answer that is none yet", "HTTP/1.1 100 \r\n\r\n", "status 100"],
    ["a status beyond all", "HTTP/1.1 600 \r\n\r\n", "status 600"],
    ["no length", `${head}\r\n`, "no Content-Length"],
    ["chunks", `${head}Transfer-Encoding: chunked\r\n\r\n`, `Transfer-Encoding "chunked"`],
    ["chunks and a length", `${head}Content-Length: 2\r\ntransfer-encoding: x\r\n\r\n{}`, `Transfer-Encoding "x"`],
    ["a negative length", `${head}Content-Length: -1\r\n\r\n`, `Content-Length "-1"`],
    ["a signed length", `${head}Content-Length: +2\r\n\r\n{}`, `Content-Length "+2"`],
    ["a length in hexadecimal", `${head}Content-Length: 0x2\r\n\r\n{}`, `Content-Length "0x2"`],
    ["no number", `${head}Content-Length: \r\n\r\n{}`, `Content-Length ""`],
    [
      "a length beyond numbers",
      `${head}Content-Length: 99999999999999999999\r\n\r\n`,
      `Content-Length "99999999999999999999"`
    ],
    [
      "a length beyond what is allowed",
      `${head}Content-Length: 1001\r\n\r\n`,
      "a body of 1001 bytes, and 1000 are allowed"
    ],
    ["two lengths", `${head}Content-Length: 2\r\ncontent-length: 2\r\n\r\n{}`, "more than one Content-Length"],
    ["a list of lengths", `${head}Content-Length: 2, 2\r\n\r\n{}`, `Content-Length "2, 2"`],
    ["a body where there is none", "HTTP/1.1 204 \r\nContent-Length: 2\r\n\r\n{}", "status 204 with a body"],
    ["a header without a name", `${head}: 1\r\n\r\n`, `the header line ": 1"`],
    ["a space before the colon", `${head}Content-Length : 2\r\n\r\n{}`, `the header line "Content-Length : 2"`],
    ["a folded line", `${head} folded\r\n\r\n`, `the header line " folded"`],
    [
      "a line end inside a line",
      `${head}A: b\nContent-Length: 2\r\n\r\n{}`,
      `the header line "A: b\\nContent-Length: 2"`
    ],
    ["a zero byte", `${head}A: \0\r\n\r\n`, `the header line "A: \\u0000"`]
  ])("%s", (_, text, detail) => {
    expect(detailOf(text)).toBe(detail)
    expect(read(cut(bytesOf(text), 1))._tag).toBe("Violation")
  })

  it("a line of nothing but blanks, without trying where they could end", { timeout: 10_000 }, () => {
    const blanks = " \t".repeat(2_500)
    const detail = `the header line ${JSON.stringify(`A:${blanks}`.slice(0, 60) + "…")}`
    expect(detailOf(`${head}A:${blanks}\0\r\n\r\n`)).toBe(detail)
    expect(detailOf(`${head}A:${blanks}x${blanks}\0\r\n\r\n`)).toBe(detail)
    expect(detailOf(`${head}Content-Length:${blanks}2${blanks}x\r\n\r\n{}`)).toContain("Content-Length \"2 ")
  })

  it("a body that is not UTF-8", () => {
    const bytes = Buffer.concat([bytesOf(`${head}Content-Length: 1\r\n\r\n`), Buffer.from([0xff])])
    expect(read([bytes])).toEqual({ _tag: "Violation", detail: "a body that is not UTF-8" })
  })

  it("a head that does not end, whether it comes at once or slowly", () => {
    const padded = (size: number) => bytesOf(`${head}X: `.padEnd(size, "x"))
    const endless = padded(HttpAnswer.maxHeadBytes + 4)
    expect(read([endless])).toEqual({ _tag: "Violation", detail: "a head over 65536 bytes" })
    expect(read(cut(endless, 1000))).toEqual(read([endless]))
    const longest = Buffer.concat([padded(HttpAnswer.maxHeadBytes - 19), bytesOf("\r\nContent-Length: 2\r\n\r\n{}")])
    expect(longest.indexOf("\r\n\r\n")).toBe(HttpAnswer.maxHeadBytes)
    for (const size of [1, 7, longest.length]) expect(read(cut(longest, size))).toMatchObject({ _tag: "Done" })
  })
})

const Pieces = Schema.Array(Schema.Literals([
  "HTTP/1.1 200 ",
  "HTTP/1.1 204 ",
  "\r\n",
  "\r",
  "\n",
  "Content-Length: ",
  "content-length:",
  "Transfer-Encoding: chunked",
  "Connection: close",
  "0",
  "2",
  "-",
  "999999999",
  "{}",
  " ",
  ":",
  "\0",
  "é"
]))

describe("whatever comes", () => {
  it.prop(
    "there is one verdict, the same for every way to cut it",
    { pieces: Pieces, starts: Schema.Boolean, size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 9 })) },
    ({ pieces, size, starts }) => {
      const bytes = bytesOf(`${starts ? "HTTP/1.1 200 \r\n" : ""}${pieces.join("")}`)
      const whole = read([bytes])
      const slow = read(cut(bytes, size))
      expect(slow._tag).toBe(whole._tag)
      if (whole._tag === "Done" && slow._tag === "Done") {
        expect({ ...slow.answer, keepAlive: false }).toEqual({ ...whole.answer, keepAlive: false })
      }
    },
    { arbitrary: { runs: 2000 } }
  )
})
