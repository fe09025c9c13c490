/**
 * Where a service listens.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"

/**
 * Where parts that serve HTTP listen: an address, or a socket that somebody else has opened, as systemd does. The port 0
 * is one that is free.
 *
 * @category services
 * @since 0.1.0
 */
export class ListenAddress extends Context.Service<
  ListenAddress,
  { readonly host: string; readonly port: number } | { readonly fd: number }
>()("effect-microvm-runtime/service/ListenAddress") {}
