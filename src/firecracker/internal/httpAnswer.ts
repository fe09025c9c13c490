/**
 * Reads one answer of Firecracker's HTTP server (RFC 9112, as much of it as that server speaks). Bytes come in pieces of
 * any size; whatever they are, what is kept of them is bounded and the verdict does not depend on how they were cut.
 */

export interface Answer {
  readonly status: number
  readonly body: string
  readonly deprecated: boolean
  /** May another request follow on the same connection? */
  readonly keepAlive: boolean
}

export type Step =
  | { readonly _tag: "More" }
  | { readonly _tag: "Done"; readonly answer: Answer }
  /** Not an answer: `detail` says what is wrong with it. */
  | { readonly _tag: "Violation"; readonly detail: string }

export interface Reader {
  /** Takes the next bytes, which are only lent. Not to be called again after anything else than `More`. */
  readonly push: (chunk: Uint8Array) => Step
  /** How far it had come, for the message of an error. */
  readonly progress: () => "nothing" | "part of the head" | "part of the body"
}

interface Head {
  readonly status: number
  readonly bodyAt: number
  readonly bodyBytes: number
  readonly deprecated: boolean
  readonly keepAlive: boolean
}

export const maxHeadBytes = 64 * 1024

const more: Step = { _tag: "More" }
const violation = (detail: string): Step => ({ _tag: "Violation", detail })
const excerpt = (text: string): string => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text)

/** Where the blank line begins, or -1. It may have begun before `from`. */
const blankLine = (bytes: Uint8Array, from: number): number => {
  let at = bytes.indexOf(0x0d, Math.max(0, from - 3))
  while (at !== -1 && !(bytes[at + 1] === 0x0a && bytes[at + 2] === 0x0d && bytes[at + 3] === 0x0a)) {
    at = bytes.indexOf(0x0d, at + 1)
  }
  return at
}

const latin1 = new TextDecoder("latin1")
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

const start = "HTTP/1."
const blank = "\r\n\r\n"

/** So that something else than HTTP is told at once, and not when it has become too long. */
const startsRight = (bytes: Uint8Array, length: number): boolean => {
  for (let i = 0; i < Math.min(length, start.length); i++) if (bytes[i] !== start.charCodeAt(i)) return false
  return true
}

/** No expression that may give back what it has taken: of blanks between blanks it could try all ways, and take hours. */
const parseHeader = (line: string): readonly [name: string, value: string] | undefined => {
  const colon = line.indexOf(":")
  const name = line.slice(0, Math.max(0, colon))
  if (!/^[!#$%&'*+\-.^_`|~\w]+$/.test(name) || /[\0\r\n]/.test(line)) return undefined
  const isBlank = (at: number): boolean => line[at] === " " || line[at] === "\t"
  let from = colon + 1
  let to = line.length
  while (from < to && isBlank(from)) from++
  while (to > from && isBlank(to - 1)) to--
  return [name.toLowerCase(), line.slice(from, to)]
}

const parseHead = (text: string, maxBodyBytes: number): Head | string => {
  const [statusLine = "", ...lines] = text.split("\r\n")
  // Firecracker has no reason phrase, and some have not even the space before it.
  const [, minor, digits] = /^HTTP\/1\.([01]) ([1-9]\d\d)(?: [^\0\r\n]*)?$/.exec(statusLine) ?? []
  if (digits === undefined) return `the status line ${excerpt(statusLine)}`
  const status = Number(digits)
  if (status < 200 || status > 599) return `status ${status}`

  const headers = new Map<string, string>()
  for (const line of lines) {
    const header = parseHeader(line)
    if (header === undefined) return `the header line ${excerpt(line)}`
    const [key, value] = header
    // Two lengths are how one answer is taken for another (RFC 9112, 6.3).
    if (key === "content-length" && headers.has(key)) return "more than one Content-Length"
    headers.set(key, value)
  }
  const coding = headers.get("transfer-encoding")
  if (coding !== undefined) return `Transfer-Encoding ${excerpt(coding)}`

  const written = headers.get("content-length")
  const hasNone = status === 204 || status === 304
  if (written === undefined && !hasNone) return "no Content-Length"
  if (written !== undefined && !/^\d{1,15}$/.test(written)) return `Content-Length ${excerpt(written)}`
  const bodyBytes = Number(written ?? 0)
  if (hasNone && bodyBytes !== 0) return `status ${status} with a body`
  if (bodyBytes > maxBodyBytes) return `a body of ${bodyBytes} bytes, and ${maxBodyBytes} are allowed`
  return {
    status,
    bodyAt: text.length + blank.length,
    bodyBytes,
    deprecated: headers.get("deprecation")?.toLowerCase() === "true",
    keepAlive: minor === "1" && headers.get("connection")?.toLowerCase() !== "close"
  }
}

/** Firecracker says yes in the same words each time, so the last ones are remembered, up to their blank line. */
let known: { readonly bytes: Uint8Array; readonly maxBodyBytes: number; readonly head: Head } | undefined
const mostKnown = 512

/** The head that was there before, if `bytes` begin with it. */
const knownHead = (bytes: Uint8Array, length: number, maxBodyBytes: number): Head | undefined => {
  if (known === undefined || known.maxBodyBytes !== maxBodyBytes || known.bytes.length > length) return undefined
  for (let at = 0; at < known.bytes.length; at++) if (bytes[at] !== known.bytes[at]) return undefined
  return known.head
}

const nothing = new Uint8Array(0)

export const make = (maxBodyBytes: number): Reader => {
  let bytes: Uint8Array = nothing
  let length = 0
  let isLent = false
  let head: Head | undefined

  const append = (chunk: Uint8Array): void => {
    if (length === 0) {
      bytes = chunk
      length = chunk.length
      isLent = true
      return
    }
    const total = length + chunk.length
    if (total > bytes.length) {
      const grown = new Uint8Array(Math.max(total, 2 * bytes.length))
      grown.set(bytes.subarray(0, length))
      bytes = grown
    }
    bytes.set(chunk, length)
    length = total
  }

  const keep = (): Step => {
    if (isLent) bytes = new Uint8Array(bytes)
    isLent = false
    return more
  }

  const readHead = (from: number): Step | undefined => {
    head = knownHead(bytes, length, maxBodyBytes)
    if (head !== undefined) return undefined
    if (!startsRight(bytes, length)) {
      return violation(`it starts with ${excerpt(latin1.decode(bytes.subarray(0, length)))}`)
    }
    const end = blankLine(bytes.subarray(0, length), from)
    if (end > maxHeadBytes || end === -1 && length >= maxHeadBytes + 4) {
      return violation(`a head over ${maxHeadBytes} bytes`)
    }
    if (end === -1) return keep()
    const parsed = parseHead(latin1.decode(bytes.subarray(0, end)), maxBodyBytes)
    if (typeof parsed === "string") return violation(parsed)
    head = parsed
    const { bodyAt } = head
    if (bodyAt <= mostKnown) known = { bytes: new Uint8Array(bytes.subarray(0, bodyAt)), maxBodyBytes, head }
    return undefined
  }

  return {
    push: (chunk) => {
      const from = length
      append(chunk)
      if (head === undefined) {
        const step = readHead(from)
        if (step !== undefined) return step
      }
      if (head === undefined || length < head.bodyAt + head.bodyBytes) return keep()
      const { bodyAt, bodyBytes, deprecated, keepAlive, status } = head
      // Bytes after the answer belong to none that was asked for; Firecracker sends such after a body that it has refused.
      const isLast = length === bodyAt + bodyBytes
      try {
        const body = bodyBytes === 0 ? "" : utf8.decode(bytes.subarray(bodyAt, bodyAt + bodyBytes))
        return { _tag: "Done", answer: { status, body, deprecated, keepAlive: keepAlive && isLast } }
      } catch {
        return violation("a body that is not UTF-8")
      }
    },
    progress: () => head !== undefined ? "part of the body" : length > 0 ? "part of the head" : "nothing"
  }
}
