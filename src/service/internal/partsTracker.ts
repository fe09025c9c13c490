/** Knows what a part is doing, by the spans that are open in it. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type * as Tracer from "effect/Tracer"

/** More spans open at once than this, and the oldest are forgotten: only the last one matters. */
const most = 1024

const isOpen = (span: Tracer.Span): boolean => span.status._tag === "Started"

type SpanOptions = Parameters<Tracer.Tracer["span"]>[0]

/** A class, as there is one for each part, and most of them never see a span. */
export class Tracker implements Tracer.Tracer {
  /**
   * Spans without a parent become children of this one. It is set while the part starts and not after: the context that
   * a part captures while it is built must not put its whole life into the trace of the start.
   */
  parent: Tracer.AnySpan | undefined
  readonly context?: NonNullable<Tracer.Tracer["context"]>
  readonly #base: Tracer.Tracer
  readonly #isTimed: boolean
  #spans: Array<Tracer.Span> | undefined
  #purgeAt = 16

  /** Spans know when they began if `isTimed`. */
  constructor(base: Tracer.Tracer, isTimed: boolean, parent: Tracer.AnySpan | undefined) {
    this.parent = parent
    this.#base = base
    this.#isTimed = isTimed
    if (base.context !== undefined) this.context = base.context
  }

  span(options: SpanOptions): Tracer.Span {
    const { parent } = this
    const span = this.#base.span(
      parent === undefined || options.root || Option.isSome(options.parent)
        ? options
        : { ...options, parent: Option.some(parent), sampled: options.sampled && parent.sampled }
    )
    this.#spans ??= []
    if (this.#spans.length >= this.#purgeAt) {
      // Rarely, so that a span costs next to nothing however many are open.
      this.#spans = this.#spans.filter(isOpen).slice(-most)
      this.#purgeAt = 2 * this.#spans.length + 16
    }
    this.#spans.push(span)
    return span
  }

  /** The innermost open span and since when it is open; `now` is in nanoseconds since the epoch. */
  doing(now: bigint): string | undefined {
    const span = this.#spans?.findLast(isOpen)
    if (span === undefined) return undefined
    return this.#isTimed
      ? `${span.name}, for ${Duration.format(Duration.nanos(now - span.status.startTime))}`
      : span.name
  }
}
