import * as Config from "effect/Config"

/** `MICROVM_NETWORK_FORWARDING`, `MICROVM_NETWORK_IPV4` and `MICROVM_NETWORK_IPV6`. */
export const networkConfig = Config.all({
  forwarding: Config.Literals(["check", "enable"], "MICROVM_NETWORK_FORWARDING").pipe(Config.withDefault("check")),
  ipv4: Config.String("MICROVM_NETWORK_IPV4").pipe(Config.withDefault(undefined)),
  ipv6: Config.String("MICROVM_NETWORK_IPV6").pipe(Config.withDefault(undefined))
})

/** Where the pool is that all runs of a state directory share. */
export const addressesIn = (state: string): string => `${state}/addresses`
