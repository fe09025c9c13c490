/**
 * What a call becomes for the Firecracker that it is for.
 */
import * as Result from "effect/Result"
import { UnsupportedByVersion } from "../FirecrackerError.ts"
import * as FirecrackerVersion from "../FirecrackerVersion.ts"
import { type Architecture, type Endpoint, type Feature, features } from "./capabilityTable.ts"

/**
 * The Firecracker that is talked to.
 *
 * @category models
 * @since 0.1.0
 */
export interface Target {
  readonly version: FirecrackerVersion.FirecrackerVersion
  readonly architecture: Architecture
  /** Was it started with `--enable-pci`? Default false. */
  readonly pci?: boolean | undefined
  /** Its `--http-api-max-payload-size`: the longest body in bytes. Default 51200. */
  readonly payloadLimit?: number | undefined
}

/**
 * @category options
 * @since 0.1.0
 */
export interface CheckOptions {
  /**
   * Fields that are left out where they are not known: `huge_pages`, or `MachineConfiguration.huge_pages` for this body
   * only. Default none: what is not known is an error.
   */
  readonly optional?: ReadonlyArray<string> | undefined
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

export const has = (target: Target, since: FirecrackerVersion.FirecrackerVersion | undefined): boolean =>
  since === undefined || FirecrackerVersion.isAtLeast(target.version, since)

/** Is it of one of the releases, or a later one of the same minor release? */
export const isOf = (target: Target, releases: ReadonlyArray<FirecrackerVersion.FirecrackerVersion> = []): boolean =>
  releases.some((release) => release.minor === target.version.minor && has(target, release))

const knows = (target: Target, { also, since }: Feature): boolean => has(target, since) || isOf(target, also)

type Missing = UnsupportedByVersion["features"][number]

const missing = (feature: string, since: FirecrackerVersion.FirecrackerVersion | undefined): Missing =>
  since === undefined ? { feature } : { feature, since: FirecrackerVersion.format(since) }

export const refuse = (
  { version }: Target,
  lacking: ReadonlyArray<Missing>
): Result.Result<never, UnsupportedByVersion> =>
  Result.fail(new UnsupportedByVersion({ version: FirecrackerVersion.format(version), features: lacking }))

const gatesOf = Map.groupBy(features, ({ body }) => body)

/** As `Capabilities.check`, where the endpoint is known. */
export const gated = (
  target: Target,
  endpoint: Endpoint,
  body: unknown,
  options: CheckOptions = {}
): Result.Result<unknown, UnsupportedByVersion> => {
  if (!has(target, endpoint.since)) {
    return refuse(target, [missing(`${endpoint.method} ${endpoint.path}`, endpoint.since)])
  }
  const gates = endpoint.body === undefined ? undefined : gatesOf.get(endpoint.body)
  if (gates === undefined || !isRecord(body)) return Result.succeed(body)

  const sent: Record<string, unknown> = { ...body }
  const lacking: Array<Missing> = []
  for (const feature of gates) {
    const { field } = feature
    const value = body[field]
    if (value === undefined) continue
    const { architecture, formerly, since, unless, value: gate } = feature
    if (gate !== undefined && value !== gate) continue
    const isKnown = knows(target, feature)
    if (isKnown && (architecture === undefined || architecture === target.architecture)) continue
    const name = `${feature.body}.${field}`
    if (formerly !== undefined && !isKnown) sent[formerly] = value
    else if (value !== unless && options.optional?.some((text) => text === field || text === name) !== true) {
      const words = gate === undefined ? name : `${name} = ${gate}`
      lacking.push(isKnown ? { feature: `${words} (${architecture} only)` } : missing(words, since))
    }
    Reflect.deleteProperty(sent, field)
  }
  return lacking.length > 0 ? refuse(target, lacking) : Result.succeed(sent)
}
