/**
 * The termination log of Kubernetes, as a file.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as NodeFs from "node:fs"
import { encode, TerminationLog, type TerminationRecord } from "./TerminationLog.ts"

/**
 * Where Kubernetes puts it unless `terminationMessagePath` says otherwise. It is there before the container starts.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaultPath = "/dev/termination-log"

const isFile = (path: string): boolean => {
  try {
    return NodeFs.statSync(path).isFile()
  } catch {
    return false
  }
}

/**
 * Writes a record, if there is a plain file of that path: nothing is made, and a pipe that nobody reads cannot hold us up.
 *
 * @category constructors
 * @since 0.1.0
 */
export const writeUnsafe = (path: string, record: TerminationRecord): void => {
  if (!isFile(path)) return
  try {
    NodeFs.writeFileSync(path, encode(record))
  } catch {
    // A log that cannot be written changes nothing about the end.
  }
}

/**
 * The log at another path.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerAt = (path: string): Layer.Layer<TerminationLog> =>
  Layer.succeed(
    TerminationLog,
    TerminationLog.of({ write: (record) => Effect.sync(() => writeUnsafe(path, record)) })
  )

/**
 * The log at `/dev/termination-log`; where there is none, nothing is written.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<TerminationLog> = layerAt(defaultPath)
