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
    const rung = Deferred.await(wake)
    return at >= (this.#timer?.at ?? Infinity) ? rung : Effect.andThen(this.#alarm(at, now), rung)
  }
}

/** How far a walk is. */
class Course<N extends { readonly index: number }, A, E> {
  readonly #walker: Walker<N, A, E>
  readonly #bell: Bell
  // By the numbers of the nodes: for how many others each still waits, and the visits that are under way.
  readonly #waits: Array<number | undefined> = []
  readonly #going: Array<Fiber.Fiber<A, E> | undefined> = []
  #count = 0
  // Nodes are begun from the front while others are added at the back.
  readonly #ready: Array<N> = []
  #begun = 0
  #exits: Array<readonly [N, Exit.Exit<A, E>]> = []
  #news: Array<Effect.Effect<void>> = []
  // No deadline is earlier than this one.
  #earliest = Infinity

  constructor(walker: Walker<N, A, E>, bell: Bell) {
    const { after, nodes } = walker
    this.#walker = walker
    this.#bell = bell
    for (const node of nodes) this.#waits[node.index] = 0
    for (const node of nodes) {
      let others = 0
      for (const other of after(node)) if (this.#waits[other.index] !== undefined) others++
      this.#waits[node.index] = others
      if (others === 0) this.#ready.push(node)
    }
  }

  /** Does what can be done at once, in plain loops. Gives what may take time, and nothing when the walk is over. */
  next(): Effect.Effect<void> | undefined {
    const { halted, now } = this.#walker
    while (true) {
      this.#settle(now())
      // Everything that has ended is told before what waits for it is begun, and before anything is given up.
      if (this.#news.length > 0) {
        const news = this.#news
        this.#news = []
        return Effect.all(news, { discard: true })
      }
      this.#begin()
      if (this.#exits.length > 0 || this.#news.length > 0) continue
      if (halted()) return undefined
      if (this.#begun < this.#ready.length) continue
      if (this.#count === 0) return undefined
      const time = now()
      if (this.#earliest > time) return this.#bell.wait(this.#earliest, time)
      this.#giveUp(time)
    }
  }

  #settle(time: number): void {
    const exits = this.#exits
    this.#exits = []
    for (const [node, exit] of exits) this.#end(node, exit, time)
  }

  #begin(): void {
    const { halted, now, visit } = this.#walker
    let time = now()
    for (const until = this.#ready.length; this.#begun < until && !halted(); this.#begun++) {
      const node = this.#ready[this.#begun]
      if (node === undefined) break
      const fiber = visit(node, time)
      const exit = fiber.pollUnsafe()
      time = now()
      // Nobody holds on to the fibers of visits that take no time.
      if (exit === undefined) this.#watch(node, fiber)
      else this.#end(node, exit, time)
    }
  }

  #watch(node: N, fiber: Fiber.Fiber<A, E>): void {
    this.#going[node.index] = fiber
    this.#count++
    this.#earliest = Math.min(this.#earliest, this.#walker.deadline(node))
    fiber.addObserver((exit) => {
      if (this.#going[node.index] === undefined) return
      this.#leave(node)
      this.#exits.push([node, exit])
      this.#bell.ring()
    })
  }

  #leave(node: N): void {
    this.#going[node.index] = undefined
    this.#count--
  }

  #end(node: N, exit: Exit.Exit<A, E>, time: number): void {
    const told = this.#walker.ended(node, exit, time)
    if (told !== undefined) this.#news.push(told)
    this.#release(node)
  }

  #release(node: N): void {
    for (const other of this.#walker.before(node)) {
      const left = this.#waits[other.index]
      if (left === undefined) continue
      this.#waits[other.index] = left - 1
      if (left === 1) this.#ready.push(other)
    }
  }

  #giveUp(time: number): void {
    const { deadline, overdue } = this.#walker
    this.#earliest = Infinity
    // In the order in which they were begun.
    for (const node of this.#ready) {
      const fiber = this.#going[node.index]
      if (fiber === undefined) continue
      const at = deadline(node)
      if (at > time) {
        this.#earliest = Math.min(this.#earliest, at)
        continue
      }
      this.#leave(node)
      this.#release(node)
      this.#news.push(overdue(node, fiber, time))
    }
  }
}

// Not inside of `make`: V8 keeps all that a generator function refers to until its next full collection.
const walk = Effect.fnUntraced(
  function*<N extends { readonly index: number }, A, E>(walker: Walker<N, A, E>, bell: Bell): Effect.fn.Return<void> {
    const course = new Course(walker, bell)
    for (let step = course.next(); step !== undefined; step = course.next()) yield* step
  },
  (self, _, bell) => Effect.ensuring(self, bell.unset)
)

export const make = <N extends { readonly index: number }, A, E>(walker: Walker<N, A, E>): Walk => {
  const bell = new Bell()
  return { run: walk(walker, bell), rouse: () => bell.ring() }
}
