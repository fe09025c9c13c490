/**
 * Firecracker on this host, for whoever asks for it. Most runs do not, so it is loaded with the first that does.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type { FirecrackerHost } from "../firecracker/FirecrackerHost.ts"
import type { Jail } from "../firecracker/Jail.ts"
import type { MetricsFiles } from "../firecracker/MetricsCollector.ts"
import type { PageServer } from "../firecracker/PageServer.ts"
import type { Vsock } from "../firecracker/Vsock.ts"

/**
 * What machines on Firecracker need of their host, beside what all machines do.
 *
 * @category models
 * @since 0.1.0
 */
export type Parts = FirecrackerHost | Jail | MetricsFiles | PageServer | Vsock

/**
 * - `mayBe`: is there a program of that name, or does the environment say anything of it? Where neither is so, it need not be looked
 *   for any closer.
 * - `parts`: loads it.
 *
 * @category services
 * @since 0.1.0
 */
export class FirecrackerHere extends Context.Service<FirecrackerHere, {
  readonly mayBe: Effect.Effect<boolean>
  readonly parts: Layer.Layer<Parts>
}>()("effect-microvm-runtime/cli/FirecrackerHere") {}
