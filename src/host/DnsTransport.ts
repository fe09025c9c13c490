/**
 * The sockets under `DnsRelay`. `NodeDnsTransport.layer` has the real ones; tests script their own.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { HostError } from "./HostError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type Protocol = "udp" | "tcp"

/**
 * Where a name server listens.
 *
 * @category models
 * @since 0.1.0
 */
export interface Endpoint {
  /** An address, for link-local IPv6 with its zone: `fe80::1%eth0`. */
  readonly address: string
  readonly port: number
}

/**
 * A server could not be asked, or hung up.
 *
 * @category errors
 * @since 0.1.0
 */
export class ExchangeFailed extends Data.TaggedError("ExchangeFailed")<{
  readonly server: Endpoint
  readonly cause: unknown
}> {}

/**
 * @category options
 * @since 0.1.0
 */
export interface ListenOptions {
  /** The addresses of those who are heard, as `Cidr.formatAddress` writes them; over TCP, others are hung up on. Default all. */
  readonly clients?: ReadonlyArray<string> | undefined
  /** Longer messages are not taken; over TCP they end the connection. */
  readonly maxMessage: number
  /** Over TCP: connections beyond these are closed as they come. */
  readonly maxConnections: number
  /** Over TCP: a connection on which nothing moves for so long is closed. */
  readonly idle: Duration.Duration
  /**
   * Gives the answer to a message. `undefined` is none, which over TCP ends the connection. The messages of a connection are
   * handled one after the other; those over UDP are not, so it has to bound by itself how many it has in hand.
   */
  readonly handle: (message: Uint8Array) => Effect.Effect<Uint8Array | undefined>
}

/**
 * @category services
 * @since 0.1.0
 */
export class DnsTransport extends Context.Service<DnsTransport, {
  /** The name servers of this host, at most three (resolv.conf(5)), as they are configured now. */
  readonly servers: Effect.Effect<ReadonlyArray<Endpoint>, HostError>
  /**
   * Sends a message from a port of its own, and waits for one from that very server that `isAnswer`. Others are passed over.
   * Has no time limit; an interruption closes the socket.
   */
  readonly exchange: (
    protocol: Protocol,
    server: Endpoint,
    message: Uint8Array,
    isAnswer: (reply: Uint8Array) => boolean
  ) => Effect.Effect<Uint8Array, ExchangeFailed>
  /**
   * Listens until the scope closes, which hangs up on all. Fails with `Conflict` when somebody listens there already, else with
   * `IoFailed`.
   */
  readonly listen: (
    protocol: Protocol,
    at: Endpoint,
    options: ListenOptions
  ) => Effect.Effect<void, HostError, Scope.Scope>
}>()("effect-microvm-runtime/host/DnsTransport") {}
