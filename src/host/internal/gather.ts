/** One command for all who ask at the same time, where it costs little more than one for each of them. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"

/** How long those who wait are held up by one that does not come to an end. */
const patience = Duration.seconds(1)

interface Group<Item, E> {
  readonly calls: Array<ReadonlyArray<Item>>
  callers: number
  readonly work: Fiber.Fiber<ReadonlyArray<Exit.Exit<void, E>>>
}

/**
 * Whoever asks while a command is under way waits for its end, for a second at most, and all of them are the next one. When that fails,
 * each of them is tried alone: who is at fault is told, and nobody else. So is each of those who want the same (`keyOf`), in turn.
 *
 * `make` makes all or nothing. A caller that is interrupted waits for the command, unless nobody else does, and what was made for it is
 * undone.
 */
export const gather = <Item, E>({ keyOf, make, undo }: {
  readonly make: (items: ReadonlyArray<Item>) => Effect.Effect<void, E>
  readonly undo: (items: ReadonlyArray<Item>) => Effect.Effect<unknown>
  readonly keyOf: (item: Item) => string
}): (items: ReadonlyArray<Item>) => Effect.Effect<void, E> => {
  let open: Group<Item, E> | undefined
  let last: Fiber.Fiber<unknown> | undefined
  const run = Effect.fnUntraced(function*(calls: ReadonlyArray<ReadonlyArray<Item>>) {
    const all = calls.flat()
    const areApart = new Set(all.map(keyOf)).size === all.length
    if (calls.length > 1 && areApart) {
      const together = yield* Effect.exit(make(all))
      if (Exit.isSuccess(together)) return calls.map(() => together)
    }
    // One that hangs is not to hold up the others.
    return yield* Effect.forEach(calls, (items) => Effect.exit(make(items)), {
      concurrency: areApart ? "unbounded" : 1
    })
  })
  const begin = Effect.suspend(() => {
    const before = last === undefined || last.pollUnsafe() !== undefined
      ? Effect.void
      : Effect.raceFirst(Effect.asVoid(Fiber.await(last)), Effect.sleep(patience))
    const calls: Group<Item, E>["calls"] = []
    return Effect.map(
      Effect.forkDetach(
        // Those that are about to ask do so first.
        Effect.yieldNow.pipe(
          Effect.andThen(before),
          Effect.andThen(Effect.suspend(() => {
            open = undefined
            return run(calls)
          }))
        ),
        { uninterruptible: false }
      ),
      (work): Group<Item, E> => {
        const group: Group<Item, E> = { calls, callers: 0, work }
        open = group
        last = work
        return group
      }
    )
  })
  return (items) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const group = open ?? (yield* begin)
        const at = group.calls.push(items) - 1
        group.callers++
        const leave = Effect.gen(function*() {
          group.callers--
          if (group.callers === 0) {
            if (open === group) open = undefined
            yield* Fiber.interrupt(group.work)
          }
          const ended = yield* Fiber.await(group.work)
          const own = Exit.isSuccess(ended) ? ended.value[at] : undefined
          if (own === undefined || Exit.isSuccess(own)) yield* undo(items)
        })
        const ends = yield* Effect.onInterrupt(restore(Fiber.join(group.work)), () => leave)
        const own = ends[at]
        return yield* own ?? Effect.die(new Error("a call was not answered for"))
      })
    )
}
