/**
 * What machines mostly need of their host, as resources of a `Supervisor`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { HostError } from "../host/HostError.ts"
import * as MachineNetworks from "../host/MachineNetworks.ts"
import type { JournalError } from "../journal/JournalError.ts"
import type { Resource } from "./Supervisor.ts"

/**
 * A network card, by which the machine reaches what is allowed and nothing else.
 *
 * @category constructors
 * @since 0.1.0
 */
export const network = (
  options: MachineNetworks.Options
): Resource<HostError | JournalError, MachineNetworks.MachineNetworks> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const { netns, network: card } = yield* MachineNetworks.MachineNetworks.use(({ attach }) => attach(entry, options))
    return { networks: [card], netns }
  })
})
