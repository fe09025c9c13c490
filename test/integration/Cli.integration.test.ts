/**
 * The executable, real machines, and what is left of both.
 */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as NodeChildProcess from "node:child_process"
import * as NodeCrypto from "node:crypto"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { Readable } from "node:stream"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import {
  bin,
  descendants,
  type Ended,
  Executable,
  microvm,
  type Options,
  residentMiB,
  sleep,
  until
} from "../cli/executable.ts"

const isThere = (program: string): boolean => NodeChildProcess.spawnSync(program, ["--version"]).status === 0
const qemu = process.env["MICROVM_QEMU_BIN"] ?? `qemu-system-${process.arch === "arm64" ? "aarch64" : "x86_64"}`
const missing = [qemu, "script"].filter((program) => !isThere(program))
if (missing.length > 0) console.warn(`SKIPPED tests of the executable: not found: ${missing.join(", ")}`)
const lacks = (...programs: ReadonlyArray<string>): boolean => programs.some((program) => missing.includes(program))

/** Runs to the end, after which nothing may be left. */
const run = async (
  args: ReadonlyArray<string>,
  options: Options = {},
  act: (run: Executable) => Promise<void> = async () => {}
): Promise<Ended & Pick<Executable, "stderr" | "stdout">> => {
  await using running = new Executable(args, options)
  await act(running)
  const ended = await running.end()
  await until(`nothing left of ${args.join(" ")}`, () => running.traces().length === 0)
  return { ...ended, stdout: running.stdout, stderr: running.stderr }
}

const decodeReport = Schema.decodeUnknownSync(Schema.fromJsonString(RunReport))
const longer = 300_000

describe.skipIf(lacks(qemu))("microvm run", () => {
  beforeAll(() => {
    const built = microvm("image", "build")
    assert.strictEqual(built.status, 0, built.stderr)
  }, 900_000)

  it("exits with the command's code, and leaves nothing", async () => {
    const { code, stderr, stdout } = await run(["--", "sh", "-c", "exit 7"])
    assert.deepStrictEqual({ code, stdout }, { code: 7, stdout: "" })
    assert.match(stderr, /^microvm: backend qemu: QEMU [\d.]+ with (KVM|TCG), since /)
  })

  it("gives what the command reads and writes, and its arguments and variables as they are", async () => {
    const script = `cat; printf '%s|' "$@" "$A"; echo oops >&2`
    const { code, stderr, stdout } = await run(["--env", "A=x y", "--", "sh", "-c", script, "-", "a b", "", "*"], {
      stdin: "first\nlast without an end"
    })
    assert.deepStrictEqual({ code, stdout }, { code: 0, stdout: "first\nlast without an enda b||*|x y|" })
    assert.match(stderr, /^oops$/m)
  })

  const ends: ReadonlyArray<readonly [what: string, args: ReadonlyArray<string>, code: number, told: RegExp]> = [
    [
      "that takes too long",
      ["--timeout", "3s", "--", "sleep", "60"],
      124,
      /^microvm: the command did not end within 3s$/m
    ],
    ["that is not there", ["--", "nonesuch"], 127, /nonesuch: not found/],
    ["that may not be executed", ["--", "/proc/version"], 126, /\/proc\/version: not executable/],
    ["that kills itself", ["--", "sh", "-c", "kill -9 $$"], 137, /^microvm: the command was killed by SIGKILL$/m],
    [
      "that panics the guest",
      ["--", "sh", "-c", "echo c >/proc/sysrq-trigger"],
      125,
      /^microvm: the machine ended before the command: the guest's kernel panicked\n--- the end of its console ---\n(.*\n)*.*Kernel panic - not syncing: sysrq triggered crash\n/m
    ],
    [
      "that powers the guest off, after it has steered its console",
      [
        "--",
        "sh",
        "-c",
        "printf '\\033[2J\\302\\2332J\\342\\200\\256\\377\\b---\\nmicrovm: fake\\n' >/dev/console; sleep 1; poweroff -f"
      ],
      125,
      /^((?!(?!\n)\p{Cc})[^])*\n {2}.*\\u\{1b\}\[2J\\u\{9b\}2J\\u\{202e\}\uFFFD\\u\{8\}---\n {2}microvm: fake\n((?!(?!\n)\p{Cc})[^])*$/u
    ],
    ["that powers the guest off", ["--", "sh", "-c", "poweroff -f"], 125, /before the command: the guest powered off$/m]
  ]
  it.each(ends)("a command %s", async (_, args, code, told) => {
    const ended = await run(args)
    assert.strictEqual(ended.code, code)
    assert.match(ended.stderr, told)
    assert.strictEqual(ended.stdout, "")
  })

  it("prints its report", async () => {
    const { code, stderr, stdout } = await run(["--cold", "--json", "--", "sh", "-c", "echo hello; exit 3"])
    const report = decodeReport(stdout)
    assert.deepInclude(report, { backend: "qemu", exitCode: 3 })
    assert.strictEqual(code, 3)
    assert.deepStrictEqual(report.phases.map(({ name }) => name), ["image", "launch", "boot", "command", "stop"])
    assert.strictEqual(
      report.shutdown?._tag === "Graceful" ? report.shutdown.stage : report.shutdown?._tag,
      "guest power-off"
    )
    assert.match(stderr, /^hello$/m)
  })

  it("passes 200 MB on whole, and stays small", async () => {
    const megabytes = 200
    const hash = NodeCrypto.createHash("sha256")
    const block = NodeCrypto.randomBytes(1_000_000)
    const input = function*() {
      for (let index = 0; index < megabytes; index++) {
        // No two are alike, so that what is lost, doubled or exchanged shows.
        block.writeUInt32LE(index, 0)
        hash.update(block)
        yield Buffer.from(block)
      }
    }
    await using running = new Executable(["--", "cat"], { stdin: Readable.from(input()) })
    await until("the first bytes", () => running.stdoutBytes > 1_000_000, 120_000)
    const samples: Array<number> = []
    const sampling = setInterval(() => samples.push(residentMiB(running.pid)), 100)
    const ended = await running.end()
    clearInterval(sampling)
    assert.strictEqual(ended.code, 0, running.stderr)
    assert.strictEqual(running.stdoutBytes, megabytes * 1_000_000)
    assert.strictEqual(running.digest(), hash.digest("hex"))
    const seen = samples.filter((sample) => sample > 0)
    const [least, most] = [Math.min(...seen), Math.max(...seen)]
    console.log(`resident memory during 200 MB: ${least.toFixed(0)} to ${most.toFixed(0)} MiB`)
    assert.isAbove(seen.length, 5)
    // Were it buffered, it would be 200 more at the least; what the collector has not come to is 110 at the most, however much passes.
    assert.isBelow(most - least, 150)
    await until("nothing left", () => running.traces().length === 0)
  }, longer)

  it("ends when nobody reads its stdout any longer", async () => {
    const { code, stderr } = await run(["--", "yes"], {}, async ({ child }) => {
      const { stdout } = child
      if (stdout === null) throw new Error("no stdout")
      await once(stdout, "data")
      stdout.destroy()
    })
    assert.strictEqual(code, 141)
    assert.notMatch(stderr, /error|EPIPE/i)
  })

  /** Writes more than a pipe holds, and less than what Node would wait for: all is done but for the reader. */
  const unread = async (act: (running: Executable) => Promise<unknown>) => {
    const directory = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-cli-test-"))
    const fifo = NodePath.join(directory, "stdout")
    NodeChildProcess.execFileSync("mkfifo", [fifo])
    const reader = NodeFs.openSync(fifo, NodeFs.constants.O_RDONLY | NodeFs.constants.O_NONBLOCK)
    const stdout = NodeFs.openSync(fifo, NodeFs.constants.O_WRONLY)
    try {
      // In two pieces: Node waits for the reader of one that is longer than 16 KiB, unless the pipe takes all of it.
      const script = "head -c 60000 /dev/zero; sleep 1; head -c 15000 /dev/zero"
      await using running = new Executable(["--", "sh", "-c", script], { stdout })
      NodeFs.closeSync(stdout)
      await until("a machine", () => running.hasMachine())
      await until("the machine's end", () => !running.hasMachine())
      await sleep(1500)
      await act(running)
      let bytes = 0
      await until("the end of its output", () => {
        try {
          const read = NodeFs.readSync(reader, new Uint8Array(65_536))
          bytes += read
          return read === 0
        } catch {
          // There is nothing just now (EAGAIN).
          return false
        }
      })
      return { code: (await running.end()).code, bytes }
    } finally {
      NodeFs.closeSync(reader)
      NodeFs.rmSync(directory, { recursive: true })
    }
  }

  it("waits for whoever reads its output", async () => {
    assert.deepStrictEqual(await unread(async () => {}), { code: 0, bytes: 75_000 })
  })

  it("does not hide by its code that output was lost at a signal", async () => {
    const { bytes, code } = await unread((running) => {
      running.kill("SIGTERM")
      return running.ended
    })
    assert.strictEqual(code, 143)
    assert.isBelow(bytes, 75_000)
  })

  it("says when its stdout cannot be written", async () => {
    const words = [process.execPath, bin, "run", "--", "echo", "x"]
    const full = NodeChildProcess.spawnSync("sh", ["-c", `exec "$@" >/dev/full`, "sh", ...words])
    assert.strictEqual(full.status, 125)
    assert.match(String(full.stderr), /^microvm: stdout could not be written: ENOSPC$/m)
  })

  for (const stream of ["stdout", "stderr"] as const) {
    it(`ends at a signal, though nobody reads the ${stream} that is full`, async () => {
      const script = stream === "stdout" ? "echo up >&2; yes" : "echo up; yes >&2"
      const read = stream === "stdout" ? ["stderr" as const] : ["stdout" as const]
      const { code } = await run(["--", "sh", "-c", script], { read, stdin: null }, async (running) => {
        await running.says("up")
        // A pipe is full in no time.
        await sleep(500)
        running.kill("SIGTERM")
      })
      assert.strictEqual(code, 143)
    })
  }
})

describe.skipIf(lacks(qemu))("a signal", () => {
  const waiting = ["--", "sh", "-c", "echo up; exec sleep 1000"]
  /** The guest's agent does not answer any longer. */
  const stuck = "kill -STOP $(pidof qemu-ga microvm-resident); echo up; exec sleep 1000"

  for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130], ["SIGHUP", 129]] as const) {
    it(`${signal} ends the run in order`, async () => {
      const ended = await run(["--json", ...waiting], { stdin: null }, async (running) => {
        await running.says("up")
        running.kill(signal)
      })
      assert.strictEqual(ended.code, code)
      const { end, shutdown } = decodeReport(ended.stdout)
      assert.deepStrictEqual(end, { _tag: "Interrupted", signal })
      assert.deepStrictEqual(shutdown?.stages.map((stage) => `${stage.name} ${stage.end}`), ["guest power-off ended"])
    })
  }

  it("SIGINT that comes twice goes to the next stage at once", async () => {
    const ended = await run(["--json", "--grace", "10m", "--", "sh", "-c", stuck], {}, async (running) => {
      await running.says("up")
      running.kill("SIGINT")
      await sleep(500)
      running.kill("SIGINT")
    })
    assert.strictEqual(ended.code, 130)
    const stages = decodeReport(ended.stdout).shutdown?.stages.map((stage) => `${stage.name} ${stage.end}`)
    assert.deepStrictEqual(stages, ["guest power-off hastened", "power button ended"])
  })

  it("while the guest boots ends it, too", async () => {
    const ended = await run(["--cold", "--json", ...waiting], {}, async (running) => {
      await until("a machine", () => running.hasMachine())
      running.kill("SIGTERM")
    })
    assert.strictEqual(ended.code, 143)
  })

  /** Kills it, and waits until nothing is left. After how many milliseconds nothing but the guard was there, and nothing at all. */
  const kill = async (running: Executable, what: string) => {
    // Stopped first, so that what it has started is known.
    running.kill("SIGSTOP")
    await sleep(5)
    const born = descendants(running.pid)
    const began = performance.now()
    const took = () => Math.round(performance.now() - began)
    running.kill("SIGKILL")
    // Whoever clears up is the last to go.
    const others = born.filter(({ line }) => !line.includes("microvm-guard"))
    await until(`${what}: nothing left but the guard`, () => running.traces(others).length === 0)
    const gone = took()
    await until(`${what}: nothing left`, () => running.traces(born).length === 0)
    assert.deepStrictEqual(running.records(), [], what)
    return { gone, log: `${born.length} processes, gone after ${gone} ms, the last one after ${took()} ms` }
  }

  it("SIGKILL at any moment leaves nothing: no process, no cgroup, no socket, no file", async () => {
    const seed = Math.floor(Math.random() * 2 ** 32)
    const began = Date.now()
    await run(waiting, {}, async (running) => {
      await running.says("up")
      running.kill("SIGKILL")
    })
    const span = Math.round((Date.now() - began) * 1.2)
    // One in each part of it.
    const moments = Effect.runSync(
      Effect.replicateEffect(Random.next, 10).pipe(Random.withSeed(`${seed}`))
    ).map((random, part) => Math.floor((part + random) * span / 10))
    const log: Array<string> = []
    const gone: Array<number> = []
    for (const moment of moments) {
      await using running = new Executable(waiting)
      await sleep(moment)
      const ended = await kill(running, `seed ${seed}, after ${moment} ms; before it ${log.join("; ")}`)
      log.push(`${moment}: ${ended.log}`)
      gone.push(ended.gone)
    }
    // Within a second, but for those that other work on this host has held up.
    assert.isAtMost(gone.toSorted((a, b) => a - b)[Math.floor(gone.length / 2)] ?? 0, 1000, log.join("\n"))
    assert.lengthOf(log, 10)
    console.log(`SIGKILL after so many ms (seed ${seed}):\n${log.join("\n")}`)
  }, longer)

  it("SIGKILL while the machine is stopped leaves nothing", async () => {
    await using running = new Executable(["--grace", "10m", "--", "sh", "-c", stuck])
    await running.says("up")
    running.kill("SIGINT")
    await sleep(300)
    const { log } = await kill(running, "while it stops")
    assert.match(log, /^[1-9]/)
  })
})

describe.skipIf(lacks(qemu, "script"))("on a terminal", () => {
  const escape = "\u001B"
  const clear = `\r${escape}[2K`
  const live = new RegExp(`\\r${escape}\\[2K${escape}\\[\\?7l. [a-z ]+ \\d+\\.\\d s${escape}\\[\\?7h`, "gu")

  it("shows what goes on in a line of its own, and clears it", async () => {
    const { code, stdout } = await run(["--cold", "--", "printf", "hello"], { stdin: null, terminal: true })
    assert.strictEqual(code, 0)
    assert.match(stdout, live)
    const shown = stdout.replaceAll(live, "[live]").replaceAll(clear, "[clear]")
    assert.match(shown, /^\[clear\]microvm: backend qemu: [^\r\n]*\r\n(\[live\]|\[clear\])+\[clear\]hello/)
    // The line that the command has left unfinished is what a shell's prompt comes after.
    assert.match(shown, /hello(\r\n(\[live\])+\[clear\])?$/)
  })

  it("Ctrl-C ends the run in order", async () => {
    const { code, stdout } = await run(["--", "sh", "-c", "printf up; exec sleep 1000"], {
      stdin: null,
      terminal: true
    }, async (running) => {
      await running.says("up")
      running.child.stdin?.write("\u0003")
    })
    assert.strictEqual(code, 130)
    assert.match(stdout, /up\^C\r\nmicrovm: ended by SIGINT\r\n$/)
  })

  it("is left to whoever is in its foreground", async () => {
    const job = `set -m; "$@" & read typed; echo "shell $typed"; read typed; fg > /dev/null; echo "code $?"`
    const guest = `i=0; while :; do echo "tick $((i += 1))"; sleep 0.1; done & read typed; echo "guest $typed"; exit 7`
    const { stdout } = await run(["--", "sh", "-c", guest], {
      stdin: null,
      terminal: true,
      within: ["bash", "-c", job, "-"]
    }, async (running) => {
      const type = (line: string) => running.child.stdin?.write(`${line}\n`)
      await running.says("tick 1")
      type("one")
      await running.says("shell one")
      // Whoever had read from the terminal would stand still by now.
      const ticks = running.stdout.split("tick").length
      await running.says(`tick ${ticks + 5}`)
      type("fg")
      type("two")
    })
    assert.match(stdout, /guest two\r\n[^]*code 7\r\n$/)
  }, 180_000)

  it("that is closed ends the run", async () => {
    await using running = new Executable(["--", "sh", "-c", "echo up; exec sleep 1000"], {
      stdin: null,
      terminal: true
    })
    await running.says("up")
    const born = descendants(running.pid)
    assert.isAbove(born.length, 2)
    running.kill("SIGKILL")
    await until("nothing left", () => running.traces(born).length === 0)
  })
})
