import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { FirecrackerHost } from "../FirecrackerHost.ts"
import type { Options as ServerOptions, Serving } from "../PageServer.ts"
import { WorkingSet } from "../PageServer.ts"

/**
 * The first machine that is restored from a snapshot shows which pages it needs first. Those after it have these pages copied as soon
 * as they are up, without asking.
 *
 * @category options
 * @since 0.1.0
 */
export interface WorkingSets {
  /**
   * Where it is written down, in a file for each snapshot. It has to be there. A file that is removed, or is none of ours, is written
   * anew; those of snapshots that are gone stay, up to 590 KB each, and are the caller's to remove.
   */
  readonly directory: string
  /** How long the first machine is looked at, from when it first runs. Default 10 seconds. */
  readonly recordFor?: Duration.Input | undefined
}

const Text = Schema.fromJsonString(WorkingSet)
const decode = Schema.decodeOption(Text)
const encode = Schema.encodeEffect(Text)

/** 256 MiB of small pages: it was first needed first, and a text of them is one that is read again. */
const mostPages = 65_536

interface Kept {
  /** What the server is to do for a machine that is about to be restored. */
  readonly wanted: Pick<ServerOptions, "prefetch" | "record">
  /** Writes down, in time, what a machine that is up has asked for. */
  readonly keep: (serving: Serving) => Effect.Effect<void, never, Scope.Scope>
}

const nothing: Kept = { wanted: {}, keep: () => Effect.void }

/** Whether there is something to be known of a snapshot, or to be found out. */
export const of = Effect.fnUntraced(function*(
  sets: WorkingSets | undefined,
  snapshot: string | undefined,
  host: FirecrackerHost["Service"]
): Effect.fn.Return<Kept> {
  if (sets === undefined || snapshot === undefined) return nothing
  const file = `${sets.directory}/${snapshot}.json`
  const look = Effect.map(Effect.orElseSucceed(host.read(file), () => ""), (text) => decode(text ?? ""))
  const known = yield* look
  if (known._tag === "Some") return { ...nothing, wanted: { prefetch: known.value } }
  const recordFor = Duration.fromInputUnsafe(sets.recordFor ?? "10 seconds")
  const write = ({ workingSet }: Serving) =>
    Effect.gen(function*() {
      const { pageSize, pages } = yield* workingSet
      // Another one that was restored at the same time may have been first.
      if (pages.length === 0 || (yield* look)._tag === "Some") return
      // Half of one may be there, of somebody who was killed.
      yield* host.remove([`${file}.new`])
      yield* host.write(file, yield* Effect.orDie(encode({ pageSize, pages: pages.slice(0, mostPages) })))
    }).pipe(
      Effect.catch((error) => Effect.logWarning(`which pages its machines need first is not kept: ${error.message}`)),
      Effect.uninterruptible
    )
  return {
    wanted: { record: true },
    keep: (serving) =>
      // Whoever ends the machine before does not lose it.
      Effect.exit(serving.ended).pipe(
        Effect.timeoutOption(recordFor),
        Effect.ensuring(write(serving)),
        Effect.forkScoped({ startImmediately: true }),
        Effect.asVoid
      )
  }
})
