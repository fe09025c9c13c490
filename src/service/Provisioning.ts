/**
 * From resources to what a service can use: their secrets, inputs, checks, requests and outputs. Each step is an effect of
 * its own, so that whoever runs a service can tell of each phase; `run` is all of them.
 *
 * Only the `Provisioner` does I/O, and all waiting is on Effect's clock.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import type * as Scope from "effect/Scope"
import { printable } from "./internal/apiText.ts"
import * as Json from "./internal/provisioningJson.ts"
import { ServiceEvents } from "./Phase.ts"
import { Provisioner, type ResourceAnswer } from "./Provisioner.ts"
import type * as Resource from "./Resource.ts"
import { explain, fromReason, type ServiceError, ServiceErrorReason } from "./ServiceError.ts"

/**
 * What a service with these resources finds in its context.
 *
 * @category models
 * @since 0.1.0
 */
export type Provides<R extends Resource.Any> = R extends Resource.Resource<infer Name, infer Output>
  // A name that is only known when the program runs says nothing about which resources are there.
  ? string extends Name ? never : Resource.Provisioned<Name, Output>
  : never

/**
 * A resource and what it says it wants.
 *
 * @category models
 * @since 0.1.0
 */
export interface Loaded<out R extends Resource.Any> {
  readonly resource: R
  readonly input: unknown
}

/**
 * A resource and its input as JSON, fit to be sent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Checked<out R extends Resource.Any> {
  readonly resource: R
  readonly config: unknown
}

/**
 * A resource and what came of it, not decoded yet.
 *
 * @category models
 * @since 0.1.0
 */
export interface Answered<out R extends Resource.Any> {
  readonly resource: R
  readonly output: unknown
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Bounds the wait for each resource; all are waited for at once. Default: 10 minutes. */
  readonly startTimeout?: Duration.Input | undefined
}

/** The first two waits between requests; later ones grow by half. */
const pollEvery = Duration.seconds(2)

/** No wait between requests is longer. */
const pollAtMost = Duration.seconds(10)

/** How often the log says what is waited for. */
const tellEvery = Duration.seconds(15)

/**
 * The secrets of the service. What fails is `SecretsFailed`.
 *
 * @category phases
 * @since 0.1.0
 */
export const secrets: Effect.Effect<Resource.SecretMap, ServiceError, Provisioner> = Provisioner.use((provisioner) =>
  Effect.mapError(
    provisioner.secrets,
    (error) => fromReason(ServiceErrorReason.SecretsFailed({ why: error.message }), error)
  )
)

/** `explain` of what fails with it shows the rest. */
const withoutCauses = (text: string): string => text.split("\n  caused by: ", 1).join()

/**
 * Asks every resource what it wants, one after the other. The first that fails is `LoadFailed`.
 *
 * @category phases
 * @since 0.1.0
 */
export const loadAll = Effect.fnUntraced(function*<R extends Resource.Any>(
  resources: ReadonlyArray<R>,
  context: Resource.LoadContext
): Effect.fn.Return<ReadonlyArray<Loaded<R>>, ServiceError> {
  return yield* Effect.forEach(resources, (resource) =>
    resource.load(context).pipe(
      Effect.map((input) => ({ resource, input })),
      Effect.mapError((cause) =>
        fromReason(
          ServiceErrorReason.LoadFailed({ resource: resource.name, why: withoutCauses(explain(cause)) }),
          cause
        )
      )
    ))
})

const pathOf = (path: ReadonlyArray<PropertyKey>): string =>
  path.map((key) => typeof key === "number" ? `[${key}]` : `[${JSON.stringify(String(key))}]`).join("")

const sentence = ({ message, path }: Json.Fault): string =>
  path.length === 0 ? message : `${message}, at ${printable(pathOf(path), 200)}`

const keyOf = (segment: PropertyKey | { readonly key: PropertyKey }): PropertyKey =>
  typeof segment === "object" ? segment.key : segment

const formatIssue = SchemaIssue.makeFormatterStandardSchemaV1()

const faultsOf = ({ issue }: Schema.SchemaError): ReadonlyArray<Json.Fault> =>
  formatIssue(issue).issues.map(({ message, path = [] }) => ({ message, path: path.map(keyOf) }))

const decode = ({ output }: Resource.Any, value: unknown) =>
  Effect.result(Schema.decodeUnknownEffect(output, { errors: "all" })(value))

/** The input as JSON, or all that is wrong with it. */
const configOf = Effect.fnUntraced(function*(
  { input, resource }: Loaded<Resource.Any>
): Effect.fn.Return<Result.Result<Json.Json, ReadonlyArray<string>>> {
  // The secrets are there already: nothing is asked for.
  if (resource.kind === "secrets") return Result.succeed(null)
  const encoded = Schema.encodeUnknownResult(resource.input, { errors: "all" })(input)
  const { faults, json } = Result.match(encoded, {
    onFailure: (error) => ({ faults: faultsOf(error), json: null }),
    onSuccess: Json.copy
  })
  const told = [...faults]
  // It is its own output: what would fail to be decoded later on is known now, and told beside what is wrong on the encoded side.
  if (resource.kind === "custom" && (faults.length === 0 || Result.isFailure(encoded))) {
    const decoded = yield* decode(resource, faults.length === 0 ? json : input)
    if (Result.isFailure(decoded)) told.push(...faultsOf(decoded.failure))
  }
  return told.length === 0
    ? Result.succeed(json)
    : Result.fail([...new Set(told.map((fault) => `${resource.name}: ${sentence(fault)}`))])
})

/**
 * Checks all inputs before anything is asked for, and turns them into JSON: valid for the resource's schema, nothing but
 * JSON in it, not nested deeper than 64 levels, not more than 100,000 values. Keys such as `__proto__` are data like others.
 * What is `custom` is also decoded, as it is its own output.
 * All faults of all resources, and names that occur twice, are one `InputInvalid`; no value is in it.
 *
 * @category phases
 * @since 0.1.0
 */
export const checkAll = Effect.fnUntraced(function*<R extends Resource.Any>(
  loaded: ReadonlyArray<Loaded<R>>
): Effect.fn.Return<ReadonlyArray<Checked<R>>, ServiceError> {
  const names = loaded.map(({ resource }) => resource.name)
  const faults = [...new Set(names.filter((name, index) => names.indexOf(name) !== index))]
    .map((name) => `${name}: more than one resource has this name`)
  const checked: Array<Checked<R>> = []
  for (const one of loaded) {
    const config = yield* configOf(one)
    if (Result.isFailure(config)) faults.push(...config.failure)
    else checked.push({ resource: one.resource, config: config.success })
  }
  if (faults.length === 0) return checked
  return yield* fromReason(ServiceErrorReason.InputInvalid({ faults }))
})

/** A state as others say it, in a message. */
const shown = (state: string): string => printable(state.replaceAll("\n", " "), 64)

/** Asks again and again until the resource is ready, tells of it, and gives up when it takes too long. */
const provision = Effect.fnUntraced(function*(
  { config, resource: { name, type } }: Checked<Resource.Any>,
  options: Options
): Effect.fn.Return<unknown, ServiceError, Provisioner | ServiceEvents | Scope.Scope> {
  const provisioner = yield* Provisioner
  const { publish } = yield* ServiceEvents
  const startTimeout = Duration.fromInputUnsafe(options.startTimeout ?? "10 minutes")
  let attempt = 0
  let state: string | undefined

  const ask: Effect.Effect<ResourceAnswer, ServiceError, Scope.Scope> = Effect.gen(function*() {
    yield* publish({
      _tag: "Provisioning",
      resource: name,
      type,
      attempt: ++attempt,
      ...(state === undefined ? {} : { state })
    })
    const answer = yield* Effect.mapError(
      provisioner.request({ name, type, config }),
      (error) => fromReason(ServiceErrorReason.ProvisionFailed({ resource: name, why: error.message }), error)
    )
    state = shown(answer.state)
    return answer
  })

  const poll = Effect.gen(function*() {
    let wait = pollEvery
    for (;;) {
      const answer = yield* ask
      switch (answer.state) {
        case "ready":
          return answer.output
        case "authorizing":
        case "provisioning":
          yield* Effect.sleep(wait)
          if (attempt > 1) wait = Duration.min(Duration.times(wait, 1.5), pollAtMost)
          break
        default:
          return yield* fromReason(
            ServiceErrorReason.BadResourceState({ resource: name, type, state: shown(answer.state) })
          )
      }
    }
  })

  const how = () => state === undefined ? "no answer yet" : `"${state}" after ${attempt} requests`
  const tell = Effect.gen(function*() {
    for (let waited = tellEvery;; waited = Duration.sum(waited, tellEvery)) {
      yield* Effect.sleep(tellEvery)
      yield* Effect.logInfo(`Still provisioning ${name} (${type}) after ${Duration.format(waited)}: ${how()}`)
    }
  })

  yield* Effect.logInfo(`Provisioning ${name} (${type})`)
  return yield* poll.pipe(
    Effect.raceFirst(tell),
    Effect.timeoutOrElse({
      duration: startTimeout,
      orElse: () =>
        Effect.fail(fromReason(ServiceErrorReason.ProvisionFailed({
          resource: name,
          why: `not ready within ${Duration.format(startTimeout)}: ${how()}`
        })))
    }),
    Effect.withSpan("Provisioning.provision", { attributes: { resource: name, type } })
  )
})

/**
 * Has all resources made, at the same time, and waits until they are ready. What is `custom` has its own input as output
 * and never leaves the process; a `secrets` resource gets the map.
 *
 * A resource is asked for again after 2 s, 2 s, 3 s, 4.5 s … up to every 10 s, each time with a `Provisioning` event; every
 * 15 s the log says what is waited for. The first failure ends the others: `BadResourceState`, or `ProvisionFailed` when a
 * request fails or the start timeout has passed. What the provisioner holds for a resource ends with the scope.
 *
 * @category phases
 * @since 0.1.0
 */
export const provisionAll = <R extends Resource.Any>(
  checked: ReadonlyArray<Checked<R>>,
  secretMap: Resource.SecretMap,
  options: Options = {}
): Effect.Effect<ReadonlyArray<Answered<R>>, ServiceError, Provisioner | ServiceEvents | Scope.Scope> => {
  const outputOf = (one: Checked<R>) => {
    switch (one.resource.kind) {
      case "custom":
        return Effect.succeed(one.config)
      case "secrets":
        return Effect.succeed<unknown>(secretMap)
      case "provisioned":
        return provision(one, options)
    }
  }
  return Effect.forEach(
    checked,
    (one) => Effect.map(outputOf(one), (output) => ({ resource: one.resource, output })),
    { concurrency: "unbounded" }
  )
}

/**
 * Turns outputs into what the service uses, each under the key of its resource. Those that do not fit their schema are one
 * `InitFailed`; it names places, never values.
 *
 * @category phases
 * @since 0.1.0
 */
export const decodeAll = Effect.fnUntraced(function*<R extends Resource.Any>(
  answered: ReadonlyArray<Answered<R>>
): Effect.fn.Return<Context.Context<Provides<R>>, ServiceError> {
  const services = new Map<string, unknown>()
  const failed: Array<readonly [name: string, error: Schema.SchemaError]> = []
  for (const { output, resource } of answered) {
    const decoded = yield* decode(resource, output)
    if (Result.isFailure(decoded)) failed.push([resource.name, decoded.failure])
    else services.set(resource.key.key, decoded.success)
  }
  if (failed.length === 0) return Context.makeUnsafe<Provides<R>>(services)
  const why = failed
    .flatMap(([name, error]) =>
      faultsOf(error).map((fault) => `the output of ${name} cannot be used: ${sentence(fault)}`)
    )
    .join("; ")
  return yield* fromReason(ServiceErrorReason.InitFailed({ part: failed.map(([name]) => name).join(", "), why }))
})

/**
 * All of it: secrets, load, check, provision, decode.
 *
 * ```ts import.meta.vitest
 * import { Phase, Provisioner, Provisioning } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * const run = Provisioning.run([], {
 *   environment: "local",
 *   projectId: "p1",
 *   projectName: "notes",
 *   stateDirectory: "/var/lib/notes"
 * }).pipe(
 *   Effect.scoped,
 *   Effect.provideService(Provisioner.Provisioner, {
 *     secrets: Effect.succeed(new Map()),
 *     request: ({ type }) => Effect.succeed({ type, state: "ready", output: null })
 *   }),
 *   Effect.provideService(Phase.ServiceEvents, { publish: () => Effect.void, events: Stream.empty })
 * )
 * const context = await Effect.runPromise(run)
 * context.mapUnsafe.size // => 0
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const run = Effect.fn("Provisioning.run")(function*<R extends Resource.Any>(
  resources: ReadonlyArray<R>,
  context: Omit<Resource.LoadContext, "secrets">,
  options: Options = {}
): Effect.fn.Return<Context.Context<Provides<R>>, ServiceError, Provisioner | ServiceEvents | Scope.Scope> {
  const map = yield* secrets
  const loaded = yield* loadAll(resources, { ...context, secrets: map })
  const checked = yield* checkAll(loaded)
  const answered = yield* provisionAll(checked, map, options)
  return yield* decodeAll(answered)
})
