import * as Duration from "effect/Duration"

/** A time that was measured, or drawn by lot: nobody wants to read its nanoseconds. */
export const toTheMilli = (duration: Duration.Duration): string =>
  Duration.format(Duration.millis(Math.round(Duration.toMillis(duration))))
