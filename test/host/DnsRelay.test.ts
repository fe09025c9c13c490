import { describe, expect, it } from "@effect/vitest"
import { DnsRelay } from "effect-microvm-runtime/host"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import * as Message from "../../src/host/internal/dnsMessage.ts"
import {
  a,
  guestQuery,
  machine,
  one,
  opt,
  reply,
  type Script,
  texts,
  type UpstreamRecord,
  world
} from "./dnsSupport.ts"

const serve = (options: DnsRelay.ServeOptions) => DnsRelay.DnsRelay.use((relay) => relay.serve(options))

/** Runs a world's relay with one machine. */
const using = <A, E>(
  made: ReturnType<typeof world>,
  use: (served: DnsRelay.Served) => Effect.Effect<A, E, DnsRelay.DnsRelay>,
  options = machine()
) => Effect.scoped(Effect.flatMap(serve(options), use)).pipe(Effect.provide(made.layer))

/** After so much time, what a fiber has come to. */
const after = <A, E>(time: Duration.Input, fiber: Fiber.Fiber<A, E>) =>
  Effect.andThen(TestClock.adjust(time), Fiber.join(fiber))

const answers = (...records: ReadonlyArray<UpstreamRecord>): Script => ({ query }) => [reply(query, records)]

describe("what may be asked", () => {
  const rows: ReadonlyArray<readonly [string, Uint8Array, string, number]> = [
    ["a name", guestQuery("example.com"), "NOERROR", 1],
    ["a name in any case", guestQuery("eXample.COM"), "NOERROR", 1],
    ["a name below a wildcard", guestQuery("a.example.org"), "NOERROR", 1],
    ["a name deep below it", guestQuery("a.b.example.org"), "NOERROR", 1],
    ["the name of the wildcard itself", guestQuery("example.org"), "REFUSED", 0],
    ["a name that only ends like it", guestQuery("notexample.org"), "REFUSED", 0],
    ["a name below one without a star", guestQuery("a.example.com"), "REFUSED", 0],
    ["another name", guestQuery("secret.evil.test"), "REFUSED", 0],
    ["the root", guestQuery([]), "REFUSED", 0],
    ["a dot within a label", guestQuery(["a.example", "org"]), "REFUSED", 0],
    ["a dot within a label below a wildcard", guestQuery(["x.y", "example", "org"]), "REFUSED", 0],
    ["odd bytes below a wildcard", guestQuery(["a\u00ff\n", "example", "org"]), "REFUSED", 0],
    ["a zero byte", guestQuery(["example\0", "com"]), "REFUSED", 0],
    ["another class", guestQuery("example.com", "A", { class: 3 }), "REFUSED", 0],
    ["PTR", guestQuery("example.com", "PTR"), "REFUSED", 0],
    ["ANY", guestQuery("example.com", "ANY"), "REFUSED", 0],
    ["a transfer of the zone", guestQuery("example.com", "AXFR"), "REFUSED", 0],
    ["TXT", guestQuery("example.com", "TXT"), "NOERROR", 0],
    ["HTTPS", guestQuery("example.com", "HTTPS"), "NOERROR", 0],
    ["SVCB", guestQuery("example.com", "SVCB"), "NOERROR", 0],
    ["MX", guestQuery("example.com", "MX"), "NOERROR", 0],
    ["TXT of another name", guestQuery("evil.test", "TXT"), "REFUSED", 0],
    ["a notification", guestQuery("example.com", "A", { flags: 0x2000 }), "NOTIMP", 0],
    ["two questions", guestQuery("example.com", "A", { counts: [2, 0, 0, 0] }), "FORMERR", 0],
    ["no question", guestQuery("example.com", "A", { counts: [0, 0, 0, 0] }), "FORMERR", 0],
    ["records in a query", guestQuery("example.com", "A", { counts: [1, 1, 0, 0] }), "FORMERR", 0],
    ["65,535 additional records", guestQuery("example.com", "A", { counts: [1, 0, 0, 65535] }), "FORMERR", 0]
  ]
  for (const [what, bytes, rcode, upstream] of rows) {
    it.effect(`${what}: ${rcode}, asked upstream ${upstream} times`, () => {
      const made = world()
      return using(
        made,
        Effect.fnUntraced(function*() {
          const answer = yield* made.send(bytes)
          expect(answer).toMatchObject({ id: 7, type: "response", rcode })
          expect(typeof answer === "object" && answer.answers.length).toBe(upstream)
          expect(made.asked.length).toBe(upstream)
        })
      )
    })
  }

  const silent: ReadonlyArray<readonly [string, Uint8Array]> = [
    ["nothing", new Uint8Array(0)],
    ["half a header", guestQuery("example.com").subarray(0, 11)],
    ["a header alone", guestQuery("example.com").subarray(0, 12)],
    ["a name that is cut off", guestQuery("example.com").subarray(0, 20)],
    ["a question that is cut off", guestQuery("example.com").subarray(0, -1)],
    ["an answer", guestQuery("example.com", "A", { flags: 0x8180 })],
    ["a pointer in a question", Uint8Array.from([...guestQuery([]).subarray(0, 12), 0xc0, 12, 0, 1, 0, 1])],
    ["a label of a kind that is none", Uint8Array.from([...guestQuery([]).subarray(0, 12), 0x41, 0, 0, 1, 0, 1])],
    ["a name of 256 bytes", guestQuery(Array.from({ length: 4 }, () => "a".repeat(63)))],
    ["an additional record that is missing", guestQuery("example.com", "A", { counts: [1, 0, 0, 1] })]
  ]
  for (const [what, bytes] of silent) {
    it.effect(`${what} is not answered, and counted`, () => {
      const made = world()
      return using(
        made,
        Effect.fnUntraced(function*(served) {
          expect(yield* made.send(bytes)).toBe("none")
          expect(yield* served.counters).toMatchObject({ received: 1, dropped: 1, malformed: 1 })
          expect(made.asked).toEqual([])
        })
      )
    })
  }

  it.effect("the case of a guest's letters does not leave the host, and comes back to it", () => {
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("eXAMPLE.cOm"))).toMatchObject({ questions: ["A eXAMPLE.cOm"] })
        expect(made.asked).toEqual(["udp 192.0.2.1 A example.com"])
      })
    )
  })
})

describe("learning", () => {
  it.effect("comes before the answer, with the rules that allow it, for longer than the guest is told", () => {
    const learned: Array<string> = []
    const made = world(answers(a("a.example.org", "198.51.100.1", 60), a("a.example.org", "198.51.100.2", 90)))
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("a.example.org"))).toMatchObject({
          answers: ["a.example.org 60 A 198.51.100.1", "a.example.org 60 A 198.51.100.2"]
        })
        expect(learned).toEqual(["a.example.org [A.Example.Org.,*.example.org] 198.51.100.1,198.51.100.2 1m 30s"])
      }),
      machine({ learned, names: ["A.Example.Org.", "*.example.org", "*.b.example.org"] })
    )
  })

  it.effect("the guest hears nothing while it lasts", () => {
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*() {
        const asking = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
        yield* TestClock.adjust("2 seconds")
        expect(asking.pollUnsafe()).toBeUndefined()
        expect(yield* after("1 seconds", asking)).toMatchObject({ answers: ["example.com 57 A 93.184.216.34"] })
      }),
      machine({ learn: () => Effect.sleep("3 seconds") })
    )
  })

  it.effect("when it fails, or does not end, the guest is told that something is wrong", () => {
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "SERVFAIL", answers: [] })
        const asking = yield* Effect.forkChild(made.send(guestQuery("a.example.org")), { startImmediately: true })
        expect(yield* after("5 seconds", asking)).toMatchObject({ rcode: "SERVFAIL", answers: [] })
        expect(yield* served.counters).toMatchObject({ received: 2, failed: 2 })
      }),
      machine({ learn: ({ name }) => name === "example.com" ? Effect.die("nft is gone") : Effect.never })
    )
  })

  it.effect("a chain of aliases is followed; what is not on it is neither learned nor told", () => {
    const learned: Array<string> = []
    const made = world(answers(
      { name: "Example.com", type: "CNAME", ttl: 300, data: "one.cdn.test" },
      a("two.cdn.test", "198.51.100.7", 200),
      a("evil.test", "198.51.100.66"),
      { name: "one.cdn.test", type: "CNAME", ttl: 20, data: "TWO.cdn.test" }
    ))
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({
          answers: ["example.com 20 A 198.51.100.7"]
        })
        expect(learned).toEqual(["example.com [example.com] 198.51.100.7 50s"])
      }),
      machine({ learned })
    )
  })

  it.effect("aliases in a circle are no answer", () => {
    const made = world(answers(
      { name: "example.com", type: "CNAME", data: "b.test" },
      { name: "b.test", type: "CNAME", data: "example.com" }
    ))
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "SERVFAIL" })
      })
    )
  })

  it.effect("names do not lead inside", () => {
    const learned: Array<string> = []
    const made = world(
      answers(a("example.com", "10.0.0.1"), a("example.com", "198.51.100.7"), a("example.com", "169.254.169.254"))
    )
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({
          answers: ["example.com 60 A 198.51.100.7"]
        })
        expect(learned).toEqual(["example.com [example.com] 198.51.100.7 1m 30s"])
        expect(yield* served.counters).toMatchObject({ withheld: 2, answered: 1 })
      }),
      machine({ learned, mayLearn: (found) => texts([found])[0]?.startsWith("198.") === true })
    )
  })

  it.effect("IPv6 too", () => {
    const learned: Array<string> = []
    const made = world(
      answers({ name: "example.com", type: "AAAA", data: "2001:db8::1" }, a("example.com", "192.0.2.3"))
    )
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("example.com", "AAAA"))).toMatchObject({
          answers: ["example.com 60 AAAA 2001:db8::1"]
        })
        expect(learned).toEqual(["example.com [example.com] 2001:db8::1 1m 30s"])
      }),
      machine({ learned })
    )
  })
})

describe("the cache", () => {
  it.effect("an answer is asked for once in its time, by all machines, and learned once by each", () => {
    const learned: Array<string> = []
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*() {
        yield* serve(machine({ learned, machine: "web-2", addresses: ["172.30.0.2"] }))
        const ask = (to: string) =>
          Effect.map(
            made.send(guestQuery("example.com"), to),
            (answer) => typeof answer === "object" && answer.answers[0]
          )
        expect(yield* ask("172.30.0.0")).toBe("example.com 60 A 93.184.216.34")
        yield* TestClock.adjust("20 seconds")
        expect(yield* ask("172.30.0.2")).toBe("example.com 40 A 93.184.216.34")
        expect(yield* ask("172.30.0.0")).toBe("example.com 40 A 93.184.216.34")
        expect(learned).toEqual([
          "example.com [example.com] 93.184.216.34 1m 30s",
          "example.com [example.com] 93.184.216.34 1m 10s"
        ])
        yield* TestClock.adjust("40 seconds")
        expect(yield* ask("172.30.0.0")).toBe("example.com 60 A 93.184.216.34")
        expect(made.asked.length).toBe(2)
        expect(learned.length).toBe(3)
      }, Effect.scoped),
      machine({ learned })
    )
  })

  it.effect("an address stays open for the longest that the guest was told of it, by whatever name", () => {
    const learned: Array<string> = []
    const made = world(({ query }) =>
      [["a.example.org", 300], ["b.example.org", 5]].map(([name, ttl]) =>
        reply(query, [a(String(name), "192.0.2.9", Number(ttl))], { name: String(name) })
      )
    )
    return using(
      made,
      Effect.fnUntraced(function*() {
        yield* made.send(guestQuery("a.example.org"))
        yield* TestClock.adjust("10 seconds")
        expect(yield* made.send(guestQuery("b.example.org"))).toMatchObject({
          answers: ["b.example.org 5 A 192.0.2.9"]
        })
        yield* TestClock.adjust("290 seconds")
        yield* made.send(guestQuery("b.example.org"))
        expect(learned).toEqual([
          "a.example.org [*.example.org] 192.0.2.9 5m 30s",
          "b.example.org [*.example.org] 192.0.2.9 5m 20s",
          "b.example.org [*.example.org] 192.0.2.9 35s"
        ])
      }),
      machine({ learned })
    )
  })

  it.effect("times to live are 5 seconds at least and 5 minutes at most", () => {
    const ttls = new Map([["a.example.org", 0], ["b.example.org", 86400], ["c.example.org", 0x80000001]])
    const made = world(({ query }) =>
      [...ttls].map(([name, ttl]) => reply(query, [a(name, "192.0.2.9", ttl)], { name }))
    )
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("a.example.org"))).toMatchObject({
          answers: ["a.example.org 5 A 192.0.2.9"]
        })
        expect(yield* made.send(guestQuery("b.example.org"))).toMatchObject({
          answers: ["b.example.org 300 A 192.0.2.9"]
        })
        expect(yield* made.send(guestQuery("c.example.org"))).toMatchObject({
          answers: ["c.example.org 5 A 192.0.2.9"]
        })
      })
    )
  })

  it.effect("a clock that is set back changes nothing: neither how long answers are kept, nor who may ask", () => {
    const learned: Array<string> = []
    let isDown = false
    const made = world((request) => isDown ? "closed" : one(request))
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        const ask = (name = "example.com") =>
          Effect.map(
            made.send(guestQuery(name)),
            (answer) => typeof answer === "object" && (answer.answers[0] ?? answer.rcode)
          )
        yield* TestClock.adjust("2 hours")
        expect(yield* ask()).toBe("example.com 60 A 93.184.216.34")
        isDown = true
        expect(yield* ask("a.example.org")).toBe("SERVFAIL")
        isDown = false
        yield* TestClock.setTime(0)
        expect(yield* ask()).toBe("example.com 60 A 93.184.216.34")
        yield* served.replace(["example.com", "*.example.org"])
        yield* TestClock.adjust("20 seconds")
        expect(yield* ask()).toBe("example.com 40 A 93.184.216.34")
        expect(yield* ask("a.example.org")).toBe("a.example.org 60 A 93.184.216.34")
        expect(learned).toEqual([
          "example.com [example.com] 93.184.216.34 1m 30s",
          // For as long as the other name was told to be good for.
          "example.com [example.com] 93.184.216.34 1m 10s",
          "a.example.org [*.example.org] 93.184.216.34 1m 30s"
        ])
        yield* TestClock.adjust("41 seconds")
        expect(yield* ask()).toBe("example.com 60 A 93.184.216.34")
        expect(yield* served.counters).toMatchObject({ dropped: 0, failed: 1, answered: 5 })
      }),
      machine({ learned })
    )
  })

  it.effect("a name that is none is told as such, and asked for again after 5 seconds", () => {
    const made = world(({ query }) => [reply(query, [], { rcode: 3 })])
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "NXDOMAIN", answers: [] })
        yield* TestClock.adjust("4 seconds")
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "NXDOMAIN", answers: [] })
        expect(made.asked.length).toBe(1)
        yield* TestClock.adjust("1 seconds")
        yield* made.send(guestQuery("example.com"))
        expect(made.asked.length).toBe(2)
      })
    )
  })

  it.effect("is bounded", () => {
    const made = world(answers(), { cacheCapacity: 2 })
    return using(
      made,
      Effect.fnUntraced(function*() {
        for (const name of ["a", "b", "c", "a"]) yield* made.send(guestQuery(`${name}.example.org`))
        expect(made.asked.length).toBe(4)
      })
    )
  })
})

describe("the servers", () => {
  it.effect("all dead: SERVFAIL within 5 seconds, and nobody is asked again at once", () => {
    const made = world(() => "nothing")
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        const asking = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
        expect(yield* after("5 seconds", asking)).toMatchObject({ rcode: "SERVFAIL" })
        expect(made.asked).toEqual([1, 2, 1, 2].map((server) => `udp 192.0.2.${server} A example.com`))
        expect(yield* served.counters).toMatchObject({ failed: 1 })
      })
    )
  })

  for (
    const [what, first] of Object.entries<Script>({
      "is silent": () => "nothing",
      "hangs up": () => "closed",
      "fails itself": ({ query }) => [reply(query, [], { rcode: 2 })],
      "refuses": ({ query }) => [reply(query, [], { rcode: 5 })],
      "answers under another id": (
        { query }
      ) => [reply(query, [a("example.com", "6.6.6.6")], { id: ((query[0] ?? 0) << 8 | (query[1] ?? 0)) ^ 1 })],
      "answers another question": ({ query }) => [reply(query, [a("example.com", "6.6.6.6")], { name: "evil.test" })],
      "answers with a question": ({ query }) => [query],
      "answers with half of an answer": ({ query }) => [reply(query, [a("example.com", "6.6.6.6")]).subarray(0, -3)],
      "answers with garbage": () => [new Uint8Array(12).fill(0xff), new Uint8Array(3)]
    })
  ) {
    it.effect(`the first ${what}: the second is asked, and first from then on`, () => {
      const made = world((asked) =>
        asked.server === "192.0.2.1" ? first(asked) : [reply(asked.query, [a("example.com", "192.0.2.80")])]
      )
      return using(
        made,
        Effect.fnUntraced(function*() {
          const asking = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
          expect(yield* after("1 seconds", asking)).toMatchObject({
            answers: [expect.stringMatching(/A 192\.0\.2\.80$/)]
          })
          yield* made.send(guestQuery("a.example.org"))
          expect(made.asked.map((line) => line.slice(0, 13))).toEqual([
            "udp 192.0.2.1",
            "udp 192.0.2.2",
            "udp 192.0.2.2"
          ])
        })
      )
    })
  }

  it.effect("what is truncated is asked for by TCP", () => {
    const made = world((
      { protocol, query }
    ) => [
      protocol === "udp"
        ? reply(query, [a("example.com", "6.6.6.6")], { isTruncated: true })
        : reply(query, [a("example.com", "192.0.2.80")])
    ])
    return using(
      made,
      Effect.fnUntraced(function*() {
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ answers: ["example.com 60 A 192.0.2.80"] })
        expect(made.asked).toEqual(["udp 192.0.2.1 A example.com", "tcp 192.0.2.1 A example.com"])
      })
    )
  })

  it.effect("answers that are too long for a datagram are marked so, and whole over TCP", () => {
    const many = Array.from({ length: 100 }, (_, index) => a("example.com", `192.0.2.${index}`))
    const made = world(({ query }) => [reply(query, many)])
    return using(
      made,
      Effect.fnUntraced(function*() {
        const asked = guestQuery("example.com")
        expect(yield* made.send(asked)).toMatchObject({ isTruncated: true, answers: [] })
        const extended = guestQuery("example.com", "A", { counts: [1, 0, 0, 1], rest: opt(4096) })
        expect(yield* made.send(extended)).toMatchObject({ isTruncated: false })
        const whole = yield* made.send(asked, "172.30.0.0", "tcp")
        expect(typeof whole === "object" && whole.answers.length).toBe(64)
      })
    )
  })
})

describe("bounds", () => {
  it.effect("two seconds' worth of queries at once, then as many as there is time", () => {
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        const flood = Effect.replicateEffect(made.send(guestQuery("evil.test")), 500)
        yield* flood
        expect(yield* served.counters).toMatchObject({ received: 500, refused: 200, dropped: 300, tooMany: 300 })
        yield* TestClock.adjust("1 seconds")
        yield* flood
        expect(yield* served.counters).toMatchObject({ received: 1000, refused: 300, dropped: 700 })
      })
    )
  })

  it.effect("so many in hand of a machine and of all", () => {
    const made = world(() => "nothing", { inFlight: 6, inFlightInAll: 8 })
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        const other = yield* serve(machine({ addresses: ["172.30.0.2"] }))
        const send = (to: string) =>
          Effect.forEach(
            [1, 2, 3, 4, 5, 6, 7],
            (index) => Effect.forkChild(made.send(guestQuery(`n${index}.example.org`), to), { startImmediately: true })
          )
        const mine = yield* send("172.30.0.0")
        const others = yield* send("172.30.0.2")
        expect(yield* served.counters).toMatchObject({ received: 7, tooMany: 1 })
        // Those that no other machine can take from it.
        expect(yield* other.counters).toMatchObject({ received: 7, tooMany: 3 })
        yield* TestClock.adjust("5 seconds")
        yield* Fiber.joinAll([...mine, ...others])
        expect(yield* other.counters).toMatchObject({ failed: 4 })
        yield* send("172.30.0.0")
        expect(yield* served.counters).toMatchObject({ received: 14, tooMany: 2 })
      }, Effect.scoped)
    )
  })

  it.effect("machines that flood, with questions that nobody answers, keep no other from being answered", () => {
    const made = world((request) => request.query.length > 29 ? "nothing" : one(request))
    return using(
      made,
      Effect.fnUntraced(function*() {
        for (let number = 0; number < 20; number++) {
          const address = `172.30.1.${number}`
          yield* serve(machine({ addresses: [address] }))
          for (let index = 0; index < 100; index++) {
            const question = guestQuery(`${number}.${index}.example.org`)
            yield* Effect.forkScoped(made.send(question, address), { startImmediately: true })
          }
        }
        expect(made.asked.length).toBe(8 * 64 + 12 * 4)
        expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "NOERROR" })
      }, Effect.scoped)
    )
  })
})

describe("replace", () => {
  it.effect("old names are refused, and nothing is learned by them once it is done", () => {
    const learned: Array<string> = []
    const made = world(({ query }) => [reply(query, [a("example.com", "192.0.2.80")])])
    return Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      yield* using(
        made,
        Effect.fnUntraced(function*(served) {
          const first = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
          const second = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
          const replacing = yield* Effect.forkChild(served.replace(["other.test"]), { startImmediately: true })
          yield* TestClock.adjust("1 seconds")
          expect(replacing.pollUnsafe()).toBeUndefined()
          yield* Deferred.succeed(gate, undefined)
          yield* Fiber.join(replacing)
          yield* Fiber.joinAll([first, second])
          const soFar = learned.length
          expect(yield* made.send(guestQuery("example.com"))).toMatchObject({ rcode: "REFUSED" })
          expect(learned.length).toBe(soFar)
        }),
        machine({
          learn: ({ name }) => Effect.andThen(Deferred.await(gate), Effect.sync(() => learned.push(name)))
        })
      )
    })
  })

  it.effect("what was asked by an old name, and is found after that, is refused", () => {
    const learned: Array<string> = []
    const made = world((asked) => asked.server === "192.0.2.1" ? "nothing" : one(asked))
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        const asking = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
        yield* served.replace(["other.test"])
        expect(yield* after("1 seconds", asking)).toMatchObject({ rcode: "REFUSED", answers: [] })
        expect(learned).toEqual([])
        expect(yield* served.counters).toMatchObject({ received: 1, refused: 1, answered: 0 })
      }),
      machine({ learned })
    )
  })

  it.effect("what was learned is learned anew", () => {
    const learned: Array<string> = []
    const made = world()
    return using(
      made,
      Effect.fnUntraced(function*(served) {
        yield* made.send(guestQuery("example.com"))
        yield* served.replace(["EXAMPLE.com"])
        yield* made.send(guestQuery("example.com"))
        expect(learned.map((line) => line.slice(0, 25))).toEqual([
          "example.com [example.com]",
          "example.com [EXAMPLE.com]"
        ])
        expect(made.asked.length).toBe(1)
      }),
      machine({ learned })
    )
  })

  it.effect("nobody listens for a machine without names", () => {
    const made = world()
    return Effect.gen(function*() {
      yield* using(
        made,
        Effect.fnUntraced(function*(served) {
          expect(made.listeners.size).toBe(0)
          yield* served.replace(["example.com"])
          expect([...made.listeners.keys()]).toEqual(["udp 172.30.0.0", "tcp 172.30.0.0", "udp fd00::", "tcp fd00::"])
          yield* served.replace([])
          expect(made.listeners.size).toBe(0)
          made.refusals.push("EADDRINUSE")
          const failure = yield* Effect.flip(served.replace(["example.com"]))
          expect(failure.message).toBe("udp 172.30.0.0: listening failed: EADDRINUSE")
          expect(made.listeners.size).toBe(0)
          yield* served.replace(["example.com"])
          expect(yield* made.send(guestQuery("example.com"), "fd00::")).toMatchObject({ rcode: "NOERROR" })
        }),
        machine({ names: [], addresses: ["172.30.0.0", "fd00::"] })
      )
      expect(made.listeners.size).toBe(0)
    })
  })

  it.effect("all that is wrong is told at once, and nothing is done", () => {
    const made = world()
    const long = `${"a.".repeat(127)}b`
    return Effect.gen(function*() {
      const names = [
        "a_b.example.com",
        "",
        ".",
        "*",
        "a..b",
        "*.*.a",
        "-a.b",
        "straße.de",
        long,
        "a b",
        `${"a".repeat(64)}.b`
      ]
      const failure = yield* Effect.flip(
        using(made, () => Effect.void, machine({ names, addresses: ["10.0.0.1/8", "nowhere"], port: 0 }))
      )
      expect(failure.reason._tag === "InvalidArgument" && failure.reason.faults.map(({ field }) => field)).toEqual([
        "addresses[0]",
        "addresses[1]",
        "port",
        ...names.slice(1).map((_, index) => `names[${index + 1}]`)
      ])
      expect(made.listeners.size).toBe(0)
    })
  })
})

const Bytes = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })))
const Changes = Schema.Array(Schema.Struct({
  at: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 80 })),
  to: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))
}))

/** A message in which some bytes are others. */
const changed = (bytes: Uint8Array, changes: typeof Changes.Type): Uint8Array => {
  const copy = Uint8Array.from(bytes)
  for (const { at, to } of changes) copy[at % copy.length] = to
  return copy
}

describe("whatever is sent", () => {
  it.effect.prop(
    "by a guest: nothing breaks, no more is answered than was asked, and only allowed names leave the host",
    { bytes: Bytes, changes: Changes },
    ({ bytes, changes }) => {
      const made = world(({ query }) => [reply(query, [])])
      return using(
        made,
        Effect.fnUntraced(function*(served) {
          const base = guestQuery("a.example.org", "A", { counts: [1, 0, 0, 1], rest: opt(1232) })
          const sent = [
            Uint8Array.from(bytes),
            changed(base, changes),
            Uint8Array.from([...base.subarray(0, 12), ...bytes])
          ]
          for (const message of sent) {
            const answer = yield* made.listeners.get("udp 172.30.0.0")?.handle(message) ?? Effect.undefined
            if (answer === undefined) continue
            expect([...answer.subarray(0, 2)]).toEqual([...message.subarray(0, 2)])
            expect((answer[2] ?? 0) & 0x80).toBe(0x80)
            expect(answer.length).toBeLessThanOrEqual(message.length)
          }
          const { answered, dropped, empty, failed, received, refused } = yield* served.counters
          expect(received).toBe(3)
          expect(failed).toBe(0)
          expect(answered + dropped + empty + refused).toBe(3)
          for (const line of made.asked) expect(line).toMatch(/ (A|AAAA) (example\.com|[a-z0-9_.-]+\.example\.org)$/)
        })
      )
    }
  )

  it.effect.prop(
    "by a server: nothing breaks, and nothing is learned but what an answer to the question says",
    { bytes: Bytes, changes: Changes },
    ({ bytes, changes }) => {
      const learned: Array<string> = []
      const records: ReadonlyArray<UpstreamRecord> = [
        { name: "example.com", type: "CNAME", data: "b.example.com" },
        a("b.example.com", "192.0.2.1")
      ]
      const made = world(({ query }) => {
        const good = reply(query, records)
        const tail = Uint8Array.from([...good.subarray(0, 12 + 17), ...bytes])
        return [Uint8Array.from(bytes), changed(good, changes), changed(tail, changes), good]
      })
      return using(
        made,
        Effect.fnUntraced(function*(served) {
          const asking = yield* Effect.forkChild(made.send(guestQuery("example.com")), { startImmediately: true })
          const answer = yield* after("5 seconds", asking)
          expect(answer).toMatchObject({ id: 7, questions: ["A example.com"] })
          expect((yield* served.counters).failed).toBe(
            typeof answer === "object" && answer.rcode === "SERVFAIL" ? 1 : 0
          )
          for (const line of learned) expect(line).toMatch(/^example\.com \[example\.com\] [0-9.,]+ /)
        }),
        machine({ learned })
      )
    }
  )

  it("a pointer leads back only", () => {
    const start = reply(guestQuery("example.com"), [])
    const answer = (to: number) => {
      const bytes = Uint8Array.from([
        ...start,
        0xc0,
        to,
        0,
        1,
        0,
        1,
        0,
        0,
        0,
        60,
        0,
        4,
        192,
        0,
        2,
        1,
        ...guestQuery("example.com").subarray(12)
      ])
      bytes[7] = 1
      return Message.readAnswer(bytes, Message.question("example.com", 1))
    }
    expect(answer(12)?.addresses.length).toBe(1)
    expect(answer(start.length + 16)).toBeUndefined()
    expect(answer(start.length)).toBeUndefined()
    expect(answer(0)).toBeUndefined()
  })

  it("a name of pointers to pointers is not followed for long", () => {
    const asked = guestQuery("example.com")
    const start = Buffer.from(reply(asked, []))
    const bytes = new Uint8Array(65535)
    bytes.set(start)
    let offset = start.length
    // A record whose data is a chain of pointers, each to the one before; then as many records as there is room, all at its end.
    bytes.set([0, 0, 10, 0, 1, 0, 0, 0, 0, 0x3f, 0], offset)
    let target = offset
    offset += 11
    for (const end = offset + 0x3f00; offset < end; offset += 2) {
      bytes.set([0xc0 | (target >> 8), target & 255], offset)
      if (target < 0x3ffe) target = offset
    }
    let count = 1
    for (; offset + 12 <= bytes.length; offset += 12, count++) {
      bytes.set([0xc0 | (target >> 8), target & 255, 0, 10, 0, 1, 0, 0, 0, 0, 0, 0], offset)
    }
    bytes.set([count >> 8, count & 255], 6)
    expect(Message.readAnswer(bytes, Message.question("example.com", 1))).toBeUndefined()
  })
})
