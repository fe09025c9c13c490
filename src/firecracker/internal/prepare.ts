/**
 * From what a caller wants to what is sent: checked against its schema, and gated by version.
 */
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Capabilities from "../Capabilities.ts"
import { type Fault, InvalidRequest, type UnsupportedByVersion } from "../FirecrackerError.ts"
import * as FirecrackerSchema from "../FirecrackerSchema.ts"
import { byteLength } from "./byteLength.ts"
import { checked } from "./checked.ts"
import { gated } from "./gates.ts"
import { isWithin } from "./wireParts.ts"

type Check = (input: unknown) => Result.Result<unknown, ReadonlyArray<Fault>>

const checks = new Map<string, Check>()

const checkOf = (name: FirecrackerSchema.RequestName): Check => {
  const known = checks.get(name)
  if (known !== undefined) return known
  const made: Check = checked<unknown>(FirecrackerSchema.requests[name], "body")
  checks.set(name, made)
  return made
}

const isResourceId = Schema.is(FirecrackerSchema.ResourceId)

export const invalid = (field: string, value: unknown, remedy: string): InvalidRequest =>
  new InvalidRequest({ faults: [{ field, value, remedy }] })

const defaultPayloadLimit = 51_200

const jsonText = (value: unknown): string | undefined => {
  try {
    const text: unknown = JSON.stringify(value)
    return typeof text === "string" ? text : undefined
  } catch {
    return undefined
  }
}

/** The body as text. `undefined` when there is none. */
export const bodyText = (
  target: Capabilities.Target,
  body: unknown
): Result.Result<string | undefined, InvalidRequest> => {
  const { payloadLimit = defaultPayloadLimit } = target
  const plain = Redacted.isRedacted(body) ? Redacted.value(body) : body
  if (plain === undefined) return Result.succeed(undefined)
  const text = jsonText(plain)
  if (text === undefined) return Result.fail(invalid("body", body, "give what JSON can say"))
  if (isWithin(text, payloadLimit)) return Result.succeed(text)
  const remedy = `give at most ${payloadLimit}, or start Firecracker with a larger --http-api-max-payload-size`
  return Result.fail(invalid("body", `${byteLength(text)} bytes`, remedy))
}

export type Refusal = InvalidRequest | UnsupportedByVersion

const fieldOf = (value: unknown, key: string): unknown =>
  typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined

/** What a call is given. `id` is what stands in the path, unless the body says it. */
export interface Given {
  readonly id?: unknown
  readonly body?: unknown
}

export const prepare = (
  target: Capabilities.Target,
  endpoint: Capabilities.Endpoint,
  given: Given,
  options?: Capabilities.CheckOptions
): Result.Result<Capabilities.Call, Refusal> => {
  const { body: name, id: idField, method } = endpoint
  const body = name === undefined ? Result.succeed(undefined) : checkOf(name)(given.body)
  if (Result.isFailure(body)) return Result.fail(new InvalidRequest({ faults: body.failure }))
  const id = idField === undefined ? given.id : fieldOf(body.success, idField)
  if (endpoint.path.includes("{id}") && !isResourceId(id)) {
    return Result.fail(invalid("id", id, "give 1 to 255 letters, digits and \"_\""))
  }
  const path = endpoint.path.replace("{id}", String(id))
  return Result.map(
    gated(target, endpoint, body.success, options),
    (sent): Capabilities.Call => sent === undefined ? { method, path } : { method, path, body: sent }
  )
}
