/**
 * The signals of this process.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as HostSignals from "./HostSignals.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Installed extends HostSignals.Controlled {
  readonly remove: () => void
}

/**
 * Takes the signals of `HostSignals.handled` from now on, before it returns: none that comes later is lost, and none does
 * anything else. As PID 1 of a container, where the kernel drops signals that have no handler, it is what makes them count.
 *
 * **Gotchas**
 *
 * - A signal that comes while Node still loads modules finds no handler: it ends the process at once, with nothing started
 *   yet; as PID 1 it is lost, and the host has to send another one.
 * - Signals reach the main thread only.
 * - Node begins with the default action for all of them: what nohup(1) has set is gone, and a hang-up is taken.
 *
 * @category constructors
 * @since 0.1.0
 */
export const install = (): Installed => {
  const controlled = HostSignals.makeUnsafe()
  const listeners = HostSignals.handled.map((signal) => {
    const listener = (): void => controlled.send(signal)
    process.on(signal, listener)
    return { signal, listener }
  })
  return {
    ...controlled,
    remove: () => {
      for (const { listener, signal } of listeners) process.off(signal, listener)
    }
  }
}

/**
 * The signals of this process, as long as the layer lives. Errors that nobody caught stay with Node, which ends the process
 * for them; `NodeService.main` takes those too.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<HostSignals.ServiceSignals> = Layer.effect(
  HostSignals.ServiceSignals,
  Effect.map(
    Effect.acquireRelease(Effect.sync(install), ({ remove }) => Effect.sync(remove)),
    ({ signals }) => signals
  )
)
