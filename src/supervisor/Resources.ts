/**
 * What machines mostly need of their host, as resources of a `Supervisor`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as DiskClones from "../host/DiskClones.ts"
import type { HostError } from "../host/HostError.ts"
import * as Limits from "../host/Limits.ts"
import * as MachineNetworks from "../host/MachineNetworks.ts"
import type { JournalError } from "../journal/JournalError.ts"
import * as ResourceKind from "../journal/ResourceKind.ts"
import type { ProcessHost } from "../process/ProcessHost.ts"
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

/**
 * Limits on what the machine may use of the host, by control groups of its own. They bind for as long as it lives, whoever
 * looks after it; that it has ended of one is told by its end (`MachineEnd.Shortage`).
 *
 * Which of them are kept here, and which are not, is written into the record as the label `limits`; for the latter there is a
 * warning in the log, too. Fails as `Limits.plan` does, before anything is made: with `InvalidArgument` for limits that cannot
 * be, and with `Unavailable` for `required` ones that cannot be had here.
 *
 * **Gotchas**
 *
 * - A monitor needs memory beside that of its guest: see `Limits.forGuest`.
 * - To enter a control group of version 2 takes some 15 ms, and so does a machine's start longer.
 *
 * @category constructors
 * @since 0.1.0
 */
export const limits = (
  options: Limits.Options
): Resource<HostError | JournalError, FileSystem.FileSystem | ProcessHost> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const plan = yield* Limits.plan(entry, options)
    const planned = Limits.format(plan.applied)
    yield* entry.update({ claim: [ResourceKind.claim(Limits.kind, plan.data)], labels: { limits: planned } })
    const { applied, data } = yield* Limits.make(plan)
    const text = Limits.format(applied)
    if (text !== planned) yield* entry.label({ limits: text })
    if (applied.some((one) => "unavailable" in one)) {
      yield* Effect.logWarning(`machine "${entry.id}" runs without all of its limits: ${text}`)
    }
    return { cgroup: data }
  })
})

/**
 * @category options
 * @since 0.1.0
 */
export interface DiskOptions extends Pick<DiskClones.CloneOptions, "size" | "stack"> {
  /** What the guest can tell it by: see `MachineSpec.Drive`. */
  readonly name: string
  /** Default false. */
  readonly readOnly?: boolean | undefined
}

/**
 * A disk of the machine's own, one at most: a clone of a template, which is gone with the machine. Fails as `DiskClones.clone`
 * does. The guest has to mount it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const disk = (
  { name, readOnly = false, size, stack }: DiskOptions
): Resource<HostError | JournalError, DiskClones.DiskClones> => ({
  acquire: Effect.fnUntraced(function*(entry) {
    const clones = yield* DiskClones.DiskClones
    yield* entry.claim(ResourceKind.claim(DiskClones.kind, clones.disk(entry.id)))
    const { path } = yield* clones.clone({ owner: entry, stack, size })
    return { drives: [{ name, path, readOnly }] }
  })
})
