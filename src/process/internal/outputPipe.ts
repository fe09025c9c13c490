import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Pull from "effect/Pull"
import * as Stream from "effect/Stream"
import type { StreamTail } from "../OutputTail.ts"
import { fromReason, type ProcessError, ProcessErrorReason } from "../ProcessError.ts"
import type { OutputSource } from "../ProcessHost.ts"
import * as ByteTail from "./byteTail.ts"

/** One output of a child. A reader sets the pace; without one the child is held up by a full pipe, unless it is drained. */
export interface OutputPipe {
  readonly stream: Stream.Stream<Uint8Array, ProcessError>
  /** Moves what nobody reads into the tail, until the end of the pipe. Makes way for a reader that comes meanwhile. */
  readonly drain: Effect.Effect<void>
  /** Waits until the other side has closed it and all has been taken out. */
  readonly ended: Effect.Effect<void>
  readonly tail: Effect.Effect<StreamTail>
}

export const make = (name: string, source: OutputSource | undefined, limit: number): OutputPipe => {
  const kept = ByteTail.make(limit)
  const done = Deferred.makeUnsafe<void>()
  // Position up to which a reader has had everything.
  let delivered = 0
  // A reader is there while this is not done; a drain waits for it.
  let readerGone: Deferred.Deferred<void> | undefined

  const take = (): Uint8Array | "end" | undefined => {
    const taken = source === undefined ? "end" : source.take()
    if (taken === "end") Deferred.doneUnsafe(done, Exit.void)
    else if (taken !== undefined) kept.push(taken)
    return taken
  }
  const ready = (source?.ready ?? Effect.void).pipe(
    Effect.tapError(() => Effect.sync(() => Deferred.doneUnsafe(done, Exit.void)))
  )

  const pull: Pull.Pull<readonly [Uint8Array], ProcessError> = Effect.suspend(() => {
    const oldest = kept.total() - kept.held()
    if (delivered < oldest) {
      const bytes = oldest - delivered
      delivered = oldest
      return Effect.fail(fromReason(ProcessErrorReason.OutputDropped({ stream: name, bytes })))
    }
    if (delivered < kept.total()) {
      const bytes = kept.since(delivered)
      delivered = kept.total()
      return Effect.succeed([bytes])
    }
    const taken = take()
    if (taken === undefined) return Effect.andThen(ready, pull)
    if (taken === "end") return Cause.done()
    delivered = kept.total()
    return Effect.succeed([taken])
  })

  const stream = Stream.unwrap(
    Effect.acquireRelease(
      Effect.suspend(() => {
        if (readerGone !== undefined) return Effect.fail(fromReason(ProcessErrorReason.OutputInUse({ stream: name })))
        readerGone = Deferred.makeUnsafe()
        return Effect.succeed(readerGone)
      }),
      (gone) =>
        Effect.sync(() => {
          readerGone = undefined
          Deferred.doneUnsafe(gone, Exit.void)
        })
    ).pipe(Effect.as(Stream.fromPull(Effect.succeed(pull))))
  )

  const drain: Effect.Effect<void, ProcessError> = Effect.suspend(() => {
    if (readerGone !== undefined) return Effect.andThen(Deferred.await(readerGone), drain)
    const taken = take()
    if (taken === "end") return Effect.void
    return Effect.andThen(taken === undefined ? ready : Effect.void, drain)
  })

  const tail = Effect.sync((): StreamTail => ({
    text: new TextDecoder().decode(kept.since(0)),
    omittedBytes: kept.total() - kept.held()
  }))

  return { stream, drain: Effect.ignore(drain), ended: Deferred.await(done), tail }
}
