/**
 * Machines in the background, by the executable as it is built: what is told of them, what can be asked of them, and their end.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as NodeFs from "node:fs"
import { RunReport } from "../../src/lifecycle/RunReport.ts"
import { descendants, sleep } from "../cli/executable.ts"
import { type Done, install, noRuns, Runs, text } from "./background.ts"

if (noRuns !== undefined) console.warn(`SKIPPED tests of machines in the background: ${noRuns}`)

const decodeReport = Schema.decodeUnknownSync(Schema.fromJsonString(RunReport))
const forever = "while :; do sleep 1; done"

describe.skipIf(noRuns !== undefined)("microvm run --detach", () => {
  let bin = ""
  let remove = () => {}
  beforeAll(() => {
    ;({ bin, remove } = install())
  }, 900_000)
  afterAll(() => remove())

  it("goes on, is followed, and is over with its exit code, its logs and its report", async () => {
    await using runs = new Runs(bin)
    // It ends once it is told to: however long we take on a busy host, it is there.
    const id = await runs.sh(
      "echo told >/dev/console; i=0; while [ $i -lt 10 ]; do echo line $i; echo err >&2; i=$((i+1)); sleep 0.1; done; " +
        "while [ ! -e /run/end ]; do sleep 0.1; done; exit 7"
    )
    assert.deepInclude(await runs.look(id), { id, state: "up", backend: "qemu", vcpus: 1, memoryMib: 256 })
    const follower = runs.start(["logs", "--follow", id])
    const waited = runs.microvm("wait", id)
    await follower.says("line 9")
    // The machine may be gone before we are told how that went.
    await runs.microvm("exec", id, "--", "touch", "/run/end")
    assert.deepStrictEqual(await waited, { code: 7, stdout: "7\n", stderr: "" })
    const lines = Array.from({ length: 10 }, (_, i) => `line ${i}`)
    const followed = await follower.end
    assert.deepInclude(followed, { code: 0, stderr: "" })
    assert.deepStrictEqual(followed.stdout.split("\n").filter((line) => line.startsWith("line")), lines)
    assert.lengthOf(followed.stdout.match(/^err$/gm) ?? [], 10)
    await runs.nothingLeft()

    const logs = await runs.microvm("logs", id)
    assert.deepInclude(logs, { code: 0, stdout: followed.stdout })
    assert.strictEqual((await runs.microvm("logs", "--tail", "1", id)).stdout.split("\n").length, 2)
    assert.include((await runs.microvm("logs", "--console", id)).stdout, "told")
    assert.deepStrictEqual(await runs.listed(), [])
    assert.deepInclude(await runs.look(id), { state: "over", exitCode: 7 })
    const report = decodeReport((await runs.microvm("wait", "--json", id)).stdout)
    assert.deepInclude(report, { id, exitCode: 7 })
    const refused = await runs.microvm("exec", id, "--", "true")
    assert.deepInclude(refused, { code: 1, stdout: "" })
    assert.include(refused.stderr, `machine ${id} has ended, with exit code 7`)
    // To end what has ended is done.
    assert.deepInclude(await runs.microvm("stop", id), { code: 0 })
    // The name of one that is over may be taken again.
    assert.deepInclude(await runs.microvm("run", "-d", "--name", id, "--", "true"), { code: 0, stdout: `${id}\n` })
    assert.deepInclude(await runs.microvm("wait", id), { code: 0 })
    assert.deepInclude(await runs.microvm("rm", id), { code: 0 })
    assert.isFalse(NodeFs.existsSync(runs.file(id)))
    assert.deepInclude(await runs.microvm("rm", id), {
      code: 1,
      stderr: `microvm: there is no machine "${id}": there is none\n`
    })
    await runs.nothingLeft()
  })

  it("that comes to nothing says so as in the foreground, and leaves nothing", async () => {
    await using runs = new Runs(bin)
    const cases: ReadonlyArray<
      readonly [args: ReadonlyArray<string>, code: number, told: RegExp, env?: Record<string, string>]
    > = [
      [["--image", "nonesuch", "--", "true"], 64, /nonesuch/],
      [["--from", "nonesuch", "--", "true"], 64, /nonesuch/],
      [["--backend", "qemu", "--", "true"], 69, /no-such-qemu/, { MICROVM_QEMU_BIN: "/no-such-qemu" }],
      [["--json", "--timeout", "soon"], 64, /--timeout "soon"/]
    ]
    await Promise.all(cases.map(async ([args, code, told, env = {}]) => {
      const [behind, front] = [runs.name(), runs.name()]
      const detached = await runs.start(["run", "--detach", "--name", behind, ...args], { env }).end
      assert.strictEqual(detached.code, code, detached.stderr)
      assert.strictEqual(detached.stdout, "")
      assert.match(detached.stderr, told)
      if (args.includes("--json")) return
      const plain = await runs.start(["run", "--name", front, ...args], { env }).end
      const common = ({ stderr }: Done, name: string) =>
        stderr.replaceAll(name, "NAME").split("\n").filter((line) => !line.includes("restored in"))
      assert.deepStrictEqual({ code: detached.code, stderr: common(detached, behind) }, {
        code: plain.code,
        stderr: common(plain, front)
      })
    }))
    assert.deepStrictEqual(await runs.listed(), [])
    // What cannot be executed is told as in the foreground, and is kept like any other run.
    for (
      const [command, code, told] of [["nonesuch", 127, "not found"], ["/proc/version", 126, "not executable"]] as const
    ) {
      const id = runs.name()
      const detached = await runs.start(["run", "--detach", "--name", id, "--", command]).end
      assert.deepInclude(detached, { code, stdout: "" })
      assert.include(detached.stderr, `microvm logs ${id}`)
      assert.deepInclude(await runs.microvm("wait", id), { code, stdout: `${code}\n` })
      assert.include((await runs.microvm("logs", id)).stdout, `microvm: ${command}: ${told}`)
    }
    await runs.nothingLeft()
  })

  it("a machine that is up is asked for all that there is", async () => {
    await using runs = new Runs(bin)
    const id = await runs.sh(`echo up; ${forever}`)
    const exec = (script: string, ...flags: ReadonlyArray<string>) => ["exec", ...flags, id, "--", "sh", "-c", script]

    // Another of its name.
    const second = await runs.microvm("run", "--detach", "--name", id, "--", "true")
    assert.deepInclude(second, { code: 125, stdout: "" })
    assert.include(second.stderr, `machine ${id} is up: end it first, with microvm stop ${id}, or name another`)
    assert.deepInclude(await runs.microvm("rm", id), { code: 1 })

    // Three at a time, each with its own streams and its own code.
    const three = await Promise.all(
      ["a", "b", "c"].map((word, nth) =>
        runs.start(
          exec(
            `read x; echo out $x $V; echo err $x >&2; pwd; exit ${nth + 3}`,
            "--env",
            `V=${word}`,
            "--workdir",
            "/tmp"
          ),
          {
            stdin: `${word}\n`
          }
        ).end
      )
    )
    assert.deepStrictEqual(
      three,
      ["a", "b", "c"].map((word, nth) => ({
        code: nth + 3,
        stdout: `out ${word} ${word}\n/tmp\n`,
        stderr: `err ${word}\n`
      }))
    )

    // All that goes in comes back.
    const flood = Buffer.alloc(20_000_000)
    for (let at = 0; at < flood.length; at += 4) flood.writeUInt32LE(at, at)
    const echoed = runs.start(["exec", id, "--", "cat"], { stdin: flood })
    assert.deepInclude(await echoed.end, { code: 0, stderr: "" })
    assert.isTrue(echoed.said().stdout.equals(flood))

    // A caller that is killed takes its command along.
    const gone = async (what: string) => {
      for (const deadline = Date.now() + 60_000;; await sleep(100)) {
        // Brackets keep what looks from seeing itself.
        const { stdout } = await runs.microvm(...exec(`ps | grep -c '[s]leep ${what}'`))
        if (stdout === "0\n") return
        assert.isBelow(Date.now(), deadline, `sleep ${what} goes on`)
      }
    }
    const killed = runs.start(exec("echo there; exec sleep 4321"))
    await killed.says("there")
    killed.child.kill("SIGKILL")
    await killed.end
    await gone("4321")

    // What is typed to end it goes to the command.
    const trapped = runs.start(exec("trap 'echo caught; exit 9' INT; echo there; sleep 4322 & wait"))
    await trapped.says("there")
    trapped.child.kill("SIGINT")
    assert.deepInclude(await trapped.end, { code: 9, stdout: "there\ncaught\n" })
    const plain = runs.start(exec("echo there; exec sleep 4323"))
    await plain.says("there")
    plain.child.kill("SIGINT")
    assert.deepInclude(await plain.end, { code: 130 })
    await gone("4323")

    assert.deepInclude(await runs.microvm("exec", id, "--", "nonesuch"), { code: 127 })
    assert.deepInclude(await runs.microvm("exec", id, "--", "/proc/version"), { code: 126 })
    assert.deepInclude(await runs.microvm("exec", "nonesuch", "--", "true"), { code: 1 })
    assert.deepInclude(await runs.microvm("exec", id), { code: 64 })

    // It is as it was, and is ended in order.
    assert.deepInclude(await runs.look(id), { state: "up" })
    assert.deepStrictEqual(await runs.microvm("stop", id), { code: 0, stdout: `${id}\n`, stderr: "" })
    assert.deepInclude(await runs.look(id), { state: "over", exitCode: 143 })
    const report = decodeReport((await runs.microvm("wait", "--json", id)).stdout)
    assert.strictEqual(report.shutdown?._tag === "Graceful" && report.shutdown.stage, "guest power-off")
    await runs.nothingLeft()
  })

  it("ends in each way that it can be ended in", async () => {
    await using runs = new Runs(bin)
    const deaf = "trap '' TERM INT HUP; while :; do sleep 1; done"
    const [forced, told] = await Promise.all([runs.sh(deaf), runs.sh(forever)])
    // Whoever breaks out of one of them can do nothing to the others.
    const monitors = runs.processes().filter(({ command }) => command.startsWith("qemu-system"))
    const users = new Set(monitors.map(({ pid }) => /^Uid:\t(\d+)/m.exec(text(`/proc/${pid}/status`))?.[1]))
    assert.lengthOf(monitors, 2)
    if (process.geteuid?.() === 0) {
      assert.strictEqual(users.size, 2, [...users].join(" "))
      for (const user of users) assert.isAtLeast(Number(user), 2_000_000_000)
    } else console.warn("skipped: that each machine has a user of its own: it takes root")
    const timed = await runs.up(["--timeout", "2s", "--", "sh", "-c", forever])
    const stopped = runs.microvm("stop", "--force", forced)
    process.kill(runs.supervisor(told), "SIGTERM")
    assert.deepInclude(await stopped, { code: 0, stderr: "" })
    assert.deepInclude(await runs.microvm("wait", forced), { code: 143 })
    assert.deepInclude(await runs.microvm("wait", told), { code: 143 })
    assert.deepInclude(await runs.microvm("wait", timed), { code: 124, stdout: "124\n" })
    const report = decodeReport((await runs.microvm("wait", "--json", timed)).stdout)
    assert.strictEqual(report.end._tag, "TimedOut")
    await runs.nothingLeft()
  })

  it("that hangs is ended by its watchdog, in the foreground and behind it, and by nobody without one", async () => {
    await using runs = new Runs(bin)
    const watched = ["--watchdog", "10s", "--", "sh", "-c", `echo up; ${forever}`]
    const vmmOf = (owner: number): number => {
      const found = descendants(owner).find(({ command }) => command.startsWith("qemu"))
      if (found === undefined) throw new Error(`there is no QEMU below ${owner}`)
      return found.pid
    }
    const front = runs.start(["run", "--name", runs.name(), ...watched])
    const [behind, unwatched] = await Promise.all([runs.up(watched), runs.sh(forever), front.says("up")])
    // Both answer for longer than the watchdog waits.
    await sleep(11_000)
    assert.deepInclude(await runs.look(behind), { state: "up" })
    const stopped = vmmOf(runs.holder(unwatched))
    for (const pid of [vmmOf(front.pid), vmmOf(runs.holder(behind)), stopped]) process.kill(pid, "SIGSTOP")
    const told = /the machine was ended, as it hangs: its (monitor|agent) has not answered for \d/
    const { code, stderr } = await front.end
    assert.strictEqual(code, 125, stderr)
    assert.match(stderr, told)
    assert.deepInclude(await runs.microvm("wait", behind), { code: 125, stdout: "125\n" })
    const report = decodeReport((await runs.microvm("wait", "--json", behind)).stdout)
    assert.match(report.end._tag === "Failed" ? report.end.message : "", told)
    assert.strictEqual(report.shutdown?._tag === "Forced" && report.shutdown.stage, "SIGKILL")
    assert.deepInclude(await runs.look(unwatched), { state: "up" })
    process.kill(stopped, "SIGCONT")
    assert.deepInclude(await runs.microvm("stop", "--force", unwatched), { code: 0 })
    await runs.nothingLeft()
  })

  it("keeps the newest of what a command floods its log with, and tells how much is gone", async () => {
    await using runs = new Runs(bin)
    const bytes = 24_000_000
    const id = await runs.sh(`yes 0123456789abcde | head -c ${bytes}; echo; echo the end`)
    assert.deepInclude(await runs.microvm("wait", id), { code: 0 })
    const { code, stderr, stdout } = await runs.microvm("logs", id)
    assert.strictEqual(code, 0)
    assert.match(stdout, /\nthe end\n$/)
    const gone = Number(/^microvm: (\d+) bytes that came before are not kept any more$/m.exec(stderr)?.[1])
    assert.strictEqual(gone + stdout.length, bytes + "\nthe end\n".length)
    assert.isAtLeast(stdout.length, 8 * 1024 * 1024)
    assert.isAtMost(stdout.length, 16 * 1024 * 1024)
    assert.strictEqual((await runs.microvm("logs", "--tail", "1", id)).stdout, "the end\n")
    await runs.nothingLeft()
  })

  it("nobody is left to read what is followed", async () => {
    await using runs = new Runs(bin)
    const id = await runs.sh("while :; do echo more; sleep 0.1; done")
    const follower = runs.start(["logs", "--follow", id])
    await follower.says("more")
    follower.child.stdout?.destroy()
    const { code, stderr } = await follower.end
    assert.deepStrictEqual({ code, stderr }, { code: 141, stderr: "" })
    assert.deepInclude(await runs.look(id), { state: "up" })
    assert.deepInclude(await runs.microvm("stop", id), { code: 0 })
    await runs.nothingLeft()
  })
})
