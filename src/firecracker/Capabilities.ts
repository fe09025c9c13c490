/**
 * Which Firecracker knows what: every endpoint, and every field and value that came with some release, as data. Firecracker
 * refuses a whole body for one field that it does not know, so what a version lacks is found out before anything is sent.
 *
 * Source: the request types and the changelog of Firecracker 1.7 to 1.17.
 *
 * @since 0.1.0
 */
import type * as Result from "effect/Result"
import type { Method, UnsupportedByVersion } from "./FirecrackerError.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { type Endpoint, endpoints, knownBad, type Use } from "./internal/capabilityTable.ts"
import { type CheckOptions, gated, has, isOf, refuse, type Target } from "./internal/gates.ts"

export {
  type Architecture,
  type Endpoint,
  endpoints,
  type Feature,
  features,
  type KnownBad,
  knownBad,
  type Use
} from "./internal/capabilityTable.ts"
export { type CheckOptions, type Target } from "./internal/gates.ts"

const byCall = new Map(
  Object.values<Endpoint>(endpoints).map((endpoint) => [`${endpoint.method} ${endpoint.path}`, endpoint])
)

/**
 * The endpoint of a method and a path; none, when there is no such endpoint, or the path has other characters in place of
 * an id than an id may have.
 *
 * ```ts import.meta.vitest
 * import { Capabilities } from "effect-microvm-runtime/firecracker"
 * Capabilities.find("DELETE", "/drives/data")?.path // => "/drives/{id}"
 * Capabilities.find("DELETE", "/drives/a HTTP/1.1") // => undefined
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const find = (method: Method, path: string): Endpoint | undefined =>
  byCall.get(`${method} ${path}`) ??
    byCall.get(`${method} ${path.replace(/^(\/(?:drives|pmem|network-interfaces)\/)[A-Za-z0-9_]{1,255}$/, "$1{id}")}`)

/**
 * A call as it is meant.
 *
 * @category models
 * @since 0.1.0
 */
export interface Call {
  readonly method: Method
  readonly path: string
  readonly body?: unknown
}

/**
 * The body to send to this Firecracker, which is the one of `call` unless a field is left out or had another name; or
 * everything that it does not know. Values are not looked at beyond that.
 *
 * ```ts import.meta.vitest
 * import { Capabilities } from "effect-microvm-runtime/firecracker"
 * import * as Result from "effect/Result"
 * const target = { version: { major: 1, minor: 15, patch: 1 }, architecture: "x86_64" } as const
 * const call = { method: "PUT", path: "/network-interfaces/n0", body: { iface_id: "n0", host_dev_name: "tap0", mtu: 9000 } } as const
 * const refused = Result.match(Capabilities.check(target, call), { onSuccess: () => "", onFailure: (reason) => reason.message })
 * refused // => "Firecracker 1.15.1 cannot: NetworkInterface.mtu needs 1.16.0 or later"
 * Result.getOrThrow(Capabilities.check(target, call, { optional: ["mtu"] })) // => { iface_id: "n0", host_dev_name: "tap0" }
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const check = (
  target: Target,
  call: Call,
  options: CheckOptions = {}
): Result.Result<unknown, UnsupportedByVersion> => {
  const endpoint = find(call.method, call.path)
  return endpoint === undefined
    ? refuse(target, [{ feature: `${call.method} ${call.path}` }])
    : gated(target, endpoint, call.body, options)
}

/**
 * What is known to go wrong with this release, for people: all of it, or what concerns a machine that uses no more than `used`.
 *
 * ```ts import.meta.vitest
 * import { Capabilities } from "effect-microvm-runtime/firecracker"
 * const warnings = Capabilities.warnings({ version: { major: 1, minor: 18, patch: 0 }, architecture: "aarch64" })
 * warnings[0] // => "1.18.0 is newer than what is known here, and is taken for 1.17.0"
 * Capabilities.warnings({ version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64" }, ["restore"]) // => []
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const warnings = (target: Target, used?: ReadonlyArray<Use>): ReadonlyArray<string> => {
  const { newest, oldest } = FirecrackerVersion.known
  const version = FirecrackerVersion.format(target.version)
  const unknown = target.version.major > newest.major ||
      target.version.major === newest.major && target.version.minor > newest.minor
    ? [`${version} is newer than what is known here, and is taken for ${FirecrackerVersion.format(newest)}`]
    : has(target, oldest)
    ? []
    : [`${version} is older than ${FirecrackerVersion.format(oldest)}, the first one that is known here`]
  const bad = knownBad.filter(({ also, architecture, fixed, since, uses = [] }) =>
    has(target, since) && (fixed === undefined || !has(target, fixed)) && !isOf(target, also) &&
    (architecture === undefined || architecture === target.architecture) &&
    (used === undefined || uses.every((use) => used.includes(use)))
  )
  return [...unknown, ...bad.map(({ what }) => what)]
}

/**
 * How many devices a machine can have: drives, pmem, interfaces, vsock, balloon, entropy and memory hotplug together. By
 * MMIO each takes an interrupt line, of which devices of Firecracker's own take some.
 *
 * ```ts import.meta.vitest
 * import { Capabilities } from "effect-microvm-runtime/firecracker"
 * Capabilities.maxDevices({ version: { major: 1, minor: 16, patch: 0 }, architecture: "x86_64" }) // => 17
 * Capabilities.maxDevices({ version: { major: 1, minor: 16, patch: 0 }, architecture: "x86_64", pci: true }) // => 31
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const maxDevices = (target: Target): number => {
  if (target.pci === true) return 31
  // VMClock came with 1.15, VMGenID with 1.8 (x86_64).
  const clock = has(target, { major: 1, minor: 15, patch: 0 })
  if (target.architecture === "aarch64") return clock ? 92 : 96
  return clock ? 17 : has(target, { major: 1, minor: 8, patch: 0 }) ? 18 : 19
}
