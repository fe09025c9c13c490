/** Knows what each part is doing, by the spans that are open in it. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Tracer from "effect/Tracer"
import { PartControl } from "../Part.ts"
import { toTheMilli } from "./durationText.ts"

/** What is told of something that has no span open. */
export const noSpan = "nothing that a span tells"

/** More spans open at once than this, and the oldest are forgotten: only the last one matters. */
const most = 1024

const isOpen = (span: Tracer.Span): boolean => span.status._tag === "Started"

type SpanOptions = Parameters<Tracer.Tracer["span"]>[0]

type Shape = Context.Service.Shape<typeof PartControl>

/** What the `PartControl` of each part of a service is made from. */
export interface Stopping<N> {
  readonly extendStop: (node: N) => Shape["extendStop"]
  readonly timeLeft: (node: N) => Shape["timeLeft"]
}

/** The `PartControl` of a part, by which its spans are told from those of others. Made for each part, so there is little in it. */
export class Control<N> implements Shape {
  readonly name: string
  /**
   * Spans without a parent become children of this one. It is set while the part starts and not after: the context that
   * a part captures while it is built must not put its whole life into the trace of the start.
   */
  parent: Tracer.AnySpan | undefined
  readonly tracker: Tracker
  readonly #node: N
  readonly #stopping: Stopping<N>
  #spans: Array<Tracer.Span> | undefined
  #purgeAt = 16

  constructor(name: string, node: N, stopping: Stopping<N>, tracker: Tracker) {
    this.name = name
    this.#node = node
    this.#stopping = stopping
    this.tracker = tracker
  }

  get extendStop(): Shape["extendStop"] {
    return this.#stopping.extendStop(this.#node)
  }

  get timeLeft(): Effect.Effect<Option.Option<Duration.Duration>> {
    return this.#stopping.timeLeft(this.#node)
  }

  opened(span: Tracer.Span): void {
    this.#spans ??= []
    if (this.#spans.length >= this.#purgeAt) {
      // Rarely, so that a span costs next to nothing however many are open.
      this.#spans = this.#spans.filter(isOpen).slice(-most)
      this.#purgeAt = 2 * this.#spans.length + 16
    }
    this.#spans.push(span)
  }

  /** The innermost open span and since when it is open; `now` is in nanoseconds since the epoch. */
  doing(now: bigint): string | undefined {
    const span = this.#spans?.findLast(isOpen)
    if (span === undefined) return undefined
    return this.tracker.isTimed
      ? `${span.name}, for ${toTheMilli(Duration.nanos(now - span.status.startTime))}`
      : span.name
  }
}

/** One for all parts: a tracer of its own makes each fiber of a part look up its whole context anew. */
export class Tracker implements Tracer.Tracer {
  readonly context?: NonNullable<Tracer.Tracer["context"]>
  /** Spans know when they began. */
  readonly isTimed: boolean
  readonly #base: Tracer.Tracer
  readonly #outer: Shape | undefined

  /** `outer` is the part in which these parts are started, if there is one. */
  constructor(base: Tracer.Tracer, isTimed: boolean, outer: Shape | undefined) {
    this.isTimed = isTimed
    this.#base = base
    this.#outer = outer
    if (base.context !== undefined) this.context = base.context
  }

  span(options: SpanOptions): Tracer.Span {
    const part = this.#current()
    const parent = part?.parent
    const span = this.#base.span(
      parent === undefined || options.root || Option.isSome(options.parent)
        ? options
        : { ...options, parent: Option.some(parent), sampled: options.sampled && parent.sampled }
    )
    part?.opened(span)
    return span
  }

  /** The part that the current fiber belongs to, or in which the parts are that it belongs to. */
  #current(): Control<unknown> | undefined {
    const fiber = Fiber.getCurrent()
    let control = fiber && Context.getOrUndefined(fiber.context, PartControl)
    while (control instanceof Control && control.tracker !== this) control = control.tracker.#outer
    return control instanceof Control ? control : undefined
  }
}
