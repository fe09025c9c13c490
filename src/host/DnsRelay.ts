/**
 * Answers the questions of machines for the addresses of names, and only of names that they may have: a guest can reach only
 * what it was allowed to resolve, and nothing leaves the host in the guise of a name.
 *
 * - **A machine is known by the socket.** Each has listeners of its own, on the addresses of its gateway. That no other
 *   machine can send to those is for the firewall to see to.
 * - **Other names are refused** (`REFUSED`), and no packet leaves the host for them. `NXDOMAIN` would be a lie that resolvers
 *   keep, and that programs tell from a typing error as little as people do.
 * - **Only addresses are told**: types A and AAAA, those at the end of a chain of aliases as if they were of the name itself.
 *   Other types have no records at all here, for names that are allowed: without HTTPS and SVCB records clients take the
 *   addresses, and TXT records are a way out of any firewall. PTR, ANY and transfers of zones are refused.
 * - **The guest hears of an address when it can reach it**, not before: `learn` comes first. What was learned is to be kept for
 *   longer than the guest is told, by `grace`.
 * - **Names do not lead inside** (DNS rebinding): an answer's addresses that the machine may not learn are left out of it.
 *
 * Answers are kept in one cache for all machines, for their time to live, which is taken to be 5 seconds at least and 5 minutes
 * at most. They are asked for under random ids from random ports, and taken from the asked server and to the asked question
 * only. DNSSEC is left to the host's own resolver. A question is answered within 5 seconds, with `SERVFAIL` if need be.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import { SecureRandom } from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Cidr from "./Cidr.ts"
import { DnsTransport, type Endpoint, type Protocol } from "./DnsTransport.ts"
import * as HostError from "./HostError.ts"
import * as Message from "./internal/dnsMessage.ts"
import * as Names from "./internal/dnsNames.ts"
import * as Upstream from "./internal/dnsUpstream.ts"

/**
 * Addresses that a machine was told of.
 *
 * @category models
 * @since 0.1.0
 */
export interface Learned {
  /** In lower case, without a last dot. */
  readonly name: string
  /** Which of the machine's `names` allow it, as they were given. */
  readonly rules: ReadonlyArray<string>
  readonly addresses: ReadonlyArray<Cidr.Address>
  /** For how long from now they are to be open: the longest that the guest was told of any of them, and `grace`. */
  readonly keep: Duration.Duration
}

/**
 * @category options
 * @since 0.1.0
 */
export interface ServeOptions<E = never, R = never> {
  /** For people. */
  readonly machine: string
  /** Where to listen: the addresses of the machine's gateway, which have to be there. */
  readonly addresses: ReadonlyArray<string>
  /** Default 53. */
  readonly port?: number | undefined
  /**
   * The machine's own addresses: nobody else is answered, be it from the host or from outside, where the way to the gateway is
   * open. Default everybody is.
   */
  readonly clients?: ReadonlyArray<string> | undefined
  /** What the machine may ask for: `example.com`, or `*.example.com` for all below it but not itself. */
  readonly names: ReadonlyArray<string>
  /** Opens the way to addresses, before the guest is told of them. When it fails the guest is answered `SERVFAIL`. */
  readonly learn: (learned: Learned) => Effect.Effect<void, E, R>
  /** May a name lead there? Say no to private and metadata addresses, unless the machine has a rule for them. */
  readonly mayLearn: (address: Cidr.Address) => boolean
}

/**
 * What became of the messages of a machine so far. `received` is the sum of `answered`, `empty`, `refused`, `failed`, `dropped`
 * and of what is in hand.
 *
 * @category models
 * @since 0.1.0
 */
export interface Counters {
  readonly received: number
  /** With addresses, or with the news that there are none or no such name. */
  readonly answered: number
  /** Of a type that is not told. */
  readonly empty: number
  /** Of a name or a type that is not allowed, or no question that can be answered. */
  readonly refused: number
  /** No server gave an answer, it could not be learned, or it took too long. */
  readonly failed: number
  readonly dropped: number
  /** Of those that were dropped: no queries at all. */
  readonly malformed: number
  /** Of those that were dropped: more than may be sent in a second, or may be in hand. */
  readonly tooMany: number
  /** Addresses that were left out of answers, because the machine may not learn them. */
  readonly withheld: number
}

/**
 * A machine that is served.
 *
 * @category models
 * @since 0.1.0
 */
export interface Served {
  /**
   * From now on these names are allowed, and no others: once it has succeeded, nothing more is learned by an old one, and all is
   * learned anew. Without any there is nobody who listens. Fails with `InvalidArgument`, and with `Conflict` or `IoFailed` if the
   * first names come and nobody can listen; the names are as they were then.
   */
  readonly replace: (names: ReadonlyArray<string>) => Effect.Effect<void, HostError.HostError>
  readonly counters: Effect.Effect<Counters>
}

/**
 * Bounds, so that a guest can exhaust nothing but its own share.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Servers to ask. Default: those of the host, read anew whenever there is something to ask. */
  readonly servers?: ReadonlyArray<Endpoint> | undefined
  /** Queries of a machine in a second, on the average. Twice as many may come at once. Default 100. */
  readonly queriesPerSecond?: number | undefined
  /** Queries of a machine that are in hand. Default 64. */
  readonly inFlight?: number | undefined
  /** Queries of all machines that are in hand; each may have 4 beyond that, whatever others do. Default 512. */
  readonly inFlightInAll?: number | undefined
  /** TCP connections of a machine to one of its addresses. Default 8. */
  readonly connections?: number | undefined
  /** A TCP connection on which nothing moves for so long is closed. Default 10 seconds. */
  readonly idle?: Duration.Input | undefined
  /** Answers that are kept, of all machines. Default 4,096. */
  readonly cacheCapacity?: number | undefined
}

/**
 * How much longer an address stays open than a guest is told that it is good: programs look up a name first and connect
 * later.
 *
 * @category constants
 * @since 0.1.0
 */
export const grace: Duration.Duration = Duration.seconds(30)

/** A query with all extensions that are in use is far shorter. */
const maxMessage = 4096

/** The servers are given up after 4 seconds, so that there is one to learn in. */
const answerTime = Duration.millis(4900)

/** Of the queries in hand, those that others cannot take from a machine: two programs ask for both families. */
const ownInFlight = 4

/** Addresses that a machine has learned and that need not be learned again. The oldest are forgotten, and learned anew. */
const maxMemory = 1024

/** As many as the firewall has room for, of one name. */
const maxPromises = 4096

/** The newest last, and no more of them than that. */
const remember = <V>(all: Map<string, V>, key: string, value: V, most: number): void => {
  all.delete(key)
  all.set(key, value)
  const [oldest] = all.keys()
  if (all.size > most && oldest !== undefined) all.delete(oldest)
}

/**
 * @category services
 * @since 0.1.0
 */
export class DnsRelay extends Context.Service<DnsRelay, {
  /**
   * Serves a machine until the scope closes. Fails with `InvalidArgument` for names and addresses that are none, all at once, with
   * `Conflict` when somebody else listens there, and with `IoFailed` when nobody can. An IPv6 address is there only once the
   * kernel has found it to be unique, unless it was set with `nodad`.
   */
  readonly serve: <E, R>(
    options: ServeOptions<E, R>
  ) => Effect.Effect<Served, HostError.HostError, R | Scope.Scope>
}>()("effect-microvm-runtime/host/DnsRelay") {}

interface Guest {
  readonly machine: string
  names: Names.Names
  /** Milliseconds of the monotonic clock until which its share of queries is used up. */
  spentUntil: number
  inFlight: number
  readonly learning: Semaphore.Semaphore
  readonly known: Map<string, Upstream.Found>
  /** Until when the guest was told that an address is good, in milliseconds of the monotonic clock. */
  readonly promised: Map<string, number>
  readonly learn: (learned: Learned) => Effect.Effect<void, unknown>
  readonly mayLearn: (address: Cidr.Address) => boolean
  readonly counters: { -readonly [Name in keyof Counters]: number }
}

const nameFaults = (names: ReadonlyArray<string>): ReadonlyArray<HostError.Fault> =>
  names.flatMap((value, index) => {
    const remedy = Names.remedyFor(value)
    return remedy === undefined ? [] : [{ field: `names[${index}]`, value, remedy }]
  })

const faultsOf = (
  { addresses, names, port = 53 }: Pick<ServeOptions, "addresses" | "names" | "port">
): ReadonlyArray<HostError.Fault> => [
  ...(addresses.length > 0 ? [] : [{ field: "addresses", value: addresses, remedy: "give one at least" }]),
  ...addresses.flatMap((value, index) => {
    const parsed = Cidr.parseAddress(value)
    return parsed._tag === "Success" ? [] : [{ field: `addresses[${index}]`, value, remedy: parsed.failure }]
  }),
  ...(Number.isInteger(port) && port >= 1 && port <= 65535
    ? []
    : [{ field: "port", value: port, remedy: "give a whole number from 1 to 65535" }]),
  ...nameFaults(names)
]

const check = (faults: ReadonlyArray<HostError.Fault>) =>
  faults.length === 0 ? Effect.void : HostError.fail(new HostError.InvalidArgument({ faults }))

const make = Effect.fnUntraced(function*(bounds: Options) {
  const {
    cacheCapacity = 4096,
    connections = 8,
    idle = "10 seconds",
    inFlight: mostOfOne = 64,
    inFlightInAll: mostOfAll = 512,
    queriesPerSecond = 100
  } = bounds
  const transport = yield* DnsTransport
  const random = yield* SecureRandom
  const clock = Upstream.steady(yield* Clock.Clock)
  const find = yield* Upstream.make(transport, random, { servers: bounds.servers, capacity: cacheCapacity })
  let inFlight = 0

  /** A second's worth of queries lasts a second; nobody is more than two of them ahead. */
  const mayAsk = (guest: Guest): boolean => {
    const now = clock.currentTimeMillisUnsafe()
    const spentUntil = Math.max(guest.spentUntil, now) + 1000 / queriesPerSecond
    const most = inFlight < mostOfAll ? mostOfOne : Math.min(mostOfOne, ownInFlight)
    if (spentUntil > now + 2000 || guest.inFlight >= most) return false
    guest.spentUntil = spentUntil
    return true
  }

  /** The answer to a question that may be asked. */
  const answer = Effect.fnUntraced(function*(guest: Guest, query: Message.Query, via: Protocol) {
    const { name, type } = query.question
    const found = yield* find(name, type)
    const addresses = found.addresses.filter(guest.mayLearn)
    guest.counters.withheld += found.addresses.length - addresses.length
    const left = (): number => Math.max(1, Math.ceil((found.expiresAt - clock.currentTimeMillisUnsafe()) / 1000))
    const key = `${type} ${name}`
    const learn = Effect.suspend(() => {
      // The names may be others by now.
      const rules = Names.allowing(guest.names, name)
      if (rules.length === 0) return Effect.succeed(false)
      if (addresses.length === 0 || guest.known.get(key) === found) return Effect.succeed(true)
      // Another name of the same rule may lead there too, and the guest was told for how long: the last word would count.
      const texts = addresses.map(Cidr.formatAddress)
      const until = Math.max(found.expiresAt, ...texts.map((text) => guest.promised.get(text) ?? 0))
      const seconds = Math.max(1, Math.ceil((until - clock.currentTimeMillisUnsafe()) / 1000))
      const keep = Duration.sum(Duration.seconds(seconds), grace)
      return Effect.map(guest.learn({ name, rules, addresses, keep }), () => {
        for (const text of texts) remember(guest.promised, text, until, maxPromises)
        remember(guest.known, key, found, maxMemory)
        return true
      })
    })
    // One after the other, so that `replace` can wait for the last.
    if (!(yield* Semaphore.withPermit(guest.learning, learn))) {
      guest.counters.refused++
      return Message.respond(query, { rcode: Message.rcode.refused }, via)
    }
    guest.counters.answered++
    return Message.respond(query, { rcode: found.rcode, addresses, ttl: left() }, via)
  })

  const handle = (guest: Guest, via: Protocol) => (bytes: Uint8Array): Effect.Effect<Uint8Array | undefined> =>
    Effect.suspend(() => {
      const { counters } = guest
      counters.received++
      const received = mayAsk(guest) ? Message.readQuery(bytes) : undefined
      if (received === undefined || received._tag === "Malformed") {
        counters.dropped++
        counters[received === undefined ? "tooMany" : "malformed"]++
        return Effect.undefined
      }
      if (received._tag === "Unanswered") {
        counters.refused++
        return Effect.succeed(Message.refuse(received))
      }
      const { isInternet, name, type } = received.question
      const isAllowed = isInternet && !Message.isOdd(name) && Names.allowing(guest.names, name).length > 0
      if (!isAllowed || type === Message.type.ptr || Message.isMeta(type)) {
        counters.refused++
        return Effect.succeed(Message.respond(received, { rcode: Message.rcode.refused }, via))
      }
      if (type !== Message.type.a && type !== Message.type.aaaa) {
        counters.empty++
        return Effect.succeed(Message.respond(received, { rcode: Message.rcode.noError }, via))
      }
      inFlight++
      guest.inFlight++
      return answer(guest, received, via).pipe(
        Effect.timeout(answerTime),
        Effect.catchCause((cause) => {
          counters.failed++
          return Effect.as(
            Effect.logDebug(`the question of machine ${guest.machine} for ${name} was not answered`, cause),
            Message.respond(received, { rcode: Message.rcode.serverFailure }, via)
          )
        }),
        Effect.ensuring(Effect.sync(() => {
          inFlight--
          guest.inFlight--
        }))
      )
    })

  const serve = Effect.fn("DnsRelay.serve")(function*<E, R>(
    options: ServeOptions<E, R>
  ): Effect.fn.Return<Served, HostError.HostError, R | Scope.Scope> {
    const { addresses, clients, machine, mayLearn, port = 53 } = options
    yield* check(faultsOf(options))
    const scope = yield* Effect.scope
    const context = yield* Effect.context<R>()
    const guest: Guest = {
      machine,
      mayLearn,
      learn: (learned) => Effect.provideContext(options.learn(learned), context),
      names: new Map(),
      spentUntil: 0,
      inFlight: 0,
      learning: Semaphore.makeUnsafe(1),
      known: new Map(),
      promised: new Map(),
      counters: {
        received: 0,
        answered: 0,
        empty: 0,
        refused: 0,
        failed: 0,
        dropped: 0,
        malformed: 0,
        tooMany: 0,
        withheld: 0
      }
    }
    let listening: Scope.Closeable | undefined

    const listen = Effect.gen(function*() {
      const listeners = yield* Scope.fork(scope)
      yield* Effect.forEach(
        addresses,
        (address) =>
          Effect.forEach(["udp", "tcp"] as const, (protocol) =>
            transport.listen(protocol, { address, port }, {
              clients,
              maxMessage,
              maxConnections: connections,
              idle: Duration.fromInputUnsafe(idle),
              handle: handle(guest, protocol)
            }))
      ).pipe(
        Scope.provide(listeners),
        Effect.onExit((exit) => Exit.isFailure(exit) ? Scope.close(listeners, exit) : Effect.void)
      )
      listening = listeners
    })

    const allow = (names: ReadonlyArray<string>) =>
      Semaphore.withPermit(
        guest.learning,
        Effect.uninterruptible(Effect.gen(function*() {
          if (names.length > 0 && listening === undefined) yield* listen
          guest.names = Names.make(names)
          guest.known.clear()
        }))
      )
    const hush = Effect.suspend(() => {
      const listeners = listening
      listening = undefined
      return listeners === undefined ? Effect.void : Scope.close(listeners, Exit.void)
    })

    const changing = Semaphore.makeUnsafe(1)
    const replace = Effect.fn("DnsRelay.replace")(function*(names: ReadonlyArray<string>) {
      yield* check(nameFaults(names))
      yield* Semaphore.withPermit(changing, Effect.andThen(allow(names), names.length === 0 ? hush : Effect.void))
    })
    yield* allow(options.names)
    return { replace, counters: Effect.sync(() => ({ ...guest.counters })) }
  })

  return DnsRelay.of({ serve })
})

/**
 * The relay. Listens to nobody yet.
 *
 * ```ts import.meta.vitest
 * import { DnsRelay, DnsTransport, HostError } from "effect-microvm-runtime/host"
 * import * as SecureRandom from "effect/crypto/SecureRandom"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * // No sockets here: NodeDnsTransport.layer has real ones.
 * const transport = Layer.mock(DnsTransport.DnsTransport, { listen: () => Effect.void })
 * const relay = DnsRelay.layer().pipe(Layer.provide([transport, SecureRandom.layerWebCrypto]))
 * const program = DnsRelay.DnsRelay.use(({ serve }) =>
 *   serve({
 *     machine: "web-1",
 *     addresses: ["172.30.0.0", "fd00::"],
 *     names: ["api.example.com", "*.example.org", "ex ample.com"],
 *     learn: ({ name, addresses }) => Effect.log(`open ${addresses.length} addresses of ${name}`),
 *     mayLearn: () => true
 *   })
 * ).pipe(
 *   Effect.scoped,
 *   Effect.catchReason("HostError", "InvalidArgument", ({ message }) => Effect.succeed(message)),
 *   Effect.provide(relay)
 * )
 * await Effect.runPromise(program) // => 'names[2]: "ex ample.com" cannot be: give a name such as example.com, or *.example.com for all below it'
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<DnsRelay, never, DnsTransport | SecureRandom> =>
  Layer.effect(DnsRelay, make(options))
