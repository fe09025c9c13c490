/**
 * Why a service could not start, or did not go on. Every reason belongs to one phase and has one exit code.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Formatter from "effect/Formatter"
import type { ServiceReason } from "../lifecycle/ExitCode.ts"
import * as Printable from "../lifecycle/Printable.ts"

/**
 * Every reason, by tag, in the order of the phases.
 *
 * - `ConfigInvalid`: `faults` has one sentence for each variable, argument or part of the service that cannot be used.
 * - `SecretsFailed`: the secrets could not be had.
 * - `LoadFailed`: a resource could not say what it needs; `resource` is its name.
 * - `InputInvalid`: what it says is not valid; one sentence for each fault.
 * - `ProvisionFailed`: the request for a resource failed, after all retries, or took longer than the start timeout.
 * - `BadResourceState`: the provisioner says that a resource is in a state that it does not come back from.
 * - `InitFailed`: an output could not be used, or a part of the service could not start.
 * - `RunFailed`: what the service serves failed; a port that is taken counts among it.
 * - `TaskFailed`: a background task or child process ended although it had to go on.
 * - `HealthBindFailed`, `HealthListenerFailed`
 *
 * @category models
 * @since 0.1.0
 */
export type ServiceErrorReason = Data.TaggedEnum<{
  ConfigInvalid: { readonly faults: ReadonlyArray<string> }
  SecretsFailed: { readonly why: string }
  LoadFailed: { readonly resource: string; readonly why: string }
  InputInvalid: { readonly faults: ReadonlyArray<string> }
  ProvisionFailed: { readonly resource: string; readonly why: string }
  BadResourceState: { readonly resource: string; readonly type: string; readonly state: string }
  InitFailed: { readonly part: string; readonly why: string }
  RunFailed: { readonly part: string; readonly why: string }
  TaskFailed: { readonly task: string; readonly why: string }
  HealthBindFailed: { readonly address: string; readonly why: string }
  HealthListenerFailed: { readonly why: string }
}>

/**
 * Constructors and matchers of the reasons.
 *
 * @category constructors
 * @since 0.1.0
 */
export const ServiceErrorReason = Data.taggedEnum<ServiceErrorReason>()

const list = (faults: ReadonlyArray<string>): string => faults.map((fault) => `\n  - ${fault}`).join("")

const describe: (reason: ServiceErrorReason) => string = ServiceErrorReason.$match({
  ConfigInvalid: ({ faults }) => `Configuration invalid:${list(faults)}`,
  SecretsFailed: ({ why }) => `Secrets phase failed: ${why}`,
  LoadFailed: ({ resource, why }) => `Load phase failed: ${resource}: ${why}`,
  InputInvalid: ({ faults }) => `Resource input not valid:${list(faults)}`,
  ProvisionFailed: ({ resource, why }) => `Provisioning phase failed: ${resource}: ${why}`,
  BadResourceState: ({ resource, state, type }) =>
    `Provisioning phase failed: ${resource}: the ${type} is in state "${state}"`,
  InitFailed: ({ part, why }) => `Initialisation phase failed: ${part}: ${why}`,
  RunFailed: ({ part, why }) => `Service failed while running: ${part}: ${why}`,
  TaskFailed: ({ task, why }) => `Background task failed: ${task}: ${why}`,
  HealthBindFailed: ({ address, why }) => `Health listener could not bind to ${address}: ${why}`,
  HealthListenerFailed: ({ why }) => `Health listener failed: ${why}`
})

/** Which row of the exit code table a reason is. */
const reasons: { readonly [Tag in ServiceErrorReason["_tag"]]: ServiceReason } = {
  ConfigInvalid: "configInvalid",
  SecretsFailed: "secrets",
  LoadFailed: "loading",
  InputInvalid: "resourceInput",
  ProvisionFailed: "provisionRequest",
  BadResourceState: "resourceState",
  InitFailed: "initialisation",
  RunFailed: "failed",
  TaskFailed: "failed",
  HealthBindFailed: "healthBind",
  HealthListenerFailed: "healthFailed"
}

/**
 * The one error of this folder: branch on `reason`. Its `message` is the reason; `explain` adds the chain of causes.
 *
 * ```ts import.meta.vitest
 * import { ServiceError } from "effect-microvm-runtime/service"
 * const error = new ServiceError.ServiceError({
 *   reason: ServiceError.ServiceErrorReason.SecretsFailed({ why: "the API does not answer" })
 * })
 * error.exitReason // => "secrets"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ServiceError extends Data.TaggedError("ServiceError")<{
  readonly reason: ServiceErrorReason
  readonly cause?: unknown
}> {
  override get message(): string {
    return Printable.lines(describe(this.reason))
  }
  /** The row of the exit code table. */
  get exitReason(): ServiceReason {
    return reasons[this.reason._tag]
  }
}

/**
 * Makes an error of a reason and what caused it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromReason = (reason: ServiceErrorReason, cause?: unknown): ServiceError =>
  new ServiceError(cause === undefined ? { reason } : { reason, cause })

/** Anything can be thrown, also what throws when it is looked at. */
const guarded = <A>(get: () => A, otherwise: A): A => {
  try {
    return get()
  } catch {
    return otherwise
  }
}

/** More of a value helps nobody. */
const mostOfValue = 512

const causeOf = (error: unknown): unknown =>
  Cause.isCause(error)
    ? Cause.squash(error)
    : guarded(
      () => typeof error === "object" && error !== null && "cause" in error ? error.cause : undefined,
      undefined
    )

const messageOf = (error: unknown): string =>
  Cause.isCause(error)
    ? messageOf(Cause.squash(error))
    : guarded(() => {
      if (typeof error === "object" && error !== null && "message" in error && typeof error.message === "string") {
        const cause = causeOf(error)
        // One that says its cause as a text has nothing to add: that of `Config` does.
        if (cause instanceof Error && error.message === String(cause)) return messageOf(cause)
        return error instanceof Error && error.message === "" ? error.name : error.message
      }
      const text = String(error)
      // A plain object: what Effect shows of it, in which what is redacted stays so.
      return text === "[object Object]" ? Formatter.formatJson(error).slice(0, mostOfValue) : text
    }, "an error that cannot be shown")

/** No chain of causes in a real program is longer. */
const longest = 16

/**
 * An error and all that caused it, one line each, from the outermost to the root: what a person needs to find the fault.
 * A cause that only repeats what the line before it says is left out.
 *
 * ```ts import.meta.vitest
 * import { ServiceError } from "effect-microvm-runtime/service"
 * const error = new Error("no connection", { cause: new Error("port closed") })
 * ServiceError.explain(error) // => "no connection\n  caused by: port closed"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const explain = (error: unknown): string => {
  const lines = [messageOf(error)]
  let cause = causeOf(error)
  for (let depth = 0; cause !== undefined && depth < longest; depth++) {
    const message = messageOf(cause)
    if (!lines.at(-1)?.includes(message)) lines.push(message)
    cause = causeOf(cause)
  }
  return Printable.lines(lines.join("\n  caused by: "))
}
