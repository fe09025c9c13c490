/**
 * Programs that are kept open between commands: a fork of ours takes milliseconds, and nft(8) waits for the kernel at its end. What
 * has to be told does not change by it: one command is one transaction, an interruption or a deadline kills the program and waits
 * until it is gone, and whatever cannot be done this way has a process of its own.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as ExitStatus from "../../lifecycle/ExitStatus.ts"
import type { Child, OutputSource } from "../../process/ProcessHost.ts"
import * as HostError from "../HostError.ts"
import * as CommandRunner from "./commandRunner.ts"
import { type Kind, kinds } from "./keptKinds.ts"

/** A file for what is longer than a line, which nobody finds by a name. */
export interface Script {
  readonly path: string
  /** Replaces what is in it. Was there room? */
  readonly write: (text: string) => boolean
}

/** A program that does not answer by then is not kept. */
const startingTime = "2 seconds"

/** How long a command waits for those before it: then it has a process of its own, so that one that hangs holds up no other. */
const patience = Duration.seconds(1)

const toDuration = Duration.fromInputUnsafe

/** What is left of a command's time, at least, for a process of its own. */
const leastTime = Duration.seconds(1)

/** nft remembers all lines, so after so many there is another one. */
export const mostCommands = 4_096

/** How long what was found may come after the last complaint, which is another stream's. */
const lateness = "250 millis"

/** As much of the end as the last complaint takes. */
const longestEnd = 256

interface Session {
  readonly child: Child
  readonly nonce: string
  commands: number
}

interface Heard {
  readonly out: ReturnType<typeof CommandRunner.keeper>
  readonly said: string
  /** Has it answered? Or is it gone, or has it found nothing, which is no answer? */
  readonly isAnswer: boolean
}

const isSilent = (child: Child): boolean => [1, 2].every((fd) => child.output(fd)?.take() === undefined)

/** One of its outputs: what is kept of it, its end, and whether more may come. */
const hear = (source: OutputSource | undefined, limit: number) => {
  const kept = CommandRunner.keeper(limit)
  let end = ""
  return {
    kept,
    end: () => end,
    take: (): ReadonlyArray<OutputSource> => {
      for (;;) {
        const taken = source?.take()
        if (!(taken instanceof Uint8Array)) return source === undefined || taken === "end" ? [] : [source]
        kept.add(taken)
        end = (end + new TextDecoder("latin1").decode(taken.subarray(-longestEnd))).slice(-longestEnd)
      }
    }
  }
}

/** What it says, until it has answered the last line, or is gone. What it finds is a line. */
const listen = (kind: Kind, child: Child, mark: string, finds: boolean) => {
  const out = hear(child.output(1), CommandRunner.LARGEST_OUTPUT)
  const err = hear(child.output(2), CommandRunner.longestComplaint)
  const last = new RegExp(`${mark}[^\\n]*\\n[^\\n]*\\n$`)
  const heard = (isAnswer: boolean): Heard => {
    const text = err.kept.text()
    let at = text.indexOf(mark)
    if (at < 0) return { out: out.kept, said: text, isAnswer }
    for (let line = kind.markedLine; line >= 0; line--) at = text.lastIndexOf("\n", at - 1)
    return { out: out.kept, said: text.slice(0, at + 1), isAnswer }
  }
  const listening = (isLast: boolean): Effect.Effect<Heard> =>
    Effect.suspend(() => {
      const [first, second] = [...out.take(), ...err.take()]
      if (first === undefined) return Effect.succeed(heard(false))
      const ready = Effect.ignore(second === undefined ? first.ready : Effect.raceFirst(first.ready, second.ready))
      if (!last.test(err.end())) return Effect.andThen(ready, listening(false))
      const now = heard(true)
      if (!finds || kind.isFault(now.said) || out.end().endsWith("\n")) return Effect.succeed(now)
      return isLast
        ? Effect.andThen(ready, listening(true))
        : Effect.timeoutOrElse(Effect.andThen(ready, listening(true)), {
          duration: lateness,
          orElse: () => Effect.sync(() => heard(false))
        })
    })
  return listening(false)
}

/** One program, kept until the scope closes; nothing where it cannot be kept. */
const makeOne = Effect.fnUntraced(function*(
  kind: Kind,
  start: CommandRunner.Runner["start"],
  open: Effect.Effect<Script | undefined, never, Scope.Scope>
) {
  // Closed after the last one that reads it: its descriptor is another file's then.
  const files = yield* Scope.make()
  const openScript = yield* Effect.cached(Effect.provideService(open, Scope.Scope, files))
  const turn = Semaphore.makeUnsafe(1)
  let session: Session | undefined
  let isUsable = true

  const drop = Effect.uninterruptible(Effect.suspend(() => {
    const last = session
    session = undefined
    return last === undefined ? Effect.void : CommandRunner.end(last.child)
  }))
  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      isUsable = false
      return Effect.andThen(drop, Scope.close(files, Exit.void))
    })
  )

  const ask = (now: Session, line: string, finds: boolean) =>
    Effect.suspend(() => {
      const mark = `${now.nonce}${now.commands++}`
      const told = CommandRunner.tell(now.child, `${line}\n${mark}\n`, false)
      return Effect.andThen(told, listen(kind, now.child, mark, finds))
    }).pipe(Effect.onInterrupt(() => drop))

  const begin = (what: string, script: Script) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const { args, changes, env, program } = kind
        const number = yield* Random.nextIntBetween(2 ** 40, 2 ** 48)
        const child = yield* start({ program, args, env, what, isTold: true, isKept: true, dieWithParent: changes })
        const fresh = session = { child, nonce: `x${number.toString(16)}n`, commands: 0 }
        const { isUnderstood, line, text } = kind.greeting(script.path)
        const heard = isUsable && script.write(text)
          ? yield* restore(Effect.timeoutOption(ask(fresh, line, true), startingTime)).pipe(
            Effect.onInterrupt(() => drop)
          )
          : Option.none()
        if (Option.exists(heard, ({ isAnswer, out, said }) => isAnswer && isUnderstood(out.text()) && said === "")) {
          return fresh
        }
        isUsable = false
        yield* drop
        return undefined
      })
    )

  const current = Effect.fnUntraced(function*(what: string, script: Script) {
    if (session !== undefined) {
      const { child, commands } = session
      if (commands >= mostCommands || Option.isSome(yield* child.poll) || !isSilent(child)) yield* drop
    }
    return session ?? (yield* begin(what, script))
  })

  /** Nothing when it cannot be done this way. */
  const inTurn = Effect.fnUntraced(function*(command: CommandRunner.Run) {
    const { input, program, what } = command
    if (!isUsable) return undefined
    const script = yield* openScript
    const line = script && kind.lineFor(command, script.path)
    if (script === undefined || line === undefined) return undefined
    const now = yield* current(what, script)
    if (now === undefined || !isUsable || (input !== undefined && !script.write(input))) return undefined
    const { isAnswer, out, said } = yield* ask(now, line, input === undefined)
    const stderr = kind.words(said, script.path)
    const failed = (status: string) =>
      HostError.fail(
        new HostError.CommandFailed({ program, what, status, stderr, ...CommandRunner.lineOf(input, stderr) })
      )
    // Nothing was done, so it can be done again.
    if (isAnswer ? kind.isUnread(said, script.path) : input === undefined) {
      yield* drop
      return undefined
    }
    if (!isAnswer) {
      yield* drop
      return yield* failed(Option.match(yield* now.child.poll, { onNone: () => "ended", onSome: ExitStatus.format }))
    }
    if (kind.isFault(said)) return yield* failed("failed")
    return out.isCut() ? yield* failed(CommandRunner.tooMuch) : out.text()
  })

  const run = (command: CommandRunner.Run) =>
    Effect.suspend(() => {
      const { program, what } = command
      const within = toDuration(command.within)
      const first = Duration.min(within, patience)
      let state: "waits" | "works" | "has gone" = "waits"
      const work = turn.withPermit(Effect.suspend(() => {
        if (state === "has gone") return Effect.undefined
        state = "works"
        return inTurn(command)
      }))
      const watch = Effect.gen(function*() {
        yield* Effect.sleep(first)
        if (state === "waits") {
          state = "has gone"
          return undefined
        }
        yield* Effect.sleep(Duration.subtract(within, first))
        return yield* HostError.fail(new HostError.CommandHung({ program, what, within }))
      })
      return Effect.raceFirst(work, watch)
    })

  return { isFor: (command: CommandRunner.Run) => isUsable && kind.lineFor(command, "") !== undefined, run }
})

/** Runs a command by a program that is kept, or else by a process of its own; always that after the scope has closed. */
export const make = Effect.fnUntraced(function*(
  { run, start }: CommandRunner.Runner,
  open: Effect.Effect<Script | undefined, never, Scope.Scope>
) {
  const kept = yield* Effect.forEach(
    kinds,
    (kind) => Effect.map(makeOne(kind, start, open), (one) => ({ kind, one }))
  )
  return (command: CommandRunner.Run) => {
    const found = kept.find(({ kind, one }) => kind.program === command.program && one.isFor(command))
    return found === undefined ? run(command) : Effect.flatMap(
      Effect.timed(found.one.run(command)),
      ([took, answer]) =>
        answer === undefined
          ? run({ ...command, within: Duration.max(Duration.subtract(toDuration(command.within), took), leastTime) })
          : Effect.succeed(answer)
    )
  }
})
