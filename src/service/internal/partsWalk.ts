/** Visits the nodes of a graph in order, each as soon as those before it are done, with a deadline for each visit. */
import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"

export interface Walker<in out N extends { readonly index: number }, A, E> {
  /** Those to visit. Each has a number of its own, from zero on. */
  readonly nodes: ReadonlyArray<N>
  /** Whom a node waits for, and who waits for it. Those that are not walked count as done. */
  readonly after: (node: N) => ReadonlyArray<N>
  readonly before: (node: N) => ReadonlyArray<N>
  /** In milliseconds of the monotonic clock, as all times here. */
  readonly now: () => number
  /** Begins a visit, in a fiber of its own, which the walk does not end. */
  readonly visit: (node: N, now: number) => Fiber.Fiber<A, E>
  /** It may move, followed by a `rouse`. */
  readonly deadline: (node: N) => number
  /** A visit has ended. The answer tells of it. */
  readonly ended: (node: N, exit: Exit.Exit<A, E>, now: number) => Effect.Effect<void> | undefined
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

/** Wakes a walk that waits. */
class Bell {
  #wake: Deferred.Deferred<void> | undefined
  // One timer for all visits: it is set anew only when it would be too late.
  #timer: { readonly at: number; readonly fiber: Fiber.Fiber<void> } | undefined

  ring(): void {
    if (this.#wake !== undefined) Deferred.doneUnsafe(this.#wake, Exit.void)
  }

  readonly unset = Effect.sync(() => {
    this.#timer?.fiber.interruptUnsafe()
    this.#timer = undefined
  })

  #alarm(at: number, now: number): Effect.Effect<void> {
    if (at >= (this.#timer?.at ?? Infinity)) return Effect.void
    // One that is early, as timers that cut fractions off are, means another round. Whole microseconds, so that there
    // are few.
    const ringing = Effect.delay(
      Effect.sync(() => {
        this.#timer = undefined
        this.ring()
      }),
      Math.ceil((at - now) * 1000) / 1000
    )
    return this.unset.pipe(
      Effect.andThen(Effect.forkDetach(ringing, { startImmediately: true, uninterruptible: false })),
      Effect.map((fiber) => {
        this.#timer = { at, fiber }
      })
    )
  }

  /** Until it rings, which it does at that time at the latest. */
  wait(at: number, now: number): Effect.Effect<void> {
    const wake = this.#wake = Deferred.makeUnsafe()
    return Effect.andThen(this.#alarm(at, now), Deferred.await(wake))
  }
}

// Not inside of `make`: V8 keeps all that a generator function refers to until its next full collection.
const walk = Effect.fnUntraced(
  function*<N extends { readonly index: number }, A, E>(walker: Walker<N, A, E>, bell: Bell): Effect.fn.Return<void> {
    const { nodes, now } = walker
    // By the numbers of the nodes: for how many others each still waits, and the visits that are under way.
    const waits: Array<number | undefined> = []
    const going: Array<Fiber.Fiber<A, E> | undefined> = []
    let count = 0
    for (const node of nodes) waits[node.index] = 0
    for (const node of nodes) {
      let others = 0
      for (const other of walker.after(node)) if (waits[other.index] !== undefined) others++
      waits[node.index] = others
    }
    // Nodes are begun from the front while others are added at the back.
    const ready = nodes.filter((node) => waits[node.index] === 0)
    let next = 0
    let exits: Array<readonly [N, Exit.Exit<A, E>]> = []
    let news: Array<Effect.Effect<void>> = []
    // No deadline is earlier than this one.
    let earliest = Infinity

    const watch = (node: N, fiber: Fiber.Fiber<A, E>): void => {
      going[node.index] = fiber
      count++
      earliest = Math.min(earliest, walker.deadline(node))
      fiber.addObserver((exit) => {
        if (going[node.index] === undefined) return
        going[node.index] = undefined
        count--
        exits.push([node, exit])
        bell.ring()
      })
    }
    const end = (node: N, exit: Exit.Exit<A, E>, time: number): void => {
      const told = walker.ended(node, exit, time)
      if (told !== undefined) news.push(told)
      release(node)
    }
    const release = (node: N): void => {
      for (const other of walker.before(node)) {
        const left = waits[other.index]
        if (left === undefined) continue
        waits[other.index] = left - 1
        if (left === 1) ready.push(other)
      }
    }

    while (true) {
      let time = now()
      const ended = exits
      exits = []
      for (const [node, exit] of ended) end(node, exit, time)
      // Everything that has ended is told before what waits for it is begun, and before anything is given up.
      const told = news
      news = []
      for (const one of told) yield* one
      if (exits.length > 0) continue
      if (told.length > 0) time = now()
      for (const until = ready.length; next < until && !walker.halted(); next++) {
        const node = ready[next]
        if (node === undefined) break
        const fiber = walker.visit(node, time)
        const exit = fiber.pollUnsafe()
        time = now()
        // Nobody holds on to the fibers of visits that take no time.
        if (exit === undefined) watch(node, fiber)
        else end(node, exit, time)
      }
      if (exits.length > 0 || news.length > 0) continue
      if (walker.halted()) return
      if (next < ready.length) continue
      if (count === 0) return
      if (earliest <= time) {
        earliest = Infinity
        // In the order in which they were begun.
        for (const node of ready) {
          const fiber = going[node.index]
          if (fiber === undefined) continue
          const deadline = walker.deadline(node)
          if (deadline <= time) {
            going[node.index] = undefined
            count--
            release(node)
            yield* walker.overdue(node, fiber, time)
          } else earliest = Math.min(earliest, deadline)
        }
        continue
      }
      yield* bell.wait(earliest, time)
    }
  },
  (self, _, bell) => Effect.ensuring(self, bell.unset)
)

export const make = <N extends { readonly index: number }, A, E>(walker: Walker<N, A, E>): Walk => {
  const bell = new Bell()
  return { run: walk(walker, bell), rouse: () => bell.ring() }
}
