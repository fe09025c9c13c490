/**
 * Firecracker as Node sees it, see `FirecrackerHere`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import type { ProcessHost } from "../process/ProcessHost.ts"
import type { ProcessSpawner } from "../process/ProcessSpawner.ts"
import type { SupervisorGuard } from "../process/SupervisorGuard.ts"
import { FirecrackerHere } from "./FirecrackerHere.ts"

type Needs = FileSystem.FileSystem | Path.Path | ProcessHost | ProcessSpawner | SupervisorGuard

/** What `FirecrackerProvider.config` reads. */
const isItsVariable = (name: string): boolean => /^MICROVM_(FIRECRACKER|JAILER|MEM)_/.test(name)

const mayBe = Effect.sync(() =>
  Object.entries(process.env).some(([name, value]) => isItsVariable(name) && value !== "") ||
  (process.env["PATH"] ?? "/usr/bin:/bin").split(":").some((directory) =>
    NodeFs.existsSync(NodePath.join(directory, "firecracker"))
  )
)

const parts = Layer.unwrap(
  Effect.map(Effect.promise(() => import("../firecracker/NodeFirecracker.ts")), ({ layer }) => layer)
)

/**
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<FirecrackerHere, never, Needs> = Layer.effect(
  FirecrackerHere,
  Effect.map(
    Effect.context<Needs>(),
    (context) => FirecrackerHere.of({ mayBe, parts: Layer.provide(parts, Layer.succeedContext(context)) })
  )
)
