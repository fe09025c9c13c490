/** Visits the nodes of a graph in order, each as soon as those before it are done, with a deadline for each visit. */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"

export interface Walker<in out N, A, E> {
  readonly nodes: ReadonlyArray<N>
  /** Whom a node waits for. Those that are not walked count as done. */
  readonly after: (node: N) => ReadonlyArray<N>
  /** Begins a visit, in a fiber of its own, which the walk does not end. */
  readonly visit: (node: N, now: number) => Fiber.Fiber<A, E>
  /** In milliseconds of the monotonic clock; it may move, followed by a `rouse`. */
  readonly deadline: (node: N) => number
  /** A visit has ended. */
  readonly ended: (node: N, exit: Exit.Exit<A, E>, now: number) => Effect.Effect<void>
  /** A visit is not waited for any longer. */
  readonly overdue: (node: N, fiber: Fiber.Fiber<A, E>, now: number) => Effect.Effect<void>
  /** Nothing more is begun or waited for once this is true; a change has to be followed by a `rouse`. */
  readonly halted: () => boolean
}

export interface Walk {
  /** Ends when all is visited, or halted: then visits may still be under way. */
  readonly run: Effect.Effect<void>
  readonly rouse: () => void
}

export const monotonic = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

export const make = <N, A, E>(walker: Walker<N, A, E>): Walk => {
  let wake = Deferred.makeUnsafe<void>()
  const rouse = (): void => {
    Deferred.doneUnsafe(wake, Exit.void)
  }

  // One timer for all visits: it is set anew only when it would be too late.
  let timer: { readonly at: number; readonly fiber: Fiber.Fiber<void> } | undefined
  const unset = Effect.sync(() => {
    timer?.fiber.interruptUnsafe()
    timer = undefined
  })
  const alarm = (at: number, now: number): Effect.Effect<void> => {
    if (at >= (timer?.at ?? Infinity)) return Effect.void
    // One that is early, as timers that cut fractions off are, means another round. Whole microseconds, so that there
    // are few.
    const rousing = Effect.delay(
      Effect.sync(() => {
        timer = undefined
        rouse()
      }),
      Math.ceil((at - now) * 1000) / 1000
    )
    return unset.pipe(
      Effect.andThen(Effect.forkDetach(rousing, { startImmediately: true, uninterruptible: false })),
      Effect.map((fiber) => {
        timer = { at, fiber }
      })
    )
  }

  const walk = Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const walked = new Set(walker.nodes)
    const waits = new Map<N, number>()
    const before = new Map<N, Array<N>>()
    for (const node of walked) {
      for (const other of walker.after(node)) {
        if (!walked.has(other)) continue
        waits.set(node, (waits.get(node) ?? 0) + 1)
        const known = before.get(other)
        if (known === undefined) before.set(other, [node])
        else known.push(node)
      }
    }
    // Nodes are begun from the front while others are added at the back.
    const ready = walker.nodes.filter((node) => !waits.has(node))
    let next = 0
    const going = new Map<N, Fiber.Fiber<A, E>>()
    let exits: Array<readonly [N, Exit.Exit<A, E>]> = []
    // No deadline is earlier than this one.
    let earliest = Infinity

    const release = (node: N): void => {
      going.delete(node)
      for (const other of before.get(node) ?? []) {
        const left = (waits.get(other) ?? 0) - 1
        waits.set(other, left)
        if (left === 0) ready.push(other)
      }
    }

    while (true) {
      const news = exits
      exits = []
      const then = monotonic(clock)
      for (const [node, exit] of news) {
        if (!going.has(node)) continue
        release(node)
        yield* walker.ended(node, exit, then)
      }
      for (let node = ready[next]; node !== undefined && !walker.halted(); node = ready[++next]) {
        const now = monotonic(clock)
        const fiber = walker.visit(node, now)
        going.set(node, fiber)
        earliest = Math.min(earliest, walker.deadline(node))
        fiber.addObserver((exit) => {
          exits.push([node, exit])
          rouse()
        })
      }
      // Everything that has ended is told before anything is given up.
      if (exits.length > 0) continue
      if (walker.halted() || going.size === 0) return
      const now = monotonic(clock)
      if (earliest <= now) {
        earliest = Infinity
        for (const [node, fiber] of going) {
          const deadline = walker.deadline(node)
          if (deadline <= now) {
            release(node)
            yield* walker.overdue(node, fiber, now)
          } else earliest = Math.min(earliest, deadline)
        }
        continue
      }
      wake = Deferred.makeUnsafe()
      yield* alarm(earliest, now)
      yield* Deferred.await(wake)
    }
  })
  return { run: Effect.ensuring(walk, unset), rouse }
}
