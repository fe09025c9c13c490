/** Knows what a part is doing, by the spans that are open in it. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"

export interface Tracker {
  readonly tracer: Tracer.Tracer
  /**
   * Spans without a parent become children of this one. It is set while the part starts and not after: the context that
   * a part captures while it is built must not put its whole life into the trace of the start.
   */
  parent: Tracer.Span | undefined
  /** The innermost open span and since when it is open; `now` is in nanoseconds since the epoch. */
  readonly doing: (now: bigint) => string | undefined
}

/** More spans open at once than this, and the oldest are forgotten: only the last one matters. */
const most = 1024

const isOpen = (span: Tracer.Span): boolean => span.status._tag === "Started"

/** Spans know when they began if `isTimed`. */
export const make = (base: Tracer.Tracer, isTimed: boolean): Tracker => {
  let spans: Array<Tracer.Span> = []
  let purgeAt = 16
  const { context } = base
  const tracker: Tracker = {
    parent: undefined,
    tracer: Tracer.make({
      span: (options) => {
        const { parent } = tracker
        const span = base.span(
          parent === undefined || options.root || Option.isSome(options.parent)
            ? options
            : { ...options, parent: Option.some(parent), sampled: options.sampled && parent.sampled }
        )
        if (spans.length >= purgeAt) {
          // Rarely, so that a span costs next to nothing however many are open.
          spans = spans.filter(isOpen).slice(-most)
          purgeAt = 2 * spans.length + 16
        }
        spans.push(span)
        return span
      },
      ...context === undefined ? {} : { context: (primitive, fiber) => context(primitive, fiber) }
    }),
    doing: (now) => {
      const span = spans.findLast(isOpen)
      if (span === undefined) return undefined
      return isTimed ? `${span.name}, for ${Duration.format(Duration.nanos(now - span.status.startTime))}` : span.name
    }
  }
  return tracker
}
