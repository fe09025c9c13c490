import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import type * as CommandRunner from "../../src/host/internal/commandRunner.ts"
import { longestText } from "../../src/host/internal/keptKinds.ts"
import * as KeptProgram from "../../src/host/internal/keptProgram.ts"
import * as NodeScript from "../../src/host/internal/NodeScript.ts"
import { NodeProcessHost } from "../../src/process/index.ts"
import { otherSleep } from "../otherSleep.ts"
import { isAlive, runWith } from "./fakePrograms.ts"

/**
 * As much of an interactive nft as is spoken to: what it does with a text is `$1`, with a list `$2`. Run for one command alone it
 * says so.
 */
const nft = (text: string, list = `echo '{"nftables": []}'`): string => `
case "$*" in *-i) ;; *) echo "alone: $*"; exit ;; esac
echo $$ >> "$0.pids"
while read -r line; do
  case "$line" in
    include*)
      file=\${line#include ?}; file=\${file%?}; text=$(cat "$file")
      test "$text" = "list tables" && { echo '{"nftables": [{"metainfo": {"version": "1.0.6"}}]}'; continue; }
      ${text} ;;
    list*) ${list} ;;
    *) printf 'Error: syntax error, unexpected newline\\n%s\\n   ^\\n' "$line" >&2 ;;
  esac
done`

const change: CommandRunner.Run = {
  program: "nft",
  args: ["-f", "-"],
  input: "add table inet t\n",
  what: "a test",
  within: "10 seconds"
}
const look: CommandRunner.Run = { ...change, args: ["-j", "list tables"], input: undefined }

const kept = (scripts: Readonly<Record<string, string>>) =>
  Effect.gen(function*() {
    const scope = yield* Effect.acquireRelease(Scope.make(), (made) => Scope.close(made, Exit.void))
    const { directory, run: alone, start } = yield* runWith(scripts)
    const run = yield* KeptProgram.make({ run: alone, start }, NodeScript.open).pipe(
      Effect.provideService(Scope.Scope, scope)
    )
    const file = `${directory}/nft.pids`
    const pids = () => NodeFs.existsSync(file) ? NodeFs.readFileSync(file, "utf8").trim().split("\n").map(Number) : []
    const read = (name: string) => NodeFs.readFileSync(`${directory}/nft.${name}`, "utf8")
    return { run, pids, read, close: Scope.close(scope, Exit.void) }
  })

type Made = Effect.Success<ReturnType<typeof kept>>

/** However slow this host is, no command waits too long for an answer, or for those before it. */
const unhurried = ({ run, ...others }: Made): Made => ({
  ...others,
  run: (command) =>
    Effect.flatMap(Clock.Clock, (clock) =>
      Effect.provideService(
        run(command),
        Clock.Clock,
        otherSleep(clock, (duration) => clock.sleep(Duration.times(duration, 100)))
      ))
})

const testWith = (by: (made: Made) => Made) =>
(
  title: string,
  scripts: Readonly<Record<string, string>>,
  body: (made: Made) => Effect.Effect<unknown, unknown>
) =>
  it.live(
    title,
    () =>
      Effect.scoped(Effect.flatMap(kept(scripts), (made) => body(by(made)))).pipe(
        Effect.provide(NodeProcessHost.layer)
      )
  )

const test = testWith(unhurried)
/** What is about its deadlines. */
const testInTime = testWith((made) => made)

const messageOf = (run: Effect.Effect<string, Error>) => Effect.map(Effect.flip(run), ({ message }) => message)

describe("a program that is kept", () => {
  test(
    "does one command after the other, each text as it is",
    { nft: nft(`echo "$text" >> "$0.log"`) },
    ({ pids, read, run }) =>
      Effect.gen(function*() {
        const texts = Array.from(
          { length: 30 },
          (_, index) => `first ${index}\n  second "${"x".repeat(index * 2000)}" \\ $HOME\n`
        )
        yield* Effect.forEach(texts, (input) => run({ ...change, input }), { concurrency: "unbounded" })
        assert.strictEqual(read("log"), texts.join(""))
        assert.strictEqual(yield* run(look), `{"nftables": []}\n`)
        assert.lengthOf(pids(), 1)
        assert.strictEqual(yield* run({ ...look, args: ["-j", "-t", "list sets inet"] }), `{"nftables": []}\n`)
        assert.lengthOf(pids(), 2)
        assert.strictEqual(yield* run({ ...look, args: ["-a", "list", "tables"] }), "alone: -a list tables\n")
        assert.strictEqual(yield* run({ ...change, input: "x".repeat(longestText + 1) }), "alone: -f -\n")
      })
  )

  test(
    "tells what was wrong, and where, as one does that reads its stdin",
    {
      nft: nft(
        `printf 'In file included from <cmdline>:1:1-9:\\n%s:2:5-7: Error: no\\nadd b\\n    ^\\n' "$file" >&2`,
        `printf 'Error: No such file or directory\\n' >&2`
      )
    },
    ({ pids, run }) =>
      Effect.gen(function*() {
        const message = yield* messageOf(run({ ...change, input: "add a\nadd b\n" }))
        assert.strictEqual(message, "a test: nft failed at \"add b\": /dev/stdin:2:5-7: Error: no\nadd b\n    ^")
        assert.strictEqual(yield* messageOf(run(look)), "a test: nft failed: Error: No such file or directory")
        assert.lengthOf(pids(), 1)
      })
  )

  test("may warn", { nft: nft("echo '# Warning: beware' >&2") }, ({ run }) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* run(change), "")
    }))

  test(
    "that dies is told, and followed by another",
    { nft: nft(`echo "$text" >> "$0.log"; test "$text" = die && { echo 'Error: woe' >&2; kill -9 $$; }`) },
    ({ pids, read, run }) =>
      Effect.gen(function*() {
        const message = yield* messageOf(run({ ...change, input: "die" }))
        assert.strictEqual(message, "a test: nft killed by SIGKILL: Error: woe")
        yield* run({ ...change, input: "one" })
        const [, second = 0] = pids()
        process.kill(second, "SIGKILL")
        // Until it is reaped: a program that is dead and not known to be is told what it cannot do any more.
        while (NodeFs.existsSync(`/proc/${second}`)) yield* Effect.sleep("5 millis")
        yield* run({ ...change, input: "two" })
        assert.lengthOf(pids(), 3)
        assert.strictEqual(read("log"), "die\none\ntwo\n")
      })
  )

  testInTime(
    "that hangs is killed when its time is over",
    { nft: nft(`test "$text" = hang && exec sleep 60`) },
    ({ pids, run }) =>
      Effect.gen(function*() {
        for (const within of ["200 millis", "1200 millis"] as const) {
          yield* run(change)
          const message = yield* messageOf(run({ ...change, input: "hang", within }))
          assert.match(message, /^a test: nft did not end within /)
          assert.isFalse(isAlive(pids().at(-1) ?? 0))
        }
      })
  )

  test("is killed by an interruption, which waits until it is gone", {
    nft: nft("echo 1 > \"$0.busy\"; exec sleep 60")
  }, ({ pids, read, run }) =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(run(change))
      yield* Effect.eventually(Effect.andThen(Effect.sleep("5 millis"), Effect.try(() => read("busy"))))
      const waits = yield* Effect.forkChild(run(look))
      assert.isTrue(isAlive(pids()[0] ?? 0))
      yield* Fiber.interrupt(fiber)
      assert.isFalse(isAlive(pids()[0] ?? 0))
      assert.strictEqual(yield* Fiber.join(waits), `{"nftables": []}\n`)
      assert.lengthOf(pids(), 2)
    }))

  testInTime(
    "that hangs holds up nobody else for long",
    { nft: nft(`test "$text" = hang && exec sleep 60`) },
    ({ run }) =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.flip(run({ ...change, input: "hang", within: "5 seconds" })))
        yield* Effect.sleep("50 millis")
        const answers = yield* Effect.all([run(change), run(look)], { concurrency: "unbounded" })
        assert.deepStrictEqual(answers, ["alone: -f -\n", "alone: -j list tables\n"])
        yield* Fiber.interrupt(fiber)
      })
  )

  test("is not taken at its word when it says something that nobody asked for", {
    nft: nft(`(sleep 0.1; echo 'Error: late' >&2; touch "$0.late") &`)
  }, ({ pids, read, run }) =>
    Effect.gen(function*() {
      yield* run(change)
      yield* Effect.eventually(Effect.andThen(Effect.sleep("20 millis"), Effect.try(() => read("late"))))
      yield* Effect.sleep("20 millis")
      assert.strictEqual(yield* run(look), `{"nftables": []}\n`)
      assert.lengthOf(pids(), 2)
    }))

  test(
    "may not say more than can be meant",
    { nft: nft(":", "head -c 67108865 /dev/zero; echo") },
    ({ run }) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* messageOf(run(look)), "a test: nft wrote more than 67108864 bytes")
      })
  )

  test(
    "goes with the scope, after which each command has a process of its own",
    { nft: nft(":") },
    ({ close, pids, run }) =>
      Effect.gen(function*() {
        yield* run(change)
        yield* run({ ...look, args: ["-j", "-t", "list sets inet"] })
        yield* close
        assert.deepStrictEqual(pids().map(isAlive), [false, false])
        assert.strictEqual(yield* run(change), "alone: -f -\n")
        assert.lengthOf(pids(), 2)
      })
  )

  test("hears nothing of a SIGTERM to all of a service", { nft: nft(":") }, ({ pids, run }) =>
    Effect.gen(function*() {
      yield* run(change)
      process.kill(pids()[0] ?? 0, "SIGTERM")
      assert.strictEqual(yield* run(change), "")
      assert.lengthOf(pids(), 1)
    }))

  testInTime(
    "is followed by one for this command alone when it finds nothing",
    { nft: nft(":", ":") },
    ({ run }) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* run(look), "alone: -j list tables\n")
        assert.strictEqual(yield* run(change), "")
      })
  )

  test("is none that is too old to tell all its failures", {
    nft: nft(":").replace("1.0.6", "1.0.5")
  }, ({ pids, run }) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* run(change), "alone: -f -\n")
      assert.lengthOf(pids(), 1)
    }))

  it.live("is told nothing more once its file is closed", () =>
    Effect.gen(function*() {
      const { directory, run: alone, start } = yield* runWith({ nft: nft(":") })
      let isClosed = false
      const late: Array<string> = []
      const path = `${directory}/script`
      const write = (text: string) => {
        if (isClosed) late.push(text)
        NodeFs.writeFileSync(path, text)
        return true
      }
      const open = Effect.acquireRelease(
        Effect.succeed({ path, write }),
        () => {
          isClosed = true
          return Effect.sleep("100 millis")
        }
      )
      const scope = yield* Scope.make()
      const run = yield* Effect.provideService(KeptProgram.make({ run: alone, start }, open), Scope.Scope, scope)
      yield* run(change)
      const busy = Effect.exit(Effect.andThen(Effect.sleep("5 millis"), run(change)))
      yield* Effect.all([Scope.close(scope, Exit.void), ...Array.from({ length: 30 }, () => busy)], {
        concurrency: "unbounded"
      })
      assert.isTrue(isClosed)
      assert.deepStrictEqual(late, [])
    }).pipe(Effect.scoped, Effect.provide(NodeProcessHost.layer)))

  for (
    const [what, script] of [
      ["has no interactive mode", "exit 1"],
      [
        "repeats what it is told",
        `while read -r line; do echo "> $line"; printf 'Error\\n%s\\n ^\\n' "$line" >&2; done`
      ],
      ["cannot read our file", `while read -r line; do printf 'Error\\n%s\\n ^\\n' "$line" >&2; done`],
      ["does not answer", "exec sleep 60"]
    ] as const
  ) {
    const one = `case "$*" in *-i) echo $$ >> "$0.pids"; ${script} ;; *) echo "alone: $*" ;; esac`
    testInTime(`is none that ${what}`, { nft: one }, ({ pids, run }) =>
      Effect.gen(function*() {
        assert.strictEqual(yield* run(change), "alone: -f -\n")
        assert.strictEqual(yield* run(change), "alone: -f -\n")
        assert.lengthOf(pids(), 1)
        assert.isFalse(isAlive(pids()[0] ?? 0))
      }))
  }

  test("is another one after many commands", { nft: nft(":") }, ({ pids, run }) =>
    Effect.gen(function*() {
      for (let command = 0; command < KeptProgram.mostCommands; command++) yield* run({ ...look, within: "1 minute" })
      assert.lengthOf(pids(), 2)
      assert.deepStrictEqual(pids().map(isAlive), [false, true])
    }))

  test("looks for links", {
    ip: `case "$*" in *-batch*) ;; *) echo "alone: $*"; exit ;; esac
while read -r line; do
  case "$line" in
    "link show") echo '[{"ifname":"lo"}]'; test -e "$0.bad" && { echo 'Dump terminated'; echo 'Command failed -:1'; } >&2; touch "$0.bad" ;;
    *) echo "Object \\"$line\\" is unknown, try \\"ip help\\"." >&2; echo 'Command failed -:2' >&2 ;;
  esac
done`
  }, ({ run }) =>
    Effect.gen(function*() {
      const ip: CommandRunner.Run = { ...look, program: "ip", args: ["-j", "link", "show"] }
      const message = yield* messageOf(run(ip))
      assert.strictEqual(message, "a test: ip failed: Dump terminated")
      assert.strictEqual(yield* run({ ...ip, args: [...ip.args, "dev", "lo"] }), "alone: -j link show dev lo\n")
    }))
})
