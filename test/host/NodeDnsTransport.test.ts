import { describe, expect, it } from "@effect/vitest"
import * as DnsPacket from "dns-packet"
import { DnsRelay, NodeDnsTransport } from "effect-microvm-runtime/host"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { createSocket, type Socket } from "node:dgram"
import { Resolver } from "node:dns/promises"
import { once } from "node:events"
import { connect, createServer, type Server, type Socket as Connection } from "node:net"
import { networkInterfaces } from "node:os"
import { serversOf } from "../../src/host/internal/NodeResolvConf.ts"
import { a, guestQuery, machine, read, reply } from "./dnsSupport.ts"

/** What a name server does about a question, by UDP and by TCP; it may send what it likes. */
interface Behaviour {
  readonly udp: (question: Uint8Array, send: (message: Uint8Array) => void, port: number) => void
  readonly tcp?: (question: Uint8Array, connection: Connection) => void
}

const framed = (message: Uint8Array) =>
  Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message])

/** A name server on 127.0.0.1, on one port by UDP and TCP. */
const upstream = (behaviour: Behaviour) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      for (;;) {
        const udp: Socket = createSocket("udp4")
        udp.bind(0, "127.0.0.1")
        await once(udp, "listening")
        const { port } = udp.address()
        const connections = new Set<Connection>()
        const tcp: Server = createServer((connection) => {
          connections.add(connection)
          connection.on("error", () => {})
          connection.once("data", (data) => behaviour.tcp?.(data.subarray(2), connection))
        })
        tcp.listen(port, "127.0.0.1")
        // It rejects with what comes as an error instead.
        const isFree = await once(tcp, "listening").then(() => true, () => false)
        if (!isFree) {
          udp.close()
          continue
        }
        udp.on("message", (message, from) =>
          behaviour.udp(message, (sent) => udp.send(sent, from.port, from.address), from.port))
        return { port, udp, tcp, connections }
      }
    }),
    ({ connections, tcp, udp }) =>
      Effect.sync(() => {
        udp.close()
        tcp.close()
        connections.forEach((connection) =>
          connection.destroy()
        )
      })
  )

/** A port that is free now, for a listener that cannot choose its own. */
const freePort = Effect.promise(async () => {
  const server = createServer()
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const at = server.address()
  server.close()
  await once(server, "close")
  return at !== null && typeof at === "object" ? at.port : 0
})

const gateway = "127.0.0.77"

const hasIpv6 = Object.values(networkInterfaces()).flat().some((one) => one?.address === "::1")
if (!hasIpv6) console.warn("skipped: the relay over IPv6, for this host has no ::1")

/** A relay over real sockets, a server behind it, and a guest's resolver before it. */
const using = <A, E>(
  behaviour: Behaviour,
  use: (
    made: { readonly port: number; readonly resolver: Resolver; readonly served: DnsRelay.Served }
  ) => Effect.Effect<A, E, Scope.Scope>,
  options: DnsRelay.Options & { readonly learned?: Array<string>; readonly clients?: ReadonlyArray<string> } = {}
) =>
  Effect.gen(function*() {
    const server = yield* upstream(behaviour)
    const port = yield* freePort
    const relay = DnsRelay.layer({ ...options, servers: [{ address: "127.0.0.1", port: server.port }] }).pipe(
      Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto])
    )
    const resolver = new Resolver({ timeout: 6000, tries: 1 })
    resolver.setServers([`${gateway}:${port}`])
    const program = Effect.gen(function*() {
      const served = yield* DnsRelay.DnsRelay.use((made) =>
        made.serve(machine({
          addresses: [gateway],
          clients: options.clients,
          port,
          ...(options.learned && { learned: options.learned })
        }))
      )
      return yield* use({ port, resolver, served })
    })
    return yield* Effect.provide(program, relay)
  }).pipe(Effect.scoped)

const plain: Behaviour = { udp: (question, send) => send(reply(question, [a("example.com", "93.184.216.34")])) }

const code = (run: () => Promise<unknown>) =>
  Effect.promise(() =>
    run().then(
      (value) => JSON.stringify(value),
      (cause: unknown) => hasProperty(cause, "code") ? String(cause.code) : String(cause)
    )
  )

/** Sends bytes over TCP, and collects what comes until the other side hangs up or has sent so many messages. */
const overTcp = (port: number, parts: ReadonlyArray<Uint8Array>, messages: number) =>
  Effect.promise(async () => {
    const socket = connect({ host: gateway, port, allowHalfOpen: true })
    socket.on("error", () => {})
    for (const part of parts) {
      socket.write(part)
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    let received = Buffer.alloc(0)
    const found: Array<Uint8Array> = []
    for await (const chunk of socket) {
      received = Buffer.concat([received, chunk])
      while (received.length >= 2 && received.length >= 2 + received.readUInt16BE(0)) {
        found.push(received.subarray(2, 2 + received.readUInt16BE(0)))
        received = received.subarray(2 + received.readUInt16BE(0))
      }
      if (found.length >= messages) break
    }
    socket.destroy()
    return found
  })

describe("over real sockets", () => {
  it.live("a resolver gets what is allowed, and is told what is not", () => {
    const learned: Array<string> = []
    return using(
      plain,
      Effect.fnUntraced(function*({ resolver, served }) {
        expect(yield* code(() => resolver.resolve4("example.com", { ttl: true }))).toBe(
          "[{\"address\":\"93.184.216.34\",\"ttl\":60}]"
        )
        expect(learned).toEqual(["example.com [example.com] 93.184.216.34 1m 30s"])
        expect(yield* code(() => resolver.resolve4("evil.test"))).toBe("EREFUSED")
        expect(yield* code(() => resolver.resolveTxt("example.com"))).toBe("ENODATA")
        expect(yield* served.counters).toMatchObject({ received: 3, answered: 1, refused: 1, empty: 1 })
      }),
      { learned }
    )
  })

  it.live("whoever is not the machine gets no answer", () =>
    using(
      plain,
      Effect.fnUntraced(function*({ port, resolver, served }) {
        resolver.setLocalAddress("127.0.0.88")
        const stranger = new Resolver({ timeout: 100, tries: 1 })
        stranger.setServers([`${gateway}:${port}`])
        expect(yield* code(() => stranger.resolve4("example.com"))).toBe("ETIMEOUT")
        expect(yield* overTcp(port, [framed(guestQuery("example.com"))], 1)).toEqual([])
        expect(yield* served.counters).toMatchObject({ received: 0 })
        expect(yield* code(() => resolver.resolve4("example.com"))).toBe("[\"93.184.216.34\"]")
      }),
      { clients: ["127.0.0.88"] }
    ))

  it.live.skipIf(!hasIpv6)("over IPv6, with a server on IPv6", () =>
    Effect.gen(function*() {
      const server = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const socket = createSocket("udp6")
          socket.bind(0, "::1")
          await once(socket, "listening")
          socket.on("message", (message, from) =>
            socket.send(
              reply(message, [{ name: "example.com", type: "AAAA", data: "2001:db8::7" }]),
              from.port,
              from.address
            ))
          return socket
        }),
        (socket) => Effect.sync(() => socket.close())
      )
      const port = yield* freePort
      const relay = DnsRelay.layer({ servers: [{ address: "::1", port: server.address().port }] }).pipe(
        Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto])
      )
      const resolver = new Resolver({ timeout: 6000, tries: 1 })
      resolver.setServers([`[::1]:${port}`])
      yield* DnsRelay.DnsRelay.use((made) => made.serve(machine({ addresses: [gateway, "::1"], port }))).pipe(
        Effect.andThen(code(() => resolver.resolve6("example.com"))),
        Effect.map((answer) => expect(answer).toBe("[\"2001:db8::7\"]")),
        Effect.scoped,
        Effect.provide(relay)
      )
    }).pipe(Effect.scoped))

  it.live("by TCP on both sides, when an answer is too long", () => {
    const many = Array.from({ length: 60 }, (_, index) => a("example.com", `192.0.2.${index}`))
    return using(
      {
        udp: (question, send) => send(reply(question, [], { isTruncated: true })),
        tcp: (question, connection) => {
          const message = framed(reply(question, many))
          connection.write(message.subarray(0, 1))
          setTimeout(() => connection.write(message.subarray(1, 100)), 10)
          setTimeout(() => connection.write(message.subarray(100)), 20)
        }
      },
      Effect.fnUntraced(function*({ resolver }) {
        const found = yield* Effect.promise(() => resolver.resolve4("example.com"))
        expect(new Set(found)).toEqual(new Set(many.map(({ data }) => data)))
      })
    )
  })

  it.live("forged answers are passed over: from elsewhere, under other ids, to other questions, garbage", () =>
    using(
      {
        udp: (question, send, port) => {
          const id = DnsPacket.decode(Buffer.from(question)).id ?? 0
          const forged = [a("example.com", "6.6.6.6")]
          send(new Uint8Array(0))
          send(new Uint8Array(600).fill(0xc0))
          send(reply(question, forged, { id: id ^ 1 }))
          send(reply(question, forged, { name: "evil.test" }))
          send(question)
          const other = createSocket("udp4")
          other.send(reply(question, forged), port, "127.0.0.1", () => other.close())
          setTimeout(() => {
            send(reply(question, [a("example.com", "93.184.216.34")]))
          }, 50)
        }
      },
      Effect.fnUntraced(function*({ resolver }) {
        expect(yield* code(() => resolver.resolve4("example.com"))).toBe("[\"93.184.216.34\"]")
      })
    ))

  it.live("a dead server: told within 5 seconds, others are answered meanwhile", () =>
    using(
      { udp: (question, send) => Buffer.from(question).includes("slow") ? undefined : plain.udp(question, send, 0) },
      Effect.fnUntraced(function*({ resolver }) {
        const before = Date.now()
        const slow = code(() => resolver.resolve4("slow.example.org"))
        const fast = Effect.map(code(() => resolver.resolve4("example.com")), () => Date.now() - before)
        const [told, quick] = yield* Effect.all([slow, fast], { concurrency: "unbounded" })
        expect(told).toBe("ESERVFAIL")
        expect(Date.now() - before).toBeLessThan(5500)
        expect(quick).toBeLessThan(1500)
      })
    ))

  it.live("no server at all: told at once", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      const servers = [{ address: "127.0.0.1", port: yield* freePort }]
      const relay = DnsRelay.layer({ servers }).pipe(
        Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto])
      )
      const resolver = new Resolver({ timeout: 6000, tries: 1 })
      resolver.setServers([`${gateway}:${port}`])
      yield* Effect.provide(
        Effect.gen(function*() {
          yield* DnsRelay.DnsRelay.use((made) => made.serve(machine({ addresses: [gateway], port })))
          const before = Date.now()
          expect(yield* code(() => resolver.resolve4("example.com"))).toBe("ESERVFAIL")
          expect(Date.now() - before).toBeLessThan(1500)
        }),
        relay
      )
    }).pipe(Effect.scoped))

  it.live("messages over TCP: split anywhere, several at once, half closed", () =>
    using(
      plain,
      Effect.fnUntraced(function*({ port }) {
        const message = framed(guestQuery("example.com"))
        const bytes = [...message].map((byte) => Uint8Array.of(byte))
        for (
          const parts of [[message], bytes, [Buffer.concat([message, message])], [
            message.subarray(0, 1),
            message.subarray(1)
          ]]
        ) {
          const wanted = parts.length === 1 && (parts[0]?.length ?? 0) > message.length ? 2 : 1
          const found = yield* overTcp(port, parts, wanted)
          expect(found.map((one) => read(one))).toMatchObject(
            Array.from({ length: wanted }, () => ({ rcode: "NOERROR" }))
          )
        }
      })
    ))

  it.live("what is no query, or too long a one, ends a TCP connection", () =>
    using(
      plain,
      Effect.fnUntraced(function*({ port, served }) {
        for (
          const bytes of [
            framed(new Uint8Array(64 * 1024 - 1)),
            framed(new Uint8Array(0)),
            framed(new Uint8Array(40).fill(255))
          ]
        ) {
          expect(yield* overTcp(port, [bytes], 1)).toEqual([])
        }
        expect((yield* served.counters).answered).toBe(0)
      })
    ))

  it.live("so many TCP connections, and none that idles", () =>
    using(
      plain,
      Effect.fnUntraced(function*({ port }) {
        const sockets = yield* Effect.acquireRelease(
          Effect.sync(() =>
            Array.from({ length: 6 }, () => {
              const socket = connect({ host: gateway, port })
              socket.on("error", () => {})
              socket.resume()
              return { socket, closed: once(socket, "close").then(() => Date.now()) }
            })
          ),
          (made) => Effect.sync(() => made.forEach(({ socket }) => socket.destroy()))
        )
        const before = Date.now()
        const times = yield* Effect.promise(() => Promise.all(sockets.map(({ closed }) => closed)))
        const early = times.filter((time) => time - before < 300)
        expect(early.length).toBe(4)
        expect(Math.max(...times) - before).toBeLessThan(3000)
        expect(yield* overTcp(port, [framed(guestQuery("example.com"))], 1)).toHaveLength(1)
      }),
      { connections: 2, idle: "500 millis" }
    ))

  it.live("nobody listens after the scope; two on one address are told of", () =>
    Effect.gen(function*() {
      const port = yield* freePort
      const relay = DnsRelay.layer().pipe(Layer.provide([NodeDnsTransport.layer, SecureRandom.layerWebCrypto]))
      const serve = DnsRelay.DnsRelay.use((made) => made.serve(machine({ addresses: [gateway], port })))
      const failure = yield* Effect.flip(Effect.scoped(Effect.andThen(serve, serve))).pipe(Effect.provide(relay))
      expect(failure.message).toMatch(
        /^listening for questions on 127\.0\.0\.77 port \d+ collides with .*: find it by "ss -lntup sport = :\d+"/
      )
      yield* Effect.scoped(serve).pipe(Effect.provide(relay))
      const elsewhere = DnsRelay.DnsRelay.use((made) => made.serve(machine({ addresses: ["203.0.113.1"], port })))
      const refusal = yield* Effect.flip(Effect.scoped(elsewhere)).pipe(Effect.provide(relay))
      expect(refusal.message).toContain("EADDRNOTAVAIL")
    }))

  it.live("a flood of garbage and questions leaves it standing", () =>
    using(
      plain,
      Effect.fnUntraced(function*({ port, resolver, served }) {
        yield* Effect.promise(async () => {
          const guest = createSocket("udp4")
          for (let index = 0; index < 3000; index++) {
            // Lets the relay read, before the kernel drops what is too much.
            if (index % 50 === 0) await new Promise((resolve) => setImmediate(resolve))
            const bytes = index % 2 === 0
              ? guestQuery(`n${index}.example.org`)
              : crypto.getRandomValues(new Uint8Array(index % 600))
            await new Promise((resolve) => guest.send(bytes, port, gateway, resolve))
          }
          guest.close()
        })
        // Its share is used up; it has one again when two seconds have passed.
        yield* Effect.sleep("2100 millis")
        expect(yield* code(() => resolver.resolve4("example.com"))).toBe("[\"93.184.216.34\"]")
        const { answered, dropped, failed, received, refused, tooMany } = yield* served.counters
        expect(tooMany).toBeGreaterThan(0)
        expect(answered + failed + dropped + refused).toBe(received)
      })
    ))
})

describe("the servers of a host", () => {
  const at = (...addresses: ReadonlyArray<string>) => addresses.map((address) => ({ address, port: 53 }))
  for (
    const [what, text, servers] of [
      [
        "three of four",
        "# dns\nsearch a\nnameserver 192.0.2.1\nnameserver\t192.0.2.2 ; x\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n",
        at("192.0.2.1", "192.0.2.2", "fe80::1%eth0")
      ],
      ["none", "options edns0\n", at("127.0.0.1")],
      ["no file", "", at("127.0.0.1")],
      ["what is none", "nameserver example.com\n#nameserver 192.0.2.1\nnameserver", at("127.0.0.1")]
    ] as const
  ) {
    it(what, () => {
      expect(serversOf(text)).toEqual(servers)
    })
  }
})
