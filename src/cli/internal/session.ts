/**
 * A request under way, between whoever asks and the run, over any pair of ends that carry frames.
 *
 * Several streams share the pair, so each has a window of its own: bytes that may be under way before their reader has taken
 * any. So a stream that nobody reads holds up neither the other streams nor the signals, and both sides always read: the
 * end of the other is seen at once, and all that is kept of him is bounded.
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import type { Signal } from "../../lifecycle/Signal.ts"
import * as ControlRequest from "../ControlRequest.ts"
import { type Frame, maxPayload, type StreamNumber } from "./frames.ts"

/** Bytes of a stream that may be under way. */
export const window = 256 * 1024
/** What has been taken is told in lots of at least this: a fourth, so that the other side need not wait for it. */
const lot = window / 4
const maxSignals = 16
/** Who is busy says so once a second. */
const beat = Duration.seconds(1)
const maxSilence = 10
export const answerWithin = Duration.seconds(10)

/** The other side has hung up, or does not keep to what is agreed. */
export class Broken extends Data.TaggedError("Broken")<{}> {}

/** One end. */
export interface Wire {
  /** Does not wait. What the other side has hung up on goes nowhere. */
  readonly send: (frame: Frame) => Effect.Effect<void>
  /** One reader at a time. Interrupting it loses nothing. */
  readonly receive: Effect.Effect<Frame, Broken>
}

const Message = Schema.fromJsonString(Schema.Union([Schema.TaggedStruct("Working", {}), ControlRequest.Answer]))

const say = (wire: Wire, message: typeof Message.Type): Effect.Effect<void> =>
  Effect.flatMap(Effect.orDie(Schema.encodeEffect(Message)(message)), (text) => wire.send({ _tag: "Message", text }))

/** A stream that comes. */
const makeInlet = (wire: Wire, stream: StreamNumber) =>
  Effect.map(Queue.unbounded<Uint8Array, Cause.Done>(), (queue) => {
    let room = window
    let owed = 0
    const taken = (bytes: Uint8Array) =>
      Effect.suspend(() => {
        owed += bytes.length
        if (owed < lot) return Effect.void
        const credit = owed
        owed = 0
        room += credit
        return wire.send({ _tag: "Credit", stream, bytes: credit })
      })
    return {
      stream: Stream.tap(Stream.fromQueue(queue), taken),
      /** Fails when there is no room, which the other side knows. */
      push: (bytes: Uint8Array): Effect.Effect<void, Broken> =>
        Effect.suspend(() => {
          if (bytes.length > room) return Effect.fail(new Broken())
          room -= bytes.length
          if (bytes.length > 0) Queue.offerUnsafe(queue, bytes)
          return Effect.void
        }),
      end: Queue.end(queue)
    }
  })

/** A stream that goes. */
const makeOutlet = (wire: Wire, stream: StreamNumber) => {
  const open = Latch.makeUnsafe(true)
  let room = window
  const write = Effect.fnUntraced(function*(chunk: Uint8Array) {
    for (let at = 0; at < chunk.length;) {
      yield* open.await
      const bytes = chunk.subarray(at, at + Math.min(room, maxPayload))
      room -= bytes.length
      at += bytes.length
      if (room === 0) yield* open.close
      yield* wire.send({ _tag: "Bytes", stream, bytes })
    }
  })
  return {
    sink: Sink.forEach(write),
    credit: (bytes: number): Effect.Effect<void> =>
      Effect.suspend(() => {
        room = Math.min(window, room + bytes)
        return room === 0 ? Effect.void : Effect.asVoid(open.open)
      })
  }
}

/** The run's side of a request. Only of a command is the visitor's end the end. */
export const serve = Effect.fnUntraced(
  function*(wire: Wire, request: ControlRequest.Request, handle: ControlRequest.Handler) {
    const stdin = yield* makeInlet(wire, 0)
    const [stdout, stderr] = [makeOutlet(wire, 1), makeOutlet(wire, 2)]
    const signals = yield* Queue.sliding<Signal>(maxSignals)
    if (request._tag !== "Exec") yield* stdin.end

    const take = (frame: Frame): Effect.Effect<unknown, Broken> => {
      switch (frame._tag) {
        case "Bytes":
          return frame.stream === 0 ? stdin.push(frame.bytes) : Effect.fail(new Broken())
        case "Credit":
          return frame.stream === 0
            ? Effect.fail(new Broken())
            : (frame.stream === 1 ? stdout : stderr).credit(frame.bytes)
        case "EndOfInput":
          return stdin.end
        case "Signal":
          return Queue.offer(signals, frame.signal)
        case "Message":
          return Effect.fail(new Broken())
      }
    }
    const listening = Effect.forever(Effect.flatMap(wire.receive, take))
    const working = Effect.forever(Effect.andThen(Effect.sleep(beat), say(wire, { _tag: "Working" })))
    yield* Effect.flatMap(
      handle(request, {
        stdin: stdin.stream,
        stdout: stdout.sink,
        stderr: stderr.sink,
        signals: Stream.fromQueue(signals)
      }),
      (answer) => say(wire, answer)
    ).pipe(
      Effect.raceFirst(working),
      Effect.raceFirst(
        request._tag === "Exec" ? listening : Effect.catch(listening, () => Effect.never)
      )
    )
  }
)

/** What has no streams. */
const none: ControlRequest.Streams = {
  stdin: Stream.empty,
  stdout: Sink.drain,
  stderr: Sink.drain,
  signals: Stream.empty
}

/** What the visitor is told of a run that breaks off, and of one that says nothing more. */
export interface Faults<F> {
  readonly broken: F
  readonly silent: F
}

/** The visitor's side of a request that has been made. */
export const visit = <F, E = never, R = never>(
  wire: Wire,
  faults: Faults<F>,
  streams?: ControlRequest.Streams<E, R>
): Effect.Effect<ControlRequest.Answer, F | E, R> =>
  streams === undefined ? connect(wire, faults, none) : connect(wire, faults, streams)

const connect = Effect.fnUntraced(function*<F, E, R>(
  wire: Wire,
  faults: Faults<F>,
  streams: ControlRequest.Streams<E, R>
) {
  const stdin = makeOutlet(wire, 0)
  const [stdout, stderr] = [yield* makeInlet(wire, 1), yield* makeInlet(wire, 2)]

  const take = (frame: Frame): Effect.Effect<ControlRequest.Answer | undefined, Broken> => {
    switch (frame._tag) {
      case "Bytes":
        return frame.stream === 0
          ? Effect.fail(new Broken())
          : Effect.as((frame.stream === 1 ? stdout : stderr).push(frame.bytes), undefined)
      case "Credit":
        return frame.stream === 0
          ? Effect.as(stdin.credit(frame.bytes), undefined)
          : Effect.fail(new Broken())
      case "Message":
        return Effect.matchEffect(Schema.decodeEffect(Message)(frame.text), {
          onFailure: () => Effect.fail(new Broken()),
          onSuccess: (message) => Effect.succeed(message._tag === "Working" ? undefined : message)
        })
      case "EndOfInput":
      case "Signal":
        return Effect.fail(new Broken())
    }
  }
  let silence = 0
  const answer = Effect.gen(function*() {
    while (true) {
      const heard = yield* Effect.flatMap(wire.receive, take)
      silence = 0
      if (heard === undefined) continue
      // What has come before is read to its end.
      yield* Effect.andThen(stdout.end, stderr.end)
      return heard
    }
  }).pipe(Effect.mapError(() => faults.broken))
  /** Counted in beats: time in which we stand still ourselves is no silence of the other. */
  const silent = Effect.gen(function*() {
    while (silence++ < maxSilence) yield* Effect.sleep(beat)
    return yield* Effect.fail(faults.silent)
  })
  const output = Effect.map(
    Effect.all([
      Effect.raceFirst(answer, silent),
      Stream.run(stdout.stream, streams.stdout),
      Stream.run(stderr.stream, streams.stderr)
    ], { concurrency: "unbounded" }),
    ([heard]) => heard
  )
  const input = Stream.run(streams.stdin, stdin.sink).pipe(
    Effect.andThen(wire.send({ _tag: "EndOfInput" })),
    Effect.andThen(Effect.never)
  )
  const signals = Stream.runForEach(streams.signals, (signal) => wire.send({ _tag: "Signal", signal })).pipe(
    Effect.andThen(Effect.never)
  )
  return yield* output.pipe(Effect.raceFirst(input), Effect.raceFirst(signals))
})

/** Two ends in memory. Once hung up, what was sent is still received, and then nothing more. */
export const memoryWires = (): {
  readonly run: Wire
  readonly visitor: Wire
  readonly hangUp: Effect.Effect<void>
} => {
  const make = (): { send: Wire["send"]; receive: Wire["receive"]; end: () => void } => {
    const frames: Array<Frame> = []
    const some = Latch.makeUnsafe(false)
    let ended = false
    return {
      send: (frame) =>
        Effect.suspend(() => {
          if (ended) return Effect.void
          frames.push(frame)
          return Effect.asVoid(some.open)
        }),
      receive: Effect.gen(function*() {
        while (true) {
          const frame = frames.shift()
          if (frame !== undefined) return frame
          if (ended) return yield* new Broken()
          some.closeUnsafe()
          yield* some.await
        }
      }),
      end: () => {
        ended = true
        some.openUnsafe()
      }
    }
  }
  const [toRun, toVisitor] = [make(), make()]
  return {
    run: { send: toVisitor.send, receive: toRun.receive },
    visitor: { send: toRun.send, receive: toVisitor.receive },
    hangUp: Effect.sync(() => {
      toRun.end()
      toVisitor.end()
    })
  }
}
