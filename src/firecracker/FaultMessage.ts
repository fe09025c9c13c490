/**
 * Sorts what Firecracker says when it refuses a call. Its messages are free text, so a text that is not known is `Other`,
 * never a fault of ours.
 *
 * Source: the error types of Firecracker 1.7 to 1.17 and of its HTTP server.
 *
 * @since 0.1.0
 */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Printable from "../lifecycle/Printable.ts"
import type { FaultKind } from "./FirecrackerError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Classified {
  readonly kind: FaultKind
  /** Firecracker's own text, at most 4096 characters of it, control characters as escapes. */
  readonly message: string
}

const limit = 4096

// Where a text of Firecracker's can hold one of the caller's (a path, an id), only its beginning is looked at.
const kinds: ReadonlyArray<readonly [RegExp, FaultKind]> = [
  [/^The requested operation is not supported before starting the microVM/, "NotSupportedBeforeStart"],
  [/^The requested operation is not supported after starting the microVM/, "NotSupportedAfterStart"],
  // Before 1.16 its HTTP server knows no DELETE.
  [/^(Invalid request method and\/or path|Unrecognized [A-Z]+ request path|Invalid HTTP Method)/, "UnknownRoute"],
  [/^Empty (PUT|PATCH) request/, "EmptyBody"],
  [/^(The id from the path|The ID cannot be empty|API Resource IDs can only contain)/, "BadId"],
  [/^An error occurred when deserializing the json body/, "BadBody"],
  [/^Request payload with size \d+ is larger than the limit/, "TooLarge"],
  [/^(Start microvm error: )?Cannot start microvm without kernel configuration/, "NoKernel"],
  [/^Load snapshot error: Loading a microVM snapshot not allowed after configuring/, "NotFresh"],
  [/^Load snapshot error: /, "RestoreFailed"],
  [/^Create snapshot error: .*unavailable while running/, "NotPaused"],
  [/^Metrics error: .*Reinitialization of metrics not allowed/, "AlreadyConfigured"],
  [/MMDS (patch )?request doesn't fit/, "MmdsTooLarge"],
  [/^(MMDS error: )?The MMDS data store is not initialized/, "MmdsNotInitialized"],
  [
    /^(Internal VMM error: I8042 error: )?(keyboard interrupt disabled|i8042 internal buffer full)/i,
    "KeyboardUnavailable"
  ],
  [/^(The requested operation is not supported: )?SendCtrlAltDel does not supported/, "KeyboardUnavailable"],
  [/^PCI is not enabled/, "NoPci"],
  [/^Device ID in use/, "InUse"],
  [/^[^:]*config error: (A root (block|pmem) device already exist|Attempt to add (block|pmem) as a root)/, "InUse"],
  [/^(Network config error: )?The MAC address is already in use/, "InUse"],
  [/^(Network|Vsock|Drive) config error: .*(Resource busy|Device or resource busy|Address (already )?in use)/, "InUse"],
  [/^(Device not found|[^:]*(config|update) error: (No balloon device found|.*device not found))/i, "DeviceNotFound"]
]

const Body = Schema.Struct({
  fault_message: Schema.optionalKey(Schema.String),
  error: Schema.optionalKey(Schema.String)
})
const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Body))

/**
 * Its HTTP server writes a line break into a JSON string as it is, which no JSON parser takes. What follows the line break
 * is the same in each of these texts, and says nothing about the call.
 */
const textOf = (body: string): string => {
  const { error, fault_message: fault } = Option.getOrElse(decode(body), (): typeof Body.Type => ({}))
  const [, raw] = /^\s*\{\s*"error"\s*:\s*"([^\n]*)\n?/.exec(body) ?? []
  return fault ?? error ?? raw?.replace(/"\s*\}\s*$/, "") ?? body.trim()
}

/**
 * What an answer that is no success means. Both shapes of its errors are understood: `{"fault_message": …}`, and the
 * `{ "error": … }` of its HTTP server; anything else is taken as text. A 503 (`Too many open connections`) is `Other`: the
 * call was not read, and can be made again.
 *
 * ```ts import.meta.vitest
 * import { FaultMessage } from "effect-microvm-runtime/firecracker"
 * const body = `{"fault_message":"Invalid request method and/or path: PUT serial."}`
 * FaultMessage.classify({ status: 400, body }).kind // => "UnknownRoute"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const classify = (answer: { readonly status: number; readonly body: string }): Classified => {
  const text = textOf(answer.body)
  const message = text.length > limit ? `${text.slice(0, limit - 1)}…` : text
  const known = kinds.find(([pattern]) => pattern.test(message))
  const kind = known?.[1] ?? (answer.status === 413 ? "MmdsTooLarge" : "Other")
  return { kind, message: Printable.lines(message) }
}
