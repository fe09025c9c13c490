import * as DnsPacket from "dns-packet"
import { Cidr, DnsRelay, DnsTransport, HostError } from "effect-microvm-runtime/host"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export const texts = (addresses: ReadonlyArray<Cidr.Address>) => addresses.map(Cidr.formatAddress)

const recordTypes = new Map([["A", 1], ["NS", 2], ["CNAME", 5], ["SOA", 6], ["PTR", 12], ["MX", 15], ["TXT", 16]])
for (const [name, number] of [["AAAA", 28], ["SRV", 33], ["SVCB", 64], ["HTTPS", 65], ["AXFR", 252], ["ANY", 255]]) {
  recordTypes.set(String(name), Number(number))
}

/** The bytes of a query; `labels` may have any bytes in them. */
export const guestQuery = (
  name: string | ReadonlyArray<string>,
  type = "A",
  options: {
    readonly id?: number
    readonly flags?: number
    readonly class?: number
    readonly counts?: readonly [number, number, number, number]
    readonly rest?: ReadonlyArray<number>
  } = {}
): Uint8Array => {
  const labels = typeof name === "string" ? name.split(".") : name
  const wire = labels.flatMap((label) =>
    Array.from(Buffer.from(`${String.fromCharCode(label.length)}${label}`, "latin1"))
  )
  const { class: of = 1, counts = [1, 0, 0, 0], flags = 0x0100, id = 7, rest = [] } = options
  const words = (...values: ReadonlyArray<number>) => values.flatMap((value) => [value >> 8, value & 255])
  return Uint8Array.from([
    ...words(id, flags, ...counts),
    ...wire,
    0,
    ...words(recordTypes.get(type) ?? Number(type), of),
    ...rest
  ])
}

export const opt = (size: number) => [0, 0, 41, size >> 8, size & 255, 0, 0, 0, 0, 0, 0]

const rcodes = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"]

/** What another implementation reads in an answer. */
export const read = (bytes: Uint8Array) => {
  const { answers = [], flag_tc: isTruncated, ...packet } = DnsPacket.decode(Buffer.from(bytes))
  return {
    id: packet.id,
    rcode: rcodes[(bytes[3] ?? 0) & 15],
    isTruncated,
    type: packet.type,
    questions: packet.questions?.map(({ name, type }) => `${type} ${name}`),
    answers: answers.map((answer) =>
      answer.type === "A" || answer.type === "AAAA"
        ? `${answer.name} ${answer.ttl} ${answer.type} ${answer.data}`
        : answer.type
    )
  }
}

export interface UpstreamRecord {
  readonly name: string
  readonly type: "A" | "AAAA" | "CNAME"
  readonly ttl?: number
  readonly data: string
}

/** An answer of a server, as another implementation writes it. */
export const reply = (
  to: Uint8Array,
  answers: ReadonlyArray<UpstreamRecord>,
  options: { readonly rcode?: number; readonly isTruncated?: boolean; readonly id?: number; readonly name?: string } =
    {}
): Uint8Array => {
  const asked = DnsPacket.decode(Buffer.from(to))
  const [question] = asked.questions ?? []
  if (question === undefined) throw new Error("nothing was asked")
  const { id = asked.id ?? 0, isTruncated = false, name = question.name, rcode = 0 } = options
  return DnsPacket.encode({
    type: "response",
    id,
    flags: 0x0180 | rcode | (isTruncated ? DnsPacket.TRUNCATED_RESPONSE : 0),
    questions: [{ ...question, name }],
    answers: answers.map(({ data, name: of, ttl = 60, type }) => ({ class: "IN", ttl, name: of, type, data }))
  })
}

export const a = (name: string, data: string, ttl = 60): UpstreamRecord => ({ name, type: "A", ttl, data })

/** Plays the servers: gives what comes back, one after the other, or "nothing", or "closed". */
export type Script = (
  asked: { readonly server: string; readonly protocol: DnsTransport.Protocol; readonly query: Uint8Array }
) => ReadonlyArray<Uint8Array> | "nothing" | "closed"

export const one: Script = ({ query }) => {
  const name = DnsPacket.decode(Buffer.from(query)).questions?.[0]?.name ?? ""
  return [reply(query, [a(name, "93.184.216.34")])]
}

/** A relay over sockets that are none: `send` is what a guest does. */
export const world = (script: Script = one, options: DnsRelay.Options = {}) => {
  const listeners = new Map<string, DnsTransport.ListenOptions>()
  const asked: Array<string> = []
  const refusals: Array<string> = []
  const transport = DnsTransport.DnsTransport.of({
    servers: Effect.succeed([{ address: "192.0.2.1", port: 53 }, { address: "192.0.2.2", port: 53 }]),
    exchange: (protocol, server, message, isAnswer) =>
      Effect.suspend(() => {
        const [question] = DnsPacket.decode(Buffer.from(message)).questions ?? []
        asked.push(`${protocol} ${server.address} ${question?.type} ${question?.name}`)
        const replies = script({ server: server.address, protocol, query: message })
        if (replies === "nothing") return Effect.never
        if (replies === "closed") return new DnsTransport.ExchangeFailed({ server, cause: "closed" })
        const fitting = replies.find(isAnswer)
        return fitting === undefined ? Effect.never : Effect.succeed(fitting)
      }),
    listen: (protocol, at, listening) => {
      const key = `${protocol} ${at.address}`
      const refusal = refusals.shift()
      return refusal === undefined
        ? Effect.asVoid(Effect.acquireRelease(
          Effect.sync(() => listeners.set(key, listening)),
          () => Effect.sync(() => listeners.delete(key))
        ))
        : HostError.fail(new HostError.IoFailed({ operation: "listening", path: key, cause: refusal }))
    }
  })
  const layer = DnsRelay.layer(options).pipe(
    Layer.provide([Layer.succeed(DnsTransport.DnsTransport, transport), SecureRandom.layerWebCrypto])
  )
  const send = (message: Uint8Array, to = "172.30.0.0", protocol: DnsTransport.Protocol = "udp") =>
    Effect.suspend(() => {
      const listener = listeners.get(`${protocol} ${to}`)
      if (listener === undefined) throw new Error(`nobody listens at ${to}`)
      return Effect.map(listener.handle(message), (bytes) => bytes === undefined ? "none" : read(bytes))
    })
  return { layer, listeners, asked, refusals, send }
}

export const machine = (
  options: Partial<DnsRelay.ServeOptions> & { readonly learned?: Array<string> } = {}
): DnsRelay.ServeOptions => ({
  machine: "web-1",
  addresses: ["172.30.0.0"],
  names: ["example.com", "*.example.org"],
  learn: ({ addresses, keep, name, rules }) =>
    Effect.sync(() => {
      options.learned?.push(`${name} [${rules.join()}] ${texts(addresses).join()} ${Duration.format(keep)}`)
    }),
  mayLearn: () => true,
  ...options
})
