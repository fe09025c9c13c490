/** What a supervisor that is to be killed is told, a line each, and what it answers. */
import * as Schema from "effect/Schema"

/**
 * - `at`: which command of `ip`, `nft` and the others, from 0 on.
 */
const Mishap = Schema.Struct({
  at: Schema.Int,
  how: Schema.Literals(["fails before", "fails after", "hangs before", "hangs after"])
})

export type Mishap = typeof Mishap.Type

const conditions = {
  backend: Schema.Literals(["script", "memory", "firecracker", "qemu"]),
  /** The state directory. */
  state: Schema.String,
  /** It kills itself before this step, from 0 on. */
  dieAt: Schema.optionalKey(Schema.Int),
  mishap: Schema.optionalKey(Mishap),
  /** Its clock jumps by years, there and back. */
  jumps: Schema.optionalKey(Schema.Boolean)
}

/**
 * - `agent killed`: by SIGKILL. The guest's init starts it again.
 * - `agent gone`: the same, and it cannot be started again.
 * - `monitor stopped`: by SIGSTOP.
 */
const Harm = Schema.Literals(["agent killed", "agent gone", "monitor stopped"])

const Launch = Schema.Struct({
  ...conditions,
  do: Schema.Literal("launch"),
  ids: Schema.Array(Schema.String),
  keep: Schema.Boolean,
  /** Is each in a network namespace of its own? Default false. */
  apart: Schema.optionalKey(Schema.Boolean),
  /** What is done to them once they are up; for machines with a guest. */
  harm: Schema.optionalKey(Harm),
  /** After how many answers that do not come a watchdog ends one. Default 3. */
  failures: Schema.optionalKey(Schema.Int),
  /** `kill` ends them at once, `leave` ends in order, `wait` does so when it is told `go`, and `watch` once a watchdog has. */
  last: Schema.Literals(["kill", "leave", "wait", "watch"])
})

export type Launch = typeof Launch.Type

export type Harm = typeof Harm.Type

const Recover = Schema.Struct({
  ...conditions,
  do: Schema.Literal("recover"),
  mode: Schema.Literals(["adopt", "kill"]),
  /** Those that are adopted are asked for an answer, and then to end with code 7. */
  use: Schema.Boolean,
  /** In place of that, they are watched: until they answer, or are ended after so many answers that do not come. */
  watch: Schema.optionalKey(Schema.Int)
})

export type Recover = typeof Recover.Type

/** Makes a machine and ends it, again and again. */
const Rounds = Schema.Struct({
  ...conditions,
  do: Schema.Literal("rounds"),
  rounds: Schema.Int,
  /** With all that there is of the host, or without anything? */
  resources: Schema.Boolean
})

export type Rounds = typeof Rounds.Type

const Order = Schema.Union([Launch, Recover, Rounds])

export type Order = typeof Order.Type

/** What a supervisor has, after so many rounds, and after its garbage was collected. */
const Sample = Schema.Struct({
  round: Schema.Int,
  files: Schema.Int,
  heap: Schema.Int,
  /** Buffers and what native code counts, which are not in the heap (`external` has `arrayBuffers` in it). */
  external: Schema.Int,
  /** All that is resident. */
  rss: Schema.Int,
  /** Timers, pipes, processes and sockets that are open. */
  handles: Schema.Int
})

export type Sample = typeof Sample.Type

/** What became of the machine of a record. */
const Fate = Schema.Struct({
  id: Schema.String,
  action: Schema.String,
  why: Schema.String,
  end: Schema.optionalKey(Schema.String)
})

export type Fate = typeof Fate.Type

/** What a machine said, and how it ended. */
const Used = Schema.Struct({
  id: Schema.String,
  answer: Schema.String,
  /** What did not answer. */
  hung: Schema.optionalKey(Schema.String),
  console: Schema.String,
  end: Schema.String,
  left: Schema.Int
})

export type Used = typeof Used.Type

const common = {
  /** All that was done to the host, in order. */
  steps: Schema.Array(Schema.String),
  /** What could not be released, for people. */
  left: Schema.Array(Schema.String)
}

const Answer = Schema.TaggedUnion({
  Ready: {},
  Up: {},
  Done: {
    ...common,
    commands: Schema.Int,
    fates: Schema.Array(Fate),
    used: Schema.Array(Used),
    samples: Schema.Array(Sample),
    /** How long the recovery took. */
    millis: Schema.Finite,
    /** What is still in the journal. */
    records: Schema.Array(Schema.String)
  },
  Failed: { ...common, why: Schema.String, tag: Schema.String }
})

export type Answer = typeof Answer.Type

export const readOrder = Schema.decodeUnknownSync(Schema.fromJsonString(Order))
export const readAnswer = Schema.decodeUnknownSync(Schema.fromJsonString(Answer))
