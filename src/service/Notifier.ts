/**
 * Telling the service manager how things stand, in the protocol of sd_notify(3).
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * What can be told, in any combination.
 *
 * @category models
 * @since 0.1.0
 */
export interface Notification {
  /** Start-up is over. */
  readonly ready?: true
  /** The stop has begun. */
  readonly stopping?: true
  /** One line for people, as `systemctl status` shows it. Line breaks become spaces; 512 characters are kept. */
  readonly status?: string
  /** A sign of life; the Node layer sends it by itself where the manager wants it. */
  readonly watchdog?: true
  /** From now on, the manager has to wait this long for the next of these, or for the end of the phase. */
  readonly extendTimeout?: Duration.Input
  /** Who the main process is, if the manager has started another one. */
  readonly mainPid?: number
}

/** With all other variables it stays below the 4096 bytes that systemd reads. */
const longestStatus = 512

/**
 * The variables of a notification, one line each. Those that say nothing valid are left out.
 *
 * ```ts import.meta.vitest
 * import { Notifier } from "effect-microvm-runtime/service"
 * const result = Notifier.encode({ stopping: true, extendTimeout: "10 seconds", status: "Draining" })
 * result // => ["STOPPING=1", "STATUS=Draining", "EXTEND_TIMEOUT_USEC=10000000"]
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const encode = (notification: Notification): ReadonlyArray<string> => {
  const { extendTimeout, mainPid, status } = notification
  const lines: Array<string> = []
  if (notification.ready) lines.push("READY=1")
  if (notification.stopping) lines.push("STOPPING=1")
  if (status !== undefined) {
    const text = Array.from(status.replace(/\p{Cc}+/gu, " ")).slice(0, longestStatus).join("")
    lines.push(`STATUS=${text}`)
  }
  if (extendTimeout !== undefined) {
    const millis = Duration.toMillis(Duration.fromInputUnsafe(extendTimeout))
    if (Number.isFinite(millis) && millis > 0) lines.push(`EXTEND_TIMEOUT_USEC=${Math.round(millis * 1000)}`)
  }
  if (mainPid !== undefined && Number.isSafeInteger(mainPid) && mainPid > 0) lines.push(`MAINPID=${mainPid}`)
  if (notification.watchdog) lines.push("WATCHDOG=1")
  return lines
}

/**
 * @category services
 * @since 0.1.0
 */
export class Notifier extends Context.Service<Notifier, {
  /** Never waits and never fails. What could not be sent yet is merged with what comes later. */
  readonly notify: (notification: Notification) => Effect.Effect<void>
}>()("effect-microvm-runtime/service/Notifier") {}

/**
 * There is no service manager to tell.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerNone: Layer.Layer<Notifier> = Layer.succeed(Notifier, Notifier.of({ notify: () => Effect.void }))
