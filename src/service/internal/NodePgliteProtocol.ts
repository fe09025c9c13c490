import * as NodeCrypto from "node:crypto"

/**
 * The frontend side of PostgreSQL's protocol 3 (PostgreSQL documentation, "Message Formats"), as far as several clients of
 * one session need it.
 */

/** One message. The first ones of a connection have no type: `""`. */
export interface Message {
  readonly type: string
  /** All of it, with its head. */
  readonly bytes: Buffer
}

/** More than any statement that one writes to a database of this kind. */
const longestMessage = 64 * 1024 * 1024

/** Cuts what comes in into messages. */
export const makeReader = () => {
  let chunks: Array<Buffer> = []
  let size = 0
  let isStarting = true
  return {
    /** From now on messages have types. */
    started: (): void => {
      isStarting = false
    },
    push: (chunk: Buffer): void => {
      chunks.push(chunk)
      size += chunk.length
    },
    /** The next message that is there as a whole. */
    next: (longest = longestMessage): Message | "incomplete" | "malformed" => {
      const head = isStarting ? 4 : 5
      if (size < head) return "incomplete"
      if ((chunks[0]?.length ?? 0) < head) chunks = [Buffer.concat(chunks)]
      const first = chunks[0] ?? Buffer.alloc(0)
      const length = first.readUInt32BE(head - 4) + head - 4
      if (length > longest || length < head) return "malformed"
      if (size < length) return "incomplete"
      const all = Buffer.concat(chunks)
      chunks = [all.subarray(length)]
      size -= length
      return { type: isStarting ? "" : String.fromCharCode(all[0] ?? 0), bytes: all.subarray(0, length) }
    }
  }
}

/** Asks for the other of the two things that may come first. */
export const startupCode = ({ bytes }: Message): "encryption" | "cancel" | "start" | "malformed" => {
  if (bytes.length < 8) return "malformed"
  const code = bytes.readUInt32BE(4)
  if (code === 80_877_103 || code === 80_877_104) return "encryption"
  if (code === 80_877_102) return "cancel"
  return code >>> 16 === 3 ? "start" : "malformed"
}

const frame = (type: string, ...parts: ReadonlyArray<string | Buffer>): Buffer => {
  const body = Buffer.concat(parts.map((part) => typeof part === "string" ? Buffer.from(part) : part))
  const head = Buffer.alloc(5)
  head.write(type, 0, "latin1")
  head.writeUInt32BE(body.length + 4, 1)
  return Buffer.concat([head, body])
}

/** No encryption here: the connection does not leave the machine. */
export const noEncryption = Buffer.from("N")

/** AuthenticationCleartextPassword */
export const askPassword = frame("R", Buffer.from([0, 0, 0, 3]))

export const fatal = (code: string, message: string): Buffer => frame("E", `SFATAL\0VFATAL\0C${code}\0M${message}\0\0`)

export const sync = frame("S")

export const query = (text: string): Buffer => frame("Q", `${text}\0`)

export const closeStatement = (name: string): Buffer => frame("C", `S${name}\0`)

/** Is it this password? Takes as long for each wrong one. */
export const isPassword = ({ bytes, type }: Message, password: string): boolean => {
  const digest = (data: string | Buffer) => NodeCrypto.createHash("sha256").update(data).digest()
  return type === "p" && NodeCrypto.timingSafeEqual(digest(bytes.subarray(5, -1)), digest(password))
}

/** Does the server act on it at once, and not only when others follow? */
export const isFlushed = ({ type }: Message): boolean => !["P", "B", "D", "E", "C"].includes(type)

/**
 * The state of the transaction that a whole answer leaves: ReadyForQuery is the last of its messages, and none when the
 * server waits for more.
 */
export const isIdle = (tail: Buffer): boolean =>
  tail.length >= 6 && tail.subarray(-6).equals(Buffer.from("Z\0\0\0\x05I"))

/** The embedded server exits where another one would read from its client. */
const copyIn = /(?:^|;)\s*copy\b[^;]*\bfrom\s+stdin\b/i

/** Comments as blanks, names in quotes as plain ones. */
const plain = (sql: string): string => sql.replace(/--[^\n]*|\/\*[^]*?\*\//g, " ").replace(/"[^"]*"/g, "x")

/** Looked at as it is too, so that what only looks like a comment hides nothing. */
const isCopyIn = (sql: string): boolean => copyIn.test(sql) || copyIn.test(plain(sql))

const refusal = "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '0A000', MESSAGE = " +
  "'the embedded database has no COPY FROM STDIN: use INSERT, or a PostgreSQL server'; END$$"

const split = (bytes: Buffer, from: number): { readonly text: string; readonly rest: Buffer } => {
  const end = bytes.indexOf(0, from)
  return end < 0
    ? { text: "", rest: Buffer.alloc(0) }
    : { text: bytes.toString("utf8", from, end), rest: bytes.subarray(end + 1) }
}

/**
 * Gives the prepared statements of one client names of their own. `statements` are the names that it has now.
 */
export const rename = (message: Message, prefix: string, statements: Set<string>): Buffer => {
  const own = (name: string) => name === "" ? "" : `${prefix}${name}`
  const { bytes, type } = message
  switch (type) {
    case "Q": {
      return isCopyIn(split(bytes, 5).text) ? query(refusal) : bytes
    }
    case "P": {
      const name = split(bytes, 5)
      const text = split(name.rest, 0)
      if (name.text !== "") statements.add(own(name.text))
      return frame("P", `${own(name.text)}\0`, `${isCopyIn(text.text) ? refusal : text.text}\0`, text.rest)
    }
    case "B": {
      const portal = split(bytes, 5)
      const name = split(portal.rest, 0)
      return frame("B", `${portal.text}\0${own(name.text)}\0`, name.rest)
    }
    case "C":
    case "D": {
      const kind = String.fromCharCode(bytes[5] ?? 0)
      const name = split(bytes, 6).text
      if (kind !== "S") return bytes
      if (type === "C") statements.delete(own(name))
      return frame(type, `S${own(name)}\0`)
    }
    default:
      return bytes
  }
}
