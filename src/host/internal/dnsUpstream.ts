import * as Cache from "effect/Cache"
import * as Clock from "effect/Clock"
import type { SecureRandom } from "effect/crypto/SecureRandom"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Address } from "../Cidr.ts"
import type { DnsTransport, Endpoint, Protocol } from "../DnsTransport.ts"
import * as Message from "./dnsMessage.ts"

/** No server gave an answer that can be used. */
export class Unanswered extends Data.TaggedError("Unanswered")<{}> {}

export interface Found {
  readonly rcode: number
  readonly addresses: ReadonlyArray<Address>
  /** In milliseconds of the monotonic clock. */
  readonly expiresAt: number
}

/** The least and the most that is believed of the time to live of an answer, in seconds. */
const ttls = { least: 5, most: 300 } as const

/** A failure is kept too (RFC 9520), so that many who ask again do not ask a server that is down already. */
const failureTime = Duration.seconds(1)

/** Of one answer. More is no service but a flood of the firewall's sets. */
const mostAddresses = 64

const tryTime = { udp: Duration.seconds(1), tcp: Duration.seconds(2) } as const

/** Times that each server is asked. */
const rounds = 2

/** For all tries at one question together. */
const wholeTime = Duration.seconds(4)

class Asked extends Data.Class<{ readonly name: string; readonly type: number }> {}

/**
 * A clock whose time is the monotonic one, in milliseconds: by it a cache keeps nothing for longer, or for ever, when the time of
 * day is set.
 */
export const steady = (clock: Clock.Clock): Clock.Clock => {
  const nanos = () => clock.monotonicTimeNanosUnsafe()
  const millis = () => Number(nanos() / 1_000_000n)
  return {
    currentTimeMillisUnsafe: millis,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanosUnsafe: nanos,
    currentTimeNanos: Effect.sync(nanos),
    monotonicTimeNanosUnsafe: nanos,
    monotonicTimeNanos: Effect.sync(nanos),
    sleep: (duration) => clock.sleep(duration)
  }
}

export interface Options {
  /** Default: those of the host. */
  readonly servers: ReadonlyArray<Endpoint> | undefined
  /** Answers that are kept. */
  readonly capacity: number
}

/** Asks the servers for the addresses of names; each question once in the time to live of its answer, whoever asks. */
export const make = Effect.fnUntraced(function*(
  transport: DnsTransport["Service"],
  random: SecureRandom["Service"],
  options: Options
) {
  const clock = steady(yield* Clock.Clock)
  /** The server that answered last is asked first. */
  let preferred = 0

  /** None if this server is of no help. */
  const exchange = Effect.fnUntraced(
    function*(protocol: Protocol, server: Endpoint, question: Message.Question) {
      const [high = 0, low = 0] = yield* random.randomBytes(2)
      const id = (high << 8) | low
      const isAnswer = (reply: Uint8Array) => Message.isAnswerTo(reply, id, question)
      const reply = yield* transport.exchange(protocol, server, Message.query(id, question), isAnswer)
      return Message.readAnswer(reply, question)
    },
    (effect, protocol) =>
      Effect.timeoutOption(effect, tryTime[protocol]).pipe(
        Effect.map(Option.getOrUndefined),
        Effect.catch(() => Effect.undefined)
      )
  )

  const resolve = Effect.fnUntraced(function*(asked: Asked): Effect.fn.Return<Found, Unanswered> {
    const question = Message.question(asked.name, asked.type)
    const servers = options.servers ?? (yield* Effect.mapError(transport.servers, () => new Unanswered()))
    const first = preferred
    for (let attempt = 0; attempt < rounds * servers.length; attempt++) {
      const index = (first + attempt) % servers.length
      const server = servers[index]
      if (server === undefined) break
      let answer = yield* exchange("udp", server, question)
      if (answer?.isTruncated === true) answer = yield* exchange("tcp", server, question)
      if (answer === undefined || answer.isTruncated) continue
      const isFound = answer.rcode === Message.rcode.noError
      // Any other answer speaks of the server, not of the name.
      if (!isFound && answer.rcode !== Message.rcode.nameError) continue
      preferred = index
      const ttl = Math.min(Math.max(answer.ttl ?? 0, ttls.least), ttls.most)
      return {
        rcode: answer.rcode,
        addresses: isFound ? answer.addresses.slice(0, mostAddresses) : [],
        expiresAt: clock.currentTimeMillisUnsafe() + 1000 * ttl
      }
    }
    return yield* new Unanswered()
  }, Effect.timeoutOrElse({ duration: wholeTime, orElse: () => new Unanswered() }))

  const cache = yield* Cache.makeWith(resolve, {
    capacity: options.capacity,
    timeToLive: (exit) => Exit.isSuccess(exit) ? exit.value.expiresAt - clock.currentTimeMillisUnsafe() : failureTime
  })

  /** For a name in lower case, of letters, digits, `-` and `_` alone. Takes 4 seconds at most. */
  return (name: string, type: number): Effect.Effect<Found, Unanswered> =>
    Effect.provideService(Cache.get(cache, new Asked({ name, type })), Clock.Clock, clock)
})
