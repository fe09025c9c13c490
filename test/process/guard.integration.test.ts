import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { type ChildProcess as NodeChild, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname } from "node:path"
import * as Mark from "../../src/process/Mark.ts"
import * as NodeSupervisorGuard from "../../src/process/NodeSupervisorGuard.ts"
import { SupervisorGuard, Watched } from "../../src/process/SupervisorGuard.ts"
import { cgroupSupport, clearUp, eventually, fixture, hasCGroups, trial } from "./support.ts"

const scopes = hasCGroups ? ["cgroup", "group", "process"] as const : ["group", "process"] as const

const cgroupsOf = (pid: number): ReadonlyArray<string> =>
  cgroupSupport._tag === "Usable"
    ? readdirSync(dirname(cgroupSupport.root)).filter((name) => name.startsWith(`effect-microvm-${pid}-`))
    : []

const guards = (parent: number): ReadonlyArray<number> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("microvm-guard") &&
        new RegExp(`^\\d+ \\(.*\\) \\S ${parent} `, "s").test(readFileSync(`/proc/${pid}/stat`, "latin1"))
    } catch {
      return false
    }
  })

const commandOf = (pid: number): string | undefined => {
  try {
    return readFileSync(`/proc/${pid}/comm`, "latin1").trim()
  } catch {
    return undefined
  }
}

/** Where process 1 reaps nobody, as in many a container, it stays a zombie. */
const hasEnded = (pid: number): boolean =>
  !existsSync(`/proc/${pid}/stat`) || /\) [ZX] [^)]*$/.test(readFileSync(`/proc/${pid}/stat`, "latin1"))

/** Removes a cgroup and those in it, if nothing lives there. */
const isRemoved = (path: string): boolean => {
  try {
    readdirSync(path, { withFileTypes: true }).forEach((entry) => {
      if (entry.isDirectory()) rmdirSync(`${path}/${entry.name}`)
    })
    rmdirSync(path)
    return true
  } catch {
    return false
  }
}

const withDirectory = <A, E, R>(use: (path: string) => Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(`${tmpdir()}/process-guard-`)),
    use,
    (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
  )

/** Starts the supervisor fixture; gives its process and the lines that it says. */
const supervise = (
  killScope: string,
  count: number,
  base: string,
  env: Readonly<Record<string, string>>,
  ...more: ReadonlyArray<string>
) => {
  const child = spawn(process.execPath, [fixture("supervisor.ts"), killScope, String(count), base, ...more], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "inherit"]
  })
  const lines: Array<string> = []
  child.stdout.on("data", (data) => lines.push(...String(data).split("\n").filter((line) => line !== "")))
  return { child, lines }
}

const died = (child: NodeChild) => Effect.promise(() => once(child, "exit"))

describe("when the supervisor is killed by SIGKILL", () => {
  for (const killScope of scopes) {
    // From "nothing said" over "right after a spawn" to "all is there for a while".
    const moments = ["files", "child 0", "child 1", "child 3", "all"]
    it.live(
      `no child, file or cgroup is left (kill scope ${killScope})`,
      () =>
        withDirectory((base) =>
          Effect.gen(function*() {
            let slowest = 0
            for (const [index, moment] of moments.entries()) {
              const own = trial()
              const { child, lines } = supervise(killScope, 5, base, own.env)
              const pid = child.pid
              if (pid === undefined) return yield* Effect.die("the fixture could not be started")
              expect(yield* eventually(() => lines.includes(moment), 20_000)).toBe(true)
              yield* Effect.sleep(Math.random() * (index % 2) * 10)
              child.kill("SIGKILL")
              yield* died(child)
              const since = performance.now()
              const gone = yield* eventually(() =>
                own.alive().length === 0 && readdirSync(base).length === 0 && cgroupsOf(pid).length === 0
              )
              slowest = Math.max(slowest, performance.now() - since)
              expect({ gone, alive: own.alive(), files: readdirSync(base), cgroups: cgroupsOf(pid) }).toEqual({
                gone: true,
                alive: [],
                files: [],
                cgroups: []
              })
            }
            console.log(`${killScope}: all gone within ${Math.round(slowest)} ms of the supervisor's death`)
          })
        ),
      120_000
    )
  }
})

describe("without a guard", () => {
  const hasSetpriv = spawnSync("setpriv", ["--pdeathsig", "KILL", "--", "true"]).status === 0
  if (!hasSetpriv) console.warn("skipped: the second line of defence, for there is no setpriv that knows --pdeathsig")

  it.live.skipIf(!hasSetpriv)(
    "the kernel still kills the children themselves",
    () =>
      withDirectory((base) =>
        Effect.gen(function*() {
          const own = trial()
          const { child, lines } = supervise("group", 2, base, own.env)
          const pid = child.pid ?? 0
          expect(yield* eventually(() => lines.includes("all"), 20_000)).toBe(true)
          const shells = () => own.alive().filter((other) => commandOf(other) === "sh")
          expect(shells().length).toBeGreaterThan(0)
          // It is replaced some times, then no more.
          const killed = new Set<number>()
          const killThem = () =>
            guards(pid).forEach((guard) => {
              killed.add(guard)
              process.kill(guard, "SIGKILL")
            })
          expect(yield* eventually(() => (killThem(), killed.size === 4), 20_000)).toBe(true)
          expect(yield* eventually(() => guards(pid).length === 0)).toBe(true)
          yield* Effect.sleep("200 millis")
          expect(guards(pid)).toEqual([])
          child.kill("SIGKILL")
          yield* died(child)
          expect(yield* eventually(() => shells().length === 0)).toBe(true)
          expect(yield* clearUp(own)).toBe(true)
        })
      )
  )
})

describe("a child that is not to die with us", () => {
  for (const killScope of scopes) {
    it.live(`survives (kill scope ${killScope})`, () =>
      withDirectory((base) =>
        Effect.gen(function*() {
          const own = trial()
          const { child, lines } = supervise(killScope, 1, base, own.env, "kept")
          const pid = child.pid ?? 0
          expect(yield* eventually(() => lines.includes("all"), 20_000)).toBe(true)
          const [guard = 0] = guards(pid)
          child.kill("SIGKILL")
          yield* died(child)
          expect(yield* eventually(() => readdirSync(base).length === 0 && hasEnded(guard))).toBe(true)
          expect(own.alive().length).toBeGreaterThan(0)
          expect(yield* clearUp(own)).toBe(true)
          if (cgroupSupport._tag === "Usable") {
            const root = dirname(cgroupSupport.root)
            for (const kept of cgroupsOf(pid)) {
              expect(yield* eventually(() => isRemoved(`${root}/${kept}`))).toBe(true)
            }
          }
        })
      ))
  }
})

describe("the guard", () => {
  it.live("ends with its layer, and leaves alone what is ours to end", () =>
    withDirectory((base) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        yield* Effect.gen(function*() {
          const guard = yield* SupervisorGuard
          yield* guard.watch(Watched.Directory({ path: `${base}/kept` }))
          mkdirSync(`${base}/kept`)
          expect(guards(process.pid).length).toBeGreaterThan(0)
        }).pipe(Effect.provide(NodeSupervisorGuard.layer), Scope.provide(scope))
        expect(existsSync(`${base}/kept`)).toBe(true)
        yield* Scope.close(scope, Exit.void)
        expect(guards(process.pid)).toEqual([])
      })
    ))

  it.live("is replaced when somebody kills it, and knows what the first one knew", () =>
    withDirectory((base) =>
      Effect.gen(function*() {
        const own = trial()
        const { child, lines } = supervise("group", 1, base, own.env)
        const pid = child.pid ?? 0
        expect(yield* eventually(() => lines.includes("all"), 20_000)).toBe(true)
        const [first] = guards(pid)
        if (first === undefined) return yield* Effect.die("there is no guard")
        process.kill(first, "SIGTERM")
        process.kill(first, "SIGKILL")
        expect(yield* eventually(() => guards(pid).some((other) => other !== first))).toBe(true)
        // It is told all at once, but it is told: killing both within the same millisecond is more than it can bear.
        yield* Effect.sleep("1 second")
        child.kill("SIGKILL")
        yield* died(child)
        yield* eventually(() => own.alive().length === 0 && readdirSync(base).length === 0)
        expect({ alive: own.alive(), files: readdirSync(base) }).toEqual({ alive: [], files: [] })
      })
    ))

  it.live("refuses to watch what nobody can mean", () =>
    Effect.gen(function*() {
      const guard = yield* SupervisorGuard
      for (const path of ["/", "", "relative", "/tmp/../etc", "/tmp//x", "/tmp/\0"]) {
        const error = yield* Effect.flip(Effect.scoped(guard.watch(Watched.Directory({ path }))))
        expect(error.reason).toMatchObject({ _tag: "InvalidArgument", field: "path" })
      }
    }).pipe(Effect.provide(NodeSupervisorGuard.layer)))

  it.live("refuses to watch a group that stands for more", () =>
    Effect.gen(function*() {
      const guard = yield* SupervisorGuard
      for (const pgid of [-7, -1, 0, 1, 2.5, NaN]) {
        const error = yield* Effect.flip(Effect.scoped(guard.watch(Watched.Group({ pgid, startTime: 1 }))))
        expect(error.reason).toMatchObject({ _tag: "InvalidArgument", field: "pgid" })
      }
    }).pipe(Effect.provide(NodeSupervisorGuard.layer)))

  it.live(
    "that cannot be started for want of descriptors is a typed error, and is started when there are some",
    () =>
      Effect.sync(() => {
        const { status, stderr, stdout } = spawnSync(
          "/bin/sh",
          ["-c", `ulimit -n 128; exec "$0" "$1"`, process.execPath, fixture("starved-guard.ts")],
          { encoding: "utf8", timeout: 120_000 }
        )
        expect({ status, stderr, lines: stdout.trim().split("\n") }).toEqual({
          status: 0,
          stderr: "",
          lines: ["it cannot be started: EMFILE", "watched", "none", "watched", "replaced"]
        })
      }),
    180_000
  )

  it.live("runs a program when it has cleared all else away, and only if we were killed", () =>
    withDirectory((base) =>
      Effect.gen(function*() {
        const start = (...how: ReadonlyArray<string>) => {
          const child = spawn(process.execPath, [fixture("heir.ts"), base, ...how], {
            stdio: ["ignore", "pipe", "inherit"]
          })
          let said = ""
          child.stdout.on("data", (data) => {
            said += String(data)
          })
          return { child, watches: eventually(() => said === "watched\n", 20_000) }
        }
        const inOrder = start("ended")
        yield* died(inOrder.child)
        expect(readdirSync(base)).toEqual([])
        writeFileSync(`${base}/first`, "")
        const { child, watches } = start()
        expect(yield* watches).toBe(true)
        child.kill("SIGKILL")
        expect(yield* eventually(() => existsSync(`${base}/told`), 10_000)).toBe(true)
        expect(readFileSync(`${base}/told`, "utf8").split("|")).toEqual(
          ["", base, "x y=z", "TERM", "a b", "", "é\n%s\\0101 $(id) `id` ;", "-n", ""]
        )
      })
    ))

  it.live("refuses to run what cannot be run", () =>
    Effect.gen(function*() {
      const guard = yield* SupervisorGuard
      const program = { command: "true", args: [], cwd: "/", env: {} }
      const refused = {
        cwd: { cwd: "here" },
        command: { command: "" },
        env: { env: { "A=B": "" } },
        args: { args: ["a\0b"] }
      }
      for (const [field, fault] of Object.entries(refused)) {
        const error = yield* Effect.flip(Effect.scoped(guard.watch(Watched.Program({ ...program, ...fault }))))
        expect(error.reason).toMatchObject({ _tag: "InvalidArgument", field })
      }
    }).pipe(Effect.provide(NodeSupervisorGuard.layer)))

  it.live("kills a whole group whose leader is gone, as long as a member carries the mark", () =>
    Effect.gen(function*() {
      const { guardScript } = yield* Effect.promise(() => import("../../src/process/internal/guardScript.ts"))
      const mark = `test-${process.pid}`
      const leader = spawn("/bin/sh", ["-c", "read -r _; sleep 4445 & env -i sleep 4446 & exit 0"], {
        detached: true,
        env: { ...process.env, [Mark.variable]: `${mark}.1` },
        stdio: ["pipe", "ignore", "ignore"]
      })
      const pgid = leader.pid ?? 0
      const startTime = readFileSync(`/proc/${pgid}/stat`, "latin1").replace(/^.*\) /s, "").split(" ")[19]
      leader.stdin.end("\n")
      yield* died(leader)
      const members = () =>
        readdirSync("/proc").filter((name) => {
          try {
            return new RegExp(`\\) [^Z] \\d+ ${pgid} `).test(readFileSync(`/proc/${name}/stat`, "latin1"))
          } catch {
            return false
          }
        })
      expect(members().length).toBe(2)
      const names = () => members().map((pid) => commandOf(Number(pid)))
      expect(yield* eventually(() => names().every((name) => name === "sleep"))).toBe(true)
      const guard = spawn("/bin/sh", ["-c", guardScript, "microvm-guard", mark], {
        stdio: ["pipe", "ignore", "ignore"]
      })
      guard.stdin.end(`1 group ${pgid} ${startTime}\n`)
      yield* died(guard)
      const left = members()
      left.forEach((pid) => process.kill(Number(pid), "SIGKILL"))
      expect(left).toEqual([])
    }))

  it.live(
    "finds the mark though a process has an environment without end",
    () =>
      withDirectory((base) =>
        Effect.gen(function*() {
          const { guardScript } = yield* Effect.promise(() => import("../../src/process/internal/guardScript.ts"))
          const mark = `test-${process.pid}-endless`
          // A search through all of them meets it. Of the limit it keeps what it is given, which root could raise.
          writeFileSync(
            `${base}/grep`,
            `#!/bin/sh\ncase $1 in -l*) [ "$(ulimit -t)" = 1 ] || ulimit -t 120; while :; do :; done ;; esac\nexec /bin/grep "$@"\n`,
            {
              mode: 0o755
            }
          )
          mkdirSync(`${base}/run`)
          const marked = spawn("/bin/sleep", ["4447"], { env: { [Mark.variable]: `${mark}.1` }, stdio: "ignore" })
          const guard = spawn("/bin/sh", ["-c", guardScript, "microvm-guard", mark], {
            env: { PATH: `${base}:/usr/bin:/bin` },
            stdio: ["pipe", "ignore", "ignore"]
          })
          const ends = Promise.all([once(marked, "exit"), once(guard, "exit")])
          guard.stdin.end(`1 directory ${base}/run\n`)
          const ended = yield* Effect.timeoutOption(Effect.promise(() => ends), "90 seconds")
          marked.kill("SIGKILL")
          guard.kill("SIGKILL")
          expect(ended).toMatchObject({ value: [[null, "SIGKILL"], [0, null]] })
          expect(readdirSync(base)).toEqual(["grep"])
        })
      ),
    120_000
  )

  it.live("survives garbage, forgets what it is told to forget, and does not follow links", () =>
    withDirectory((base) =>
      Effect.gen(function*() {
        const { guardScript } = yield* Effect.promise(() => import("../../src/process/internal/guardScript.ts"))
        mkdirSync(`${base}/precious`)
        writeFileSync(`${base}/precious/file`, "")
        mkdirSync(`${base}/run`)
        yield* Effect.promise(() =>
          import("node:fs/promises").then((fs) => fs.symlink(`${base}/precious`, `${base}/run/link`))
        )
        mkdirSync(`${base}/forgotten`)
        const child = spawn("/bin/sh", ["-c", guardScript, "microvm-guard", "no-such-mark"], {
          stdio: ["pipe", "ignore", "ignore"]
        })
        // Signals before its first line are nobody's: it has a session of its own.
        const ignoresTerm = () => {
          const mask = /^SigIgn:\s*(\w+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "latin1"))?.[1] ?? "0"
          return (BigInt(`0x${mask}`) >> 14n & 1n) === 1n
        }
        expect(yield* eventually(ignoresTerm)).toBe(true)
        child.stdin.write(Buffer.from([0, 1, 2, 255, 254, 10]))
        child.stdin.write(`\n\n$(touch ${base}/injected) x\n-1 directory ${base}/precious\n1;2 file x\n`)
        child.stdin.write(
          `3 directory $(touch\\0040${base}/injected)\n4 nonsense ${base}/precious\n5\n6 group x y\n7 cgroup\n`
        )
        child.stdin.write(`99999999999999999999 directory ${base}/precious\n`)
        child.stdin.write(`8 directory ${base}/forgotten\n8\n9 directory ${base}/run\n`)
        child.kill("SIGTERM")
        child.kill("SIGINT")
        child.kill("SIGHUP")
        child.stdin.end("10 directory")
        yield* died(child)
        expect(readdirSync(base).toSorted()).toEqual(["forgotten", "precious"])
        expect(readdirSync(`${base}/precious`)).toEqual(["file"])
        rmdirSync(`${base}/forgotten`)
      })
    ))
})
