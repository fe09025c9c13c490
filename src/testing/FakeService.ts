/**
 * A process for a service to run in, without one: its variables, its signals, what it prints, and who provisions it.
 *
 * @since 0.1.0
 */
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type { Signal } from "../lifecycle/Signal.ts"
import * as HostSignals from "../service/HostSignals.ts"
import { type Notification, Notifier } from "../service/Notifier.ts"
import { ServiceEvents } from "../service/Phase.ts"
import { Provisioner, ProvisionerError } from "../service/Provisioner.ts"
import { ServicePlatform } from "../service/ServicePlatform.ts"
import { TerminationLog, type TerminationRecord } from "../service/TerminationLog.ts"
import * as Watchdog from "../service/Watchdog.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Its variables, for `Config` too. Default none, and `Config` reads what it reads elsewhere. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** Default none. */
  readonly argv?: ReadonlyArray<string> | undefined
  /** Default none. */
  readonly secrets?: Readonly<Record<string, string>> | undefined
  /** By the names of resources, what a provisioner answers: of a database, its connection string. Default: requests fail. */
  readonly outputs?: Readonly<Record<string, unknown>> | undefined
  /** Who answers instead, where it matters how: late, never, with an error. */
  readonly provisioner?: Partial<Provisioner["Service"]> | undefined
  readonly telemetry?: Layer.Layer<never> | undefined
}

/**
 * @category models
 * @since 0.1.0
 */
export interface FakeService {
  /** All that `Service.run` needs. */
  readonly layer: Layer.Layer<
    HostSignals.ServiceSignals | Notifier | ServiceEvents | ServicePlatform | TerminationLog | Watchdog.Watchdog
  >
  readonly send: (signal: Signal) => Effect.Effect<void>
  /** An exception that nobody caught. */
  readonly crash: (error: unknown) => Effect.Effect<void>
  readonly stdout: ReadonlyArray<string>
  readonly stderr: ReadonlyArray<string>
  readonly notifications: ReadonlyArray<Notification>
  readonly terminations: ReadonlyArray<TerminationRecord>
  readonly sidecarCalls: () => number
}

/**
 * Makes such a process.
 *
 * ```ts import.meta.vitest
 * import { Service } from "effect-microvm-runtime/service"
 * import { FakeService } from "effect-microvm-runtime/testing"
 * import * as Effect from "effect/Effect"
 *
 * const service = Service.make({ name: "greeter", version: "1.0.0", main: Effect.void })
 * const fake = FakeService.make()
 * const report = await Effect.runPromise(Effect.provide(Service.run(service), fake.layer))
 * report.code // => 0
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options = {}): FakeService => {
  const signals = HostSignals.makeUnsafe()
  const stdout: Array<string> = []
  const stderr: Array<string> = []
  const notifications: Array<Notification> = []
  const terminations: Array<TerminationRecord> = []
  let sidecarCalls = 0
  const { env, outputs = {}, secrets = {} } = options
  const provisioner = Provisioner.of({
    secrets: Effect.succeed(
      new Map(Object.keys(secrets).toSorted().map((name) => [name, Redacted.make(secrets[name] ?? "")]))
    ),
    request: ({ name, type }) =>
      Object.hasOwn(outputs, name)
        ? Effect.succeed({ type, state: "ready", output: outputs[name] })
        : Effect.fail(
          new ProvisionerError({
            message: `nobody said what to answer to a request: use FakeService.make({ outputs: { ${
              JSON.stringify(name)
            }: … } })`
          })
        ),
    ...options.provisioner
  })
  const platform = ServicePlatform.of({
    env: env ?? {},
    argv: options.argv ?? [],
    print: (line) => Effect.sync(() => void stdout.push(line)),
    complain: (line) => Effect.sync(() => void stderr.push(line)),
    provisioner: () => Effect.succeed(provisioner),
    health: () => Effect.void,
    listen: () => Effect.succeed({ host: "127.0.0.1", port: 0 }),
    telemetry: () => options.telemetry ?? Layer.empty,
    dismissSidecar: () => Effect.sync(() => void sidecarCalls++)
  })
  return {
    layer: Layer.mergeAll(
      Layer.succeed(ServicePlatform, platform),
      Layer.succeed(HostSignals.ServiceSignals, signals.signals),
      Layer.succeed(
        Notifier,
        Notifier.of({ notify: (notification) => Effect.sync(() => void notifications.push(notification)) })
      ),
      Layer.succeed(
        TerminationLog,
        TerminationLog.of({ write: (record) => Effect.sync(() => void terminations.push(record)) })
      ),
      Watchdog.layerNone,
      ServiceEvents.layer,
      env === undefined ? Layer.empty : ConfigProvider.layer(ConfigProvider.fromEnv({ env }))
    ),
    send: (signal) => Effect.sync(() => signals.send(signal)),
    crash: (error) => Effect.sync(() => void signals.fail(error)),
    stdout,
    stderr,
    notifications,
    terminations,
    sidecarCalls: () => sidecarCalls
  }
}
