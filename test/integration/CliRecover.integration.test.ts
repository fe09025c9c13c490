/**
 * The supervisor of a machine is killed, at any moment of its life; what is found later is adopted or removed, whole.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as NodeChildProcess from "node:child_process"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { descendants, killWithGuard, makeCache, sleep, until } from "../cli/executable.ts"
import { type Done, install, noRuns, Runs, text } from "./background.ts"

if (noRuns !== undefined) console.warn(`SKIPPED tests of recovery: ${noRuns}`)
const isRoot = process.geteuid?.() === 0
if (!isRoot) console.warn("SKIPPED tests of full and read-only state directories: only root may mount")

const kill = (pid: number): void => {
  // kill(2) takes 0 for our own process group.
  assert.isAbove(pid, 1)
  try {
    process.kill(pid, "SIGKILL")
  } catch {
    // It has ended by itself.
  }
}

/** mulberry32: the same numbers for the same seed. */
const numbers = (seed: number) => {
  let state = seed
  return (): number => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const ticking = (ticks: number) =>
  `i=0; while [ $i -lt ${ticks} ]; do echo tick $i; i=$((i+1)); sleep 0.1; done; exit 9`

describe.skipIf(noRuns !== undefined)("microvm recover", () => {
  let bin = ""
  let remove = () => {}
  beforeAll(() => {
    ;({ bin, remove } = install())
  }, 900_000)
  afterAll(() => remove())

  /** The numbers that a log has, which come in order and once each. */
  const ticksOf = async (runs: Runs, id: string): Promise<ReadonlyArray<number>> => {
    const { stdout } = await runs.microvm("logs", id)
    const ticks = [...stdout.matchAll(/^tick (\d+)$/gm)].map(([, tick]) => Number(tick))
    assert.deepStrictEqual(ticks, [...new Set(ticks)].toSorted((one, other) => one - other), stdout)
    return ticks
  }

  /** What the one who was killed had read and not yet written is lost: one piece at most, of what came at a time. */
  const assertOneGap = (seen: ReadonlyArray<number>, ticks: number, tell: string, most = 20) => {
    assert.deepStrictEqual(seen, [...new Set(seen)], `${tell}: said twice`)
    const missing = Array.from({ length: ticks }, (_, tick) => tick).filter((tick) => !seen.includes(tick))
    assert.isNotNaN(ticks, tell)
    assert.isAtMost(missing.length, most, `${tell}: ${missing.join(" ")} are missing`)
    assert.strictEqual(
      (missing.at(-1) ?? 0) - (missing[0] ?? 0),
      Math.max(0, missing.length - 1),
      `${tell}: ${missing.join(" ")}`
    )
  }

  it("gives a machine another supervisor: its output, its exit code and exec go on", async () => {
    await using runs = new Runs(bin)
    // Until it is told to end: however long we take on a busy host, it is there.
    const id = await runs.sh(
      "i=0; while [ ! -e /run/end ]; do echo tick $i; echo console $i >/dev/console; i=$((i+1)); sleep 0.1; done; " +
        "echo $i ticks; exit 9"
    )
    await sleep(500)
    kill(runs.supervisor(id))
    await until("its end", () => !runs.processes().some(({ pid }) => pid === runs.supervisor(id)))
    assert.deepInclude(await runs.look(id), { state: "left behind" })
    for (const words of [["exec", id, "--", "true"], ["wait", id], ["stop", id], ["rm", id]]) {
      const { code, stderr } = await runs.microvm(...words)
      assert.deepStrictEqual({ code, stderr }, {
        code: 1,
        stderr:
          `microvm: machine ${id} was left behind by its supervisor: go on with it, or clean up, by microvm recover\n`
      }, words[0])
    }

    // What would be done changes nothing.
    const before = runs.digest()
    const dry = await runs.recover("--dry-run")
    assert.deepInclude(dry, { code: 0 })
    assert.deepStrictEqual(dry.recovered.map((one) => [one.id, one.action]), [[id, "Adopted"]])
    assert.strictEqual(runs.digest(), before)
    assert.deepInclude(await runs.look(id), { state: "left behind" })

    // Two at once: one of them does it, and the other does no harm.
    const two = await Promise.all([runs.recover(), runs.recover()])
    assert.deepStrictEqual(two.map(({ code }) => code), [0, 0], JSON.stringify(two))
    const actions = two.flatMap(({ recovered }) => recovered.map(({ action }) => action))
    assert.lengthOf(actions.filter((action) => action === "Adopted"), 1, JSON.stringify(two))
    assert.notInclude(actions, "Reclaimed")
    assert.deepInclude(await runs.look(id), { state: "up" })
    assert.deepInclude(await runs.microvm("exec", id, "--", "sh", "-c", "echo hello; exit 3"), {
      code: 3,
      stdout: "hello\n"
    })
    const again = await runs.microvm("recover")
    assert.deepStrictEqual(again, { code: 0, stdout: "", stderr: "microvm: nothing was left behind\n" })
    // The machine may be gone before we are told how that went.
    await runs.microvm("exec", id, "--", "touch", "/run/end")
    assert.deepInclude(await runs.microvm("wait", id), { code: 9, stdout: "9\n" })
    const total = Number(/^(\d+) ticks$/m.exec((await runs.microvm("logs", id)).stdout)?.[1])
    assertOneGap(await ticksOf(runs, id), total, "its output")
    // What was said while it had no supervisor, too.
    const { stdout } = await runs.microvm("logs", "--console", id)
    assertOneGap([...stdout.matchAll(/^console (\d+)\r?$/gm)].map(([, tick]) => Number(tick)), total, "its console", 5)
    await runs.nothingLeft()
  })

  /** The process in the background that a command has started. Its arguments are hidden; what it was started with is not. */
  const background = async (front: number) => {
    const find = () =>
      descendants(front).find(({ pid }) => text(`/proc/${pid}/environ`).includes("EFFECT_MICROVM_DETACHED="))
    let found = find()
    await until("the one in the background", () => (found ??= find()) !== undefined)
    return found?.pid ?? 0
  }

  it("leaves a machine as it is whose guest or monitor does not answer, until --kill", async () => {
    await using runs = new Runs(bin)
    const [mute, stopped] = await Promise.all([runs.sh("sleep 99"), runs.sh("sleep 99")])
    const armed = await runs.microvm(
      "exec",
      mute,
      "--",
      "sh",
      "-c",
      "(sleep 1; kill -STOP $(pidof qemu-ga); echo mute >/dev/console) >/dev/null 2>&1 </dev/null &"
    )
    assert.deepInclude(armed, { code: 0 })
    for (
      const deadline = Date.now() + 60_000;
      !(await runs.microvm("logs", "--console", mute)).stdout.includes("mute");
      await sleep(50)
    ) assert.isBelow(Date.now(), deadline, "its agent does not stand still")
    const vmms = [mute, stopped].map((id) => {
      const vmm = descendants(runs.holder(id)).find(({ command }) => command.startsWith("qemu"))
      return vmm?.pid ?? 0
    })
    const assertAllLive = () => assert.includeMembers(runs.processes().map(({ pid }) => pid), vmms)
    for (const id of [mute, stopped]) kill(runs.supervisor(id))
    process.kill(vmms[1] ?? 0, "SIGSTOP")
    try {
      const left = await runs.recover()
      assert.deepStrictEqual([left.code, left.recovered.map(({ action }) => action)], [1, ["Left", "Left"]])
      const why = left.recovered.find(({ id }) => id === mute)?.why ?? ""
      assert.match(why, /^its process lives, but nobody could go on with it, No guest agent answered within 15s/)
      assertAllLive()
      // Who is called off meanwhile lets go, too.
      const front = runs.start(["recover", mute])
      const pid = await background(front.pid)
      await until("that it hears signals", () => {
        const [, caught = "0"] = /^SigCgt:\s*(\S+)/m.exec(text(`/proc/${pid}/status`)) ?? []
        return (BigInt(`0x${caught}`) >> 14n & 1n) === 1n
      })
      process.kill(pid, "SIGTERM")
      process.kill(pid, "SIGTERM")
      const { code, stdout } = await front.end
      assert.deepStrictEqual([code, stdout.startsWith(`${mute}: left, `)], [1, true], stdout)
      // Another run removes what the dead have left, and these live.
      assert.deepInclude(await runs.microvm("run", "--", "true"), { code: 0 })
      assertAllLive()
      for (const id of [mute, stopped]) assert.deepInclude(await runs.look(id), { state: "left behind" })
    } finally {
      process.kill(vmms[1] ?? 0, "SIGCONT")
    }
    const goesOn = await runs.recover(stopped)
    assert.deepStrictEqual([goesOn.code, goesOn.recovered.map(({ action }) => action)], [0, ["Adopted"]])
    assert.deepInclude(await runs.microvm("stop", stopped), { code: 0 })
    const killed = await runs.recover("--kill")
    assert.deepStrictEqual(killed.recovered.map(({ action, id }) => [id, action]), [[mute, "Reclaimed"]])
    await runs.nothingLeft()
  })

  it("goes on with a machine though whoever asked for it has left", async () => {
    await using runs = new Runs(bin)
    const id = await runs.sh("sleep 99")
    const holder = runs.holder(id)
    for (const [signal, delay] of [["SIGINT", 0], ["SIGTERM", 100], ["SIGINT", 250], ["SIGHUP", 500]] as const) {
      const before = runs.supervisor(id)
      kill(before)
      await until("its end", () => !runs.processes().some(({ pid }) => pid === before))
      const front = runs.start(["recover", id])
      await background(front.pid)
      await sleep(delay)
      front.child.kill(signal)
      await front.end
      await until("another supervisor", () => runs.supervisor(id) !== before)
      assert.deepInclude(await runs.look(id), { state: "up" }, `${signal} after ${delay} ms`)
      // It has the machine, and may not have heard of its guest yet.
      const what = `exec, ${signal} after ${delay} ms`
      for (const deadline = Date.now() + 60_000;; await sleep(50)) {
        const { code, stderr } = await runs.microvm("exec", id, "--", "true")
        if (code === 0) break
        assert.match(stderr, /runs here|has not answered yet/, what)
        assert.isBelow(Date.now(), deadline, what)
      }
      assert.strictEqual(runs.holder(id), holder)
    }
    assert.deepInclude(await runs.microvm("stop", id), { code: 0 })
    await runs.nothingLeft()
  })

  it("knows another boot, and tells what was removed", async () => {
    await using runs = new Runs(bin)
    const id = await runs.sh("sleep 99")
    const [supervisor, holder] = [runs.supervisor(id), runs.holder(id)]
    kill(supervisor)
    kill(holder)
    await until("their end", () => runs.processes().length === 0)
    const boot = text("/proc/sys/kernel/random/boot_id").trim()
    const inside = NodeFs.readdirSync(runs.file(id), { recursive: true, encoding: "utf8" })
    for (const name of inside.filter((one) => one.endsWith(".json"))) {
      NodeFs.writeFileSync(runs.file(id, name), text(runs.file(id, name)).replaceAll(boot, "another"))
    }
    for (const flags of [["--dry-run"], []]) {
      const { code, recovered } = await runs.recover(...flags)
      assert.deepStrictEqual(
        [code, recovered.map(({ action, why }) => [action, why])],
        [0, [["Reclaimed", "the host was started again since"]]]
      )
      assert.sameMembers(recovered[0]?.released?.claims.map(({ kind }) => kind) ?? [], [
        "held-process",
        "machine-directory",
        ...(isRoot ? ["user"] : [])
      ])
    }
    assert.deepInclude(await runs.microvm("wait", id), { code: 125 })
    await runs.nothingLeft()
  })

  it("ends and removes what is not to go on, or cannot", async () => {
    await using runs = new Runs(bin)
    const [unwanted, unheld, dead] = await Promise.all([runs.sh("sleep 99"), runs.sh("sleep 99"), runs.sh("sleep 99")])
    const foreground = runs.name()
    const front = runs.start(["run", "--name", foreground, "--", "sh", "-c", "echo up; sleep 99"])
    await front.says("up")
    killWithGuard(front.pid)
    const holders = [unheld, dead].map((id) => runs.holder(id))
    const vmm = descendants(runs.holder(dead)).find(({ command }) => command.startsWith("qemu"))
    assert.isDefined(vmm)
    for (const id of [unwanted, unheld, dead]) kill(runs.supervisor(id))
    for (const pid of [holders[0], vmm?.pid]) kill(pid ?? 0)
    await until(
      "their end",
      () =>
        [unwanted, unheld, dead, foreground].every((id) =>
          !runs.processes().some(({ pid }) => pid === runs.supervisor(id))
        )
    )
    const dry = await runs.recover("--dry-run", "--kill")
    assert.deepStrictEqual([...new Set(dry.recovered.map(({ action }) => action))], ["Reclaimed"])
    assert.deepStrictEqual(
      new Set((await runs.listed("--all")).map(({ state }) => state)),
      new Set(["left behind"])
    )
    const others = await runs.recover(unheld, dead, foreground)
    assert.deepInclude(others, { code: 0 }, JSON.stringify(others))
    assert.deepStrictEqual(others.recovered.map(({ action }) => action), ["Reclaimed", "Reclaimed", "Reclaimed"])
    const killed = await runs.recover("--kill", unwanted)
    assert.deepInclude(killed, { code: 0 })
    assert.deepStrictEqual(killed.recovered.map(({ action }) => action), ["Reclaimed"])
    await runs.nothingLeft()
    for (const id of [unwanted, unheld, dead, foreground]) {
      assert.deepInclude(await runs.look(id), { state: "over", exitCode: 125 }, id)
    }
    assert.deepInclude(await runs.microvm("recover", "--adopt", "--kill"), { code: 64 })
    assert.deepInclude(await runs.microvm("recover", "nonesuch"), { code: 1 })
  })

  const seed = Number(process.env["MICROVM_TEST_SEED"] ?? Date.now() % 1_000_000)
  it(`whatever the moment of its supervisor's death (seed ${seed})`, async () => {
    await using runs = new Runs(bin)
    const next = numbers(seed)
    const [kills, ticks, atATime] = [8, 20, 4]
    const whole = Date.now()
    assert.deepInclude(await runs.microvm("wait", await runs.sh(ticking(ticks))), { code: 9 })
    // Half of them before its command runs, where most is done; the others up to its end.
    const span = Date.now() - whole
    const early = span - ticks * 100
    const delays = Array.from(
      { length: kills },
      (_, nth) =>
        nth < kills / 2
          ? (nth + next()) * early / (kills / 2)
          : early + (nth - kills / 2 + next()) * (span - early) / (kills / 2)
    )
    const told: Array<string> = []
    const unheard: Array<string> = []
    const one = async (delay: number) => {
      const id = runs.name()
      const front = runs.start(["run", "--detach", "--name", id, "--", "sh", "-c", ticking(ticks)])
      const victim = await background(front.pid)
      await sleep(delay)
      kill(victim)
      const { code, stdout } = await front.end
      const before = await runs.look(id)
      const { code: recoverCode, recovered } = before === undefined
        ? { code: 0, recovered: [] }
        : await runs.recover(id)
      const [own] = recovered
      const tell = `killed after ${delay.toFixed(0)} ms: run ${code}, ${before?.state}, ${own?.action ?? "nothing"}`
      assert.strictEqual(recoverCode, 0, `${tell}, ${JSON.stringify(recovered)}`)
      if (code === 0) assert.strictEqual(stdout, `${id}\n`, tell)
      else assert.strictEqual(code, 125, tell)
      if (before === undefined) {
        told.push(tell)
        return
      }
      const { code: exitCode } = await runs.microvm("wait", id)
      // It was adopted, or over before, or its end is not known: the guest tells it once, and who heard it may die before it is written down.
      const isKnown = own?.action === "Adopted" || before.exitCode === 9
      if (isKnown && exitCode === 125) unheard.push(text(runs.file(id, "report.json")))
      else assert.strictEqual(exitCode, isKnown ? 9 : 125, tell)
      const seen = await ticksOf(runs, id)
      if (exitCode === 9) assertOneGap(seen, ticks, tell)
      told.push(`${tell}, exit code ${exitCode}, ${seen.length} of ${ticks} ticks`)
    }
    // One that fails ends when all have ended, so that none goes on after the test.
    const failures: Array<string> = []
    const left = [...delays]
    await Promise.all(Array.from({ length: atATime }, async () => {
      for (let delay = left.shift(); delay !== undefined; delay = left.shift()) {
        await one(delay).catch((error: unknown) => failures.push(String(error)))
      }
    }))
    console.log(told.join("\n"))
    assert.deepStrictEqual(failures, [])
    assert.isAtMost(unheard.length, 1, unheard.join("\n"))
    for (const report of unheard) assert.include(report, "its end was told before")
    // Who was killed while it had no machine has left the note of its lease, or half a file, beside what is kept of the run: it goes
    // with it, and what is left of who was killed before goes with whatever is removed or begun next.
    const ids = (await runs.listed("--all")).map(({ id }) => id)
    assert.deepInclude(await runs.microvm("rm", ...ids), { code: 0 })
    await runs.nothingLeft()
  })

  it("whenever its supervisor dies while it saves the machine, that goes on, and can be saved again", async () => {
    const cache = makeCache()
    try {
      await using runs = new Runs(bin, { env: { MICROVM_CACHE_DIR: cache } })
      // So much that cannot be left out that to write it takes a while; random numbers take longest where there is no KVM.
      const id = await runs.up([
        ..."--cold --memory 768 -- sh -c".split(" "),
        "head -c 10000000 /dev/urandom >/tmp/x; for i in 1 2 3 4 5 6 7 8 9; do cat /tmp/x; done >/tmp/y; " +
        "cp /tmp/y /tmp/z; while :; do echo tick; sleep .1; done"
      ])
      const ticks = async () => [...(await runs.microvm("logs", id)).stdout.matchAll(/^tick$/gm)].length
      const ticksGoOn = async (what: string) => {
        const before = await ticks()
        for (const deadline = Date.now() + 60_000; (await ticks()) <= before; await sleep(100)) {
          assert.isBelow(Date.now(), deadline, `${what}: no more ticks`)
        }
      }
      await ticksGoOn("at first")
      const temporary = NodePath.join(cache, "snapshots", "tmp")
      const size = (name: string): number => {
        for (const one of NodeFs.existsSync(temporary) ? NodeFs.readdirSync(temporary) : []) {
          const stat = NodeFs.statSync(NodePath.join(temporary, one, "snapshot", name), { throwIfNoEntry: false })
          if (stat !== undefined) return stat.size
        }
        return -1
      }
      const moments: ReadonlyArray<readonly [when: string, hasCome: () => boolean]> = [
        ["when there is something to write to", () => size("state") >= 0],
        ["while it is written", () => size("state") > 50_000_000],
        ["when all of it is written", () => size("manifest.json") >= 0]
      ]
      for (const [when, hasCome] of moments) {
        const supervisor = runs.supervisor(id)
        let saving = runs.start(["snapshot", "save", id, "mine"])
        for (const deadline = Date.now() + 60_000; !hasCome(); await sleep(1)) {
          assert.isBelow(Date.now(), deadline, `${when}: it was not saved; ${saving.said().stderr}`)
          if (saving.child.exitCode === null) continue
          // The moment was over before we saw it: another try.
          assert.deepInclude(await saving.end, { code: 0 }, when)
          assert.deepInclude(await runs.microvm("snapshot", "rm", "mine"), { code: 0 }, when)
          saving = runs.start(["snapshot", "save", id, "mine"])
        }
        kill(supervisor)
        await saving.end
        await until("its end", () => !runs.processes().some(({ pid }) => pid === supervisor))
        const { code, recovered } = await runs.recover(id)
        assert.deepStrictEqual([code, recovered.map(({ action }) => action)], [0, ["Adopted"]], when)
        await ticksGoOn(when)
        NodeFs.rmSync(temporary, { recursive: true })
        // It may have been quicker than our signal.
        await runs.microvm("snapshot", "rm", "mine")
      }
      const saved = await runs.microvm("snapshot", "save", id, "mine")
      assert.strictEqual(saved.code, 0, saved.stderr)
      await ticksGoOn("when it was saved")
      assert.deepInclude(await runs.microvm("stop", id), { code: 0 })
      assert.deepInclude(await runs.microvm("rm", id), { code: 0 })
      await runs.nothingLeft()
    } finally {
      NodeFs.rmSync(cache, { recursive: true, force: true })
    }
  })

  it("tells what was edited by hand, and breaks nothing else", async () => {
    await using runs = new Runs(bin)
    const [torn, garbage, report, whole] = await Promise.all([
      runs.sh("sleep 99"),
      runs.sh("true"),
      runs.sh("exit 5"),
      runs.sh("sleep 99")
    ])
    for (const id of [garbage, report]) await runs.microvm("wait", id)
    await until(
      "both ends",
      () => [garbage, report].every((id) => !runs.processes().some(({ pid }) => pid === runs.supervisor(id)))
    )
    NodeFs.writeFileSync(runs.file(garbage, "options.json"), "garbage{")
    NodeFs.writeFileSync(runs.file(report, "report.json"), "\0\0\0")
    kill(runs.supervisor(torn))
    kill(runs.supervisor(whole))
    await until("their end", () => {
      const gone = new Set([torn, whole].map((id) => runs.supervisor(id)))
      return !runs.processes().some(({ pid }) => gone.has(pid))
    })
    const record = runs.file(torn, "journal", "machines", `${torn}.json`)
    NodeFs.truncateSync(record, 100)

    const listed = await runs.microvm("ps", "--all")
    assert.strictEqual(listed.code, 0, listed.stderr)
    assert.include(listed.stdout, whole)
    // Its end was written down before its machine stopped, too. Without that, nobody has seen it.
    assert.deepInclude(await runs.look(report), { state: "over", exitCode: 5 })
    NodeFs.writeFileSync(runs.file(report, "end.json"), "\0\0\0")
    assert.deepInclude(await runs.look(report), { state: "over", exitCode: 125 })
    const before = runs.digest()
    const unread = "left, what is written of its machine cannot be read, "
    const told = ({ code, stdout }: Done) => assert.deepStrictEqual([code, stdout.includes(unread)], [1, true], stdout)
    told(await runs.microvm("recover", "--dry-run", torn))
    assert.strictEqual(runs.digest(), before)
    const recovered = await runs.microvm("recover")
    told(recovered)
    assert.include(recovered.stdout, `${whole}: adopted`)
    told(await runs.microvm("recover"))
    told(await runs.microvm("recover", "--kill"))
    assert.lengthOf(NodeFs.readdirSync(runs.file(torn, "journal", "quarantine")), 2)
    // The way to its machine is not removed.
    assert.deepInclude(await runs.microvm("rm", torn), { code: 1 })
    assert.deepInclude(await runs.microvm("stop", whole), { code: 0 })
    kill(runs.holder(torn))
  })

  it.skipIf(!isRoot)("a state directory that is read-only, full, or no directory", async () => {
    const mount = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "microvm-mount-"))
    const on = (...words: ReadonlyArray<string>) => NodeChildProcess.execFileSync("mount", words, { stdio: "pipe" })
    on("-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", mount)
    try {
      const state = NodePath.join(mount, "state")
      await using runs = new Runs(bin, { state })
      const refused = async (what: string, ...more: ReadonlyArray<string>) => {
        for (const flags of [["--detach"], []]) {
          const { code, stderr, stdout } = await runs.microvm("run", ...flags, ...more, "--", "true")
          assert.deepStrictEqual({ code, stdout }, { code: 125, stdout: "" }, `${what}: ${stderr}`)
          assert.match(stderr, /set MICROVM_STATE_DIR|ENOSPC|no space/i, what)
          assert.notMatch(stderr, /^\s+at /m, what)
        }
        assert.deepStrictEqual(await runs.listed("--all"), [], what)
        assert.deepStrictEqual(runs.processes(), [], what)
      }
      on("-o", "remount,ro", mount)
      await refused("read-only")
      on("-o", "remount,rw", mount)
      NodeFs.writeFileSync(state, "")
      const { code, stderr } = await runs.microvm("run", "-d", "--", "true")
      assert.strictEqual(code, 125)
      assert.include(stderr, "MICROVM_STATE_DIR")
      NodeFs.rmSync(state)
      const fill = NodePath.join(mount, "fill")
      NodeChildProcess.spawnSync("dd", ["if=/dev/zero", `of=${fill}`, "bs=4k"], { stdio: "pipe" })
      await refused("full")
      // With room again, all is well again.
      NodeFs.rmSync(fill)
      const id = await runs.sh("yes | head -c 3000000; echo the end; exit 4")
      assert.deepInclude(await runs.microvm("wait", id), { code: 4 })
      await runs.nothingLeft()
    } finally {
      NodeChildProcess.execFileSync("umount", [mount], { stdio: "pipe" })
      NodeFs.rmdirSync(mount)
    }
  })
})
