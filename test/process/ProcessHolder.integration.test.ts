import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { spawn as spawnNode } from "node:child_process"
import { once } from "node:events"
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import * as ShutdownPolicy from "../../src/lifecycle/ShutdownPolicy.ts"
import * as Mark from "../../src/process/Mark.ts"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { type HeldProcess, type HoldOptions, ProcessHolder } from "../../src/process/ProcessHolder.ts"
import { ProcessHost } from "../../src/process/ProcessHost.ts"
import * as ProcessIdentity from "../../src/process/ProcessIdentity.ts"
import * as Readiness from "../../src/process/Readiness.ts"
import { cgroupSupport, clearUp, eventually, fixture, hasCGroups, type Trial, trial } from "./support.ts"

const layer = Layer.provideMerge(NodeProcessHolder.layer, NodeProcessHost.layer)

interface World {
  readonly directory: string
  readonly own: Trial
  readonly sh: (script: string) => ChildProcess.StandardCommand
  readonly spawn: (
    script: string,
    options?: Partial<HoldOptions>
  ) => Effect.Effect<HeldProcess, unknown, ProcessHolder | Scope.Scope>
  /** Of the holder that is, or was, there. */
  readonly holder: () => number
}

const Written = Schema.fromJsonString(Schema.Struct({ holder: ProcessIdentity.ProcessIdentity }))

const isThere = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, "latin1"))
  } catch {
    return false
  }
}

/** A directory of its own, and nothing left of it at the end. */
const world = (
  name: string,
  run: (world: World) => Effect.Effect<void, unknown, ProcessHolder | ProcessHost | Scope.Scope>
) =>
  it.live(name, () =>
    Effect.gen(function*() {
      const own = trial()
      const base = mkdtempSync(join(tmpdir(), "holder-"))
      const directory = join(base, "held")
      mkdirSync(directory, { mode: 0o700 })
      const sh = (script: string) =>
        ChildProcess.make("sh", ["-c", script], {
          env: own.env,
          extendEnv: true,
          additionalFds: { fd3: { type: "duplex" } }
        })
      const exit = yield* Effect.exit(Effect.scoped(run({
        directory,
        own,
        sh,
        spawn: (script, options) => ProcessHolder.use((holder) => holder.spawn(sh(script), { directory, ...options })),
        holder: () => Schema.decodeSync(Written)(readFileSync(join(directory, "holder.json"), "utf8")).holder.pid
      })))
      const destruction = yield* ProcessHolder.use((holder) => holder.destroy({ directory }))
      const isClear = yield* clearUp(own)
      rmSync(base, { recursive: true })
      yield* exit
      expect(["Absent", "Destroyed"]).toContain(destruction._tag)
      expect(isClear).toBe(true)
    }).pipe(Effect.provide(layer)))

const attach = (directory: string) => ProcessHolder.use((holder) => holder.attach({ directory }))

/** Until so many bytes have come. */
const read = (socket: Socket.Socket, length: number) =>
  Effect.scoped(Effect.gen(function*() {
    const pull = yield* Socket.readerBytes(socket)
    let bytes = Buffer.alloc(0)
    while (bytes.length < length) bytes = Buffer.concat([bytes, ...(yield* pull)])
    return bytes
  }))

/** Before the answer comes what nobody has read yet of what was said to who had the socket before. */
const talk = (socket: Socket.Socket, text: string, end: string) =>
  Effect.scoped(Effect.gen(function*() {
    const pull = yield* Socket.readerBytes(socket)
    yield* (yield* socket.writer).write(text)
    let bytes = Buffer.alloc(0)
    while (!bytes.includes(end)) bytes = Buffer.concat([bytes, ...(yield* pull)])
    return bytes.toString("utf8")
  }))

const text = (stream: HeldProcess["stdout"]) => Stream.mkString(Stream.decodeText(stream))

/** A supervisor that can be killed. */
const supervisor = (directory: string, own: Trial, script: string, what = "") => {
  const child = spawnNode(process.execPath, [fixture("holding.ts"), directory, script, what], {
    env: { ...process.env, ...own.env },
    stdio: ["ignore", "pipe", "inherit"]
  })
  let said = ""
  child.stdout.setEncoding("utf8").on("data", (piece: string) => {
    said += piece
  })
  return {
    kill: Effect.promise(async () => {
      const gone = once(child, "exit")
      child.kill("SIGKILL")
      await gone
    }),
    says: (word: string) => Effect.map(eventually(() => said.includes(word), 20_000), (has) => expect(has).toBe(true))
  }
}

describe("a process that is held", () => {
  world(
    "tells its output from the start, and its status; its holder ends after it",
    ({ directory, holder, spawn }) =>
      Effect.gen(function*() {
        const held = yield* spawn("echo one; echo two >&2; exit 7")
        const pid = holder()
        expect(yield* held.exit).toEqual(ExitStatus.exited(7))
        expect(yield* text(held.stdout)).toBe("one\n")
        expect(yield* held.tail).toEqual({
          stdout: { text: "one\n", omittedBytes: 0 },
          stderr: { text: "two\n", omittedBytes: 0 }
        })
        expect(yield* eventually(() => !isThere(pid) && !existsSync(join(directory, "holder.sock")))).toBe(true)
        // Still held by us, and now from the files.
        expect((yield* held.tail).stderr.text).toBe("two\n")
        expect(yield* text(held.stderr)).toBe("two\n")
        expect(Option.isSome(yield* held.poll)).toBe(true)
        expect(yield* held.signal("SIGTERM")).toBeUndefined()
        expect((yield* held.shutdown())._tag).toBe("AlreadyExited")
      })
  )

  world("is told from its files once it has ended", ({ directory, spawn }) =>
    Effect.gen(function*() {
      yield* Effect.scoped(spawn("echo one; printf rest >&3; kill -KILL $$"))
      yield* eventually(() => existsSync(join(directory, "exit.json")))
      const held = yield* attach(directory)
      expect(yield* held.exit).toEqual(ExitStatus.signaled("SIGKILL", { coreDumped: false }))
      expect(yield* text(held.stdout)).toBe("one\n")
      expect((yield* read(yield* held.channel(3), 4)).toString("utf8")).toBe("rest")
      // As often as one likes, and by several.
      expect((yield* (yield* attach(directory)).tail).stdout.text).toBe("one\n")
    }))

  world(
    "outlives the kill of its supervisor, and goes on where it was",
    ({ directory, own }) =>
      Effect.gen(function*() {
        const first = supervisor(directory, own, "echo up; cat <&3 >&3; echo over; exit 3", "channel")
        yield* first.says("held")
        const taken = yield* Effect.flip(attach(directory))
        expect(taken).toMatchObject({ reason: { _tag: "HandTaken", directory } })
        yield* first.kill
        // At once, not some time later.
        const held = yield* attach(directory)
        expect((yield* held.tail).stdout.text).toBe("up\n")
        const channel = yield* held.channel(3)
        expect(yield* talk(channel, "ne\n", "ne\n")).toMatch(/^(half of a li)?ne\n$/)
        expect(yield* held.poll).toEqual(Option.none())
        expect((yield* held.shutdown())._tag).toBe("Graceful")
        expect(yield* held.exit).toMatchObject({ _tag: "Signaled", signal: "SIGTERM", observedBy: "wait" })
      })
  )

  world("is let go of by its scope, and can be taken again at once", ({ directory, spawn }) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const held = yield* Scope.provide(spawn("echo a; cat <&3; echo b"), scope)
      yield* Scope.close(scope, Exit.void)
      for (let n = 0; n < 20; n++) {
        const again = yield* Effect.scoped(attach(directory))
        expect(again.pid).toBe(held.pid)
      }
    }))

  world("is awaited and ended by who has let go of it, too", ({ directory, spawn }) =>
    Effect.gen(function*() {
      const first = yield* spawn("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done").pipe(
        Effect.tap((held) =>
          Readiness.awaitReady(held, Readiness.outputMatches(held, "stdout", /up/), { within: "5 seconds" })
        ),
        Effect.scoped
      )
      const second = yield* Effect.scoped(attach(directory))
      expect(yield* first.poll).toEqual(Option.none())
      const waiting = yield* Effect.forkChild(first.exit, { startImmediately: true })
      expect(yield* second.shutdown()).toMatchObject({ _tag: "Graceful", status: { _tag: "Exited", code: 7 } })
      expect(yield* Fiber.join(waiting)).toEqual(ExitStatus.exited(7))
      expect(yield* first.shutdown()).toMatchObject({ _tag: "AlreadyExited", status: { code: 7 } })
    }))

  world(
    "is lost to who has let go of it when its holder stands still, which is not said to be killed",
    ({ holder, spawn }) =>
      Effect.gen(function*() {
        const held = yield* Effect.scoped(spawn("sleep 1000"))
        process.kill(holder(), "SIGSTOP")
        yield* held.signal("SIGKILL")
        const why = "its holder has not written it down within 1 second"
        expect(yield* held.exit).toEqual(ExitStatus.lost(why, "identity"))
      })
  )

  world(
    "writes as much as it likes: the oldest is dropped, and it says how much",
    ({ spawn }) =>
      Effect.gen(function*() {
        const held = yield* spawn("head -c 50000000 /dev/zero; printf end", { tailBytes: 1000 })
        expect(yield* Effect.timeout(held.exit, "20 seconds")).toEqual(ExitStatus.exited(0))
        const { stdout } = yield* held.tail
        expect(stdout.omittedBytes).toBe(50_000_003 - 1000)
        expect(stdout.text).toBe(`${"\0".repeat(997)}end`)
      })
  )

  world(
    "is read to its end however long its tail is, in time that grows with it and no faster",
    ({ directory, spawn }) =>
      Effect.gen(function*() {
        const bytes = 2 ** 26
        yield* spawn(`head -c ${bytes} /dev/zero; exec sleep 1000`, { tailBytes: bytes })
        const take = ProcessHolder.use((holder) =>
          Stream.runFold(
            holder.follow({ directory, stream: "stdout", wait: false }),
            () => 0,
            (sum, piece) => sum + piece.bytes.length
          )
        )
        for (let got = 0; got < bytes; got = yield* take) yield* Effect.sleep("50 millis")
        const before = process.cpuUsage()
        expect(yield* take).toBe(bytes)
        const { system, user } = process.cpuUsage(before)
        // Joined anew with each piece of 64 KiB, they would take ten times as long.
        expect((system + user) / 1000).toBeLessThan(1500)
      })
  )

  world(
    "has a holder that ends, also where it can never write down how that was",
    ({ directory, holder, spawn }) =>
      Effect.gen(function*() {
        const held = yield* spawn("exec sleep 1000")
        const pid = holder()
        mkdirSync(join(directory, "exit.json.new"))
        yield* held.signal("SIGKILL")
        // Whoever has hold of it is told.
        expect(yield* Effect.timeout(held.exit, "20 seconds")).toMatchObject({ _tag: "Signaled", signal: "SIGKILL" })
        expect(isThere(pid)).toBe(true)
        expect(yield* eventually(() => !isThere(pid), 60_000)).toBe(true)
      })
  )

  world(
    "is followed by many, also without the hand, who know where something is missing",
    ({ directory, spawn }) =>
      Effect.gen(function*() {
        const holder = yield* ProcessHolder
        const held = yield* spawn(
          "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; head -c 300000 /dev/zero"
        )
        const follow = Effect.gen(function*() {
          let expected = 0
          let missing = 0
          let seen = 0
          yield* Stream.runForEach(holder.follow({ directory, stream: "stdout" }), ({ bytes, position }) =>
            Effect.sync(() => {
              missing += position - expected
              expected = position + bytes.length
              seen += bytes.length
            }))
          return { all: expected, sum: missing + seen }
        })
        const followers = yield* Effect.all([follow, follow, follow], { concurrency: 3 })
        expect(
          new Set(followers.map(({ all, sum }) =>
            all - sum
          ))
        ).toEqual(new Set([0]))
        const [one] = followers
        expect(one.all).toBe(
          300_000 + Array.from({ length: 2000 }, (_, n) => `line ${n}\n`).join("").length
        )
        yield* held.exit
      })
  )

  world(
    "keeps what it writes to a channel until somebody takes it, and waits when that is much",
    ({ directory, spawn }) =>
      Effect.gen(function*() {
        const bytes = 4_000_000
        yield* Effect.scoped(spawn(`seq 1000000 | head -c ${bytes} >&3; cat <&3`))
        yield* Effect.sleep("200 millis")
        const held = yield* attach(directory)
        const all = yield* read(yield* held.channel(3), bytes)
        const numbers = all.toString("utf8").split("\n").slice(0, -1)
        expect(all.length).toBe(bytes)
        expect(numbers.every((number, at) => number === String(at + 1))).toBe(true)
      })
  )

  world(
    "has one user of a channel at a time, and the next has the replay first",
    ({ spawn }) =>
      Effect.gen(function*() {
        const held = yield* spawn(`echo hello >&3; while read -r line <&3; do echo "got $line" >&3; done`, {
          replay: [3]
        })
        const socket = yield* held.channel(3)
        yield* Effect.scoped(Effect.gen(function*() {
          const pull = yield* Socket.readerBytes(socket)
          yield* pull
          expect(yield* Effect.flip(read(yield* held.channel(3), 1))).toMatchObject({
            reason: { _tag: "SocketOpenError" }
          })
        }))
        expect(yield* talk(socket, "it\n", "it\n")).toBe("hello\ngot it\n")
        expect((yield* read(socket, 13)).toString("utf8")).toBe("hello\ngot it\n")
      })
  )

  world("dies with its holder, and its status is lost", ({ directory, holder, own, spawn }) =>
    Effect.gen(function*() {
      const held = yield* spawn("echo here; sleep 1000 & wait")
      yield* eventually(() => own.alive().length >= 2)
      process.kill(holder(), "SIGKILL")
      expect(yield* Effect.timeout(held.exit, "5 seconds")).toEqual(
        ExitStatus.lost("its holder was killed", "identity")
      )
      const again = yield* attach(directory)
      expect(yield* again.exit).toEqual(ExitStatus.lost("its holder was killed", "identity"))
      expect((yield* again.tail).stdout.text).toBe("")
      // What it had started is ended by its group.
      expect((yield* ProcessHolder.use((one) => one.destroy({ directory })))._tag).toBe("Destroyed")
      expect(own.alive()).toEqual([])
    }))

  world(
    "is ended as any other process, with more time when it asks for it, and its holder is gone then",
    ({ directory, holder, spawn }) =>
      Effect.gen(function*() {
        const policy = ShutdownPolicy.signals({ grace: "50 millis" })
        const script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
        yield* Effect.scoped(Effect.flatMap(spawn(script), (first) => Stream.runHead(first.stdout)))
        const held = yield* ProcessHolder.use((one) => one.attach({ directory, policy }))
        const pid = holder()
        expect((yield* held.shutdown())._tag).toBe("Forced")
        expect(isThere(pid)).toBe(false)
        expect(existsSync(join(directory, "exit.json"))).toBe(true)
        expect(yield* held.exit).toMatchObject({ _tag: "Signaled", signal: "SIGKILL" })
      })
  )

  world(
    "is not harmed by those who speak nonsense to its holder",
    ({ directory, holder, spawn }) =>
      Effect.gen(function*() {
        const held = yield* spawn("echo up; cat <&3 >&3", { replay: [3] })
        const nonsense = [
          "",
          "\n",
          "{\n",
          "null\n",
          "x".repeat(100_000),
          `{"version":1,"op":"hold"`,
          ...[
            { version: 2, op: "hold" },
            { op: "hold" },
            { version: 1, op: "end" },
            { version: 1, op: "channel", fd: 3, hand: "mine" },
            { version: 1, op: "channel", fd: "3" },
            ...[1.5, -1, 1e300, null, "0"].map((from) => ({
              version: 1,
              op: "output",
              stream: "stdin",
              from,
              follow: true
            }))
          ].map((request) => `${JSON.stringify(request)}\n`)
        ]
        yield* Effect.forEach(nonsense, (words) =>
          Effect.promise(async () => {
            const socket = connect({ path: join(directory, "holder.sock") })
            socket.on("error", () => {})
            await once(socket, "connect")
            socket.write(words)
            setTimeout(() => socket.destroy(), 100)
            await once(socket, "close")
          }), { concurrency: "unbounded" })
        // And by more of them than it takes.
        const many = Array.from({ length: 200 }, () => connect({ path: join(directory, "holder.sock") }))
        many.forEach((socket) => socket.on("error", () => {}))
        yield* Effect.sleep("100 millis")
        many.forEach((socket) => socket.destroy())
        expect(yield* held.poll).toEqual(Option.none())
        expect(isThere(holder())).toBe(true)
        expect((yield* held.tail).stdout.text).toBe("up\n")
        expect(yield* talk(yield* held.channel(3), "ping", "ping")).toBe("ping")
        expect(readFileSync(join(directory, "holder.log"), "utf8")).toBe("")
      })
  )

  world(
    "ends when its directory is removed while nobody has hold of it",
    ({ directory, holder, spawn }) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const held = yield* Scope.provide(spawn("sleep 1000 & wait"), scope)
        const pid = holder()
        rmSync(directory, { recursive: true })
        // We have hold of it still.
        yield* Effect.sleep("3 seconds")
        expect(Option.isNone(yield* held.poll)).toBe(true)
        yield* Scope.close(scope, Exit.void)
        expect(yield* eventually(() => !isThere(held.pid) && !isThere(pid))).toBe(true)
      })
  )

  world(
    "ends with all that is in its cgroup when its directory is removed, where the kernel cannot kill that at once",
    ({ directory, own, spawn }) =>
      Effect.gen(function*() {
        // As before Linux 5.14.
        const cgroup = yield* Effect.acquireRelease(
          Effect.sync(() => mkdtempSync(join(tmpdir(), "old-cgroup-"))),
          (made) => Effect.sync(() => rmSync(made, { recursive: true }))
        )
        for (const name of ["cgroup.procs", "cgroup.events"]) writeFileSync(join(cgroup, name), "")
        yield* Effect.scoped(spawn("setsid sleep 1000 & sleep 1000 & wait", { cgroup: { path: cgroup } }))
        expect(yield* eventually(() => own.alive().length >= 3)).toBe(true)
        writeFileSync(join(cgroup, "cgroup.procs"), own.alive().join("\n"))
        rmSync(directory, { recursive: true })
        expect(yield* eventually(() => own.alive().length === 0)).toBe(true)
      })
  )

  world("starts in a directory of any length", ({ directory, own, sh }) =>
    Effect.gen(function*() {
      const deep = join(directory, "d".repeat(200), "e".repeat(200))
      mkdirSync(deep, { recursive: true, mode: 0o700 })
      const holder = yield* ProcessHolder
      yield* Effect.scoped(holder.spawn(sh("echo up; cat <&3"), { directory: deep }))
      const held = yield* holder.attach({ directory: deep })
      expect((yield* held.tail).stdout.text).toBe("up\n")
      yield* held.shutdown()
      expect(yield* eventually(() => own.alive().length === 0)).toBe(true)
    }))

  if (hasCGroups && cgroupSupport._tag === "Usable") {
    const { root } = cgroupSupport
    const inCGroup = Effect.acquireRelease(
      Effect.sync(() => {
        const cgroup = `${root}/held`
        mkdirSync(cgroup, { recursive: true })
        return cgroup
      }),
      (cgroup) =>
        Effect.sync(() => {
          rmdirSync(cgroup)
          rmdirSync(root)
        })
    )
    const tree = "setsid sleep 1000 & sleep 1000 & wait"

    world("starts in a cgroup of ours, its holder outside of it, and is killed with all that is in it", (
      { directory, holder, own, spawn }
    ) =>
      Effect.gen(function*() {
        const cgroup = yield* inCGroup
        const held = yield* spawn(tree, { cgroup: { path: cgroup } })
        expect(held.killScope).toMatchObject({ _tag: "CGroup", path: cgroup })
        yield* eventually(() => own.alive().length >= 2)
        const members = readFileSync(`${cgroup}/cgroup.procs`, "utf8").trim().split("\n").map(Number)
        expect(members).toContain(held.pid)
        expect(members).not.toContain(holder())
        expect((yield* ProcessHolder.use((one) => one.destroy({ directory })))._tag).toBe("Destroyed")
        expect(own.alive()).toEqual([])
      }))

    world(
      "ends with all that is in its cgroup when its directory is removed",
      ({ directory, own, spawn }) =>
        Effect.gen(function*() {
          const cgroup = yield* inCGroup
          yield* Effect.scoped(spawn(tree, { cgroup: { path: cgroup } }))
          expect(yield* eventually(() => own.alive().length >= 3)).toBe(true)
          rmSync(directory, { recursive: true })
          expect(yield* eventually(() => own.alive().length === 0)).toBe(true)
        })
    )
  }

  world("a hundred of them", ({ directory, own, sh }) =>
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      const places = Array.from({ length: 100 }, (_, n) => join(directory, `${n}`))
      places.forEach((place) => mkdirSync(place, { mode: 0o700 }))
      const [spawned] = yield* Effect.timed(
        Effect.forEach(places, (place) =>
          Effect.scoped(holder.spawn(sh("echo up; exec cat <&3"), { directory: place })), {
          concurrency: 4,
          discard: true
        })
      )
      const [attached, held] = yield* Effect.timed(
        Effect.forEach(places, (place) =>
          holder.attach({ directory: place }), { concurrency: "unbounded" })
      )
      const kept = places.reduce((sum, place) => {
        const { pid } = Schema.decodeSync(Written)(readFileSync(join(place, "holder.json"), "utf8")).holder
        const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8")
        return sum + Number(/^Pss: +(\d+)/m.exec(rollup)?.[1])
      }, 0)
      const [destroyed, fates] = yield* Effect.timed(
        Effect.forEach(places, (place) =>
          holder.destroy({ directory: place }), { concurrency: "unbounded" })
      )
      console.info(
        `100 held: spawned in ${Duration.format(spawned)}, attached in ${Duration.format(attached)}, destroyed in ` +
          `${Duration.format(destroyed)}, ${Math.round(kept / 100)} KiB each`
      )
      expect(fates.map(({ _tag }) => _tag)).toEqual(places.map(() => "Destroyed"))
      expect(own.alive()).toEqual([])
      const ends = yield* Effect.forEach(held, (one) => one.exit)
      expect(ends.every((end) => end._tag === "Signaled" && end.signal === "SIGKILL")).toBe(true)
    }))
})

describe("what cannot be held", () => {
  world("is refused with all that is wrong, before anything is done", ({ directory, sh }) =>
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      chmodSync(directory, 0o755)
      const command = ChildProcess.make("/nowhere/at-all", [], { stdin: "pipe", stdout: "inherit" })
      const error = yield* Effect.flip(
        holder.spawn(command, { directory, tailBytes: -1, cgroup: { v1: ["/nowhere/cgroup"] }, replay: [3] })
      )
      expect(
        error._tag === "ProcessError" &&
          [error.reason, ...error.others ?? []].map((reason) =>
            reason._tag === "InvalidArgument" ? reason.field : reason._tag
          )
      ).toEqual(["tailBytes", "directory", "cgroup", "NotFound"])
      const other = yield* Effect.flip(
        holder.spawn(ChildProcess.make("sh", [], { stdin: "pipe", stdout: "inherit" }), { directory: "x", replay: [3] })
      )
      expect(other.message).toContain(`directory: "x": it is not absolute`)
      expect(other.message).toContain("stdin: ")
      expect(other.message).toContain("stdout, stderr: ")
      expect(other.message).toContain("replay: 3: ")
      expect(readdirSync(directory)).toEqual([])
      chmodSync(directory, 0o700)
      yield* Effect.scoped(holder.spawn(sh("cat <&3"), { directory }))
      // A second one leaves the first alone.
      const second = yield* Effect.flip(holder.spawn(sh("true"), { directory }))
      expect(second.message).toContain("give an empty directory")
      expect(yield* (yield* attach(directory)).poll).toEqual(Option.none())
    }))

  world("that cannot be started says why, and no holder stays", ({ directory, own, sh }) =>
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      const program = join(directory, "program")
      writeFileSync(program, "#!/bin/sh\ntrue\n", { mode: 0o755 })
      const cwd = join(directory, "cwd")
      mkdirSync(cwd, { mode: 0o700 })
      const place = join(directory, "place")
      mkdirSync(place, { mode: 0o700 })
      // More arguments than execve(2) takes.
      const error = yield* Effect.flip(
        holder.spawn(ChildProcess.make("sh", ["-c", "true", "x".repeat(3_000_000)]), { directory: place })
      )
      expect(error).toMatchObject({ reason: { _tag: "SpawnFailed", code: "E2BIG" } })
      expect(own.alive()).toEqual([])
      expect((yield* holder.destroy({ directory: place }))._tag).toBe("Absent")
      yield* Effect.flip(holder.spawn(sh("true"), { directory: place }))
    }))

  world("attach says what is not there", ({ directory }) =>
    Effect.gen(function*() {
      expect(yield* Effect.flip(attach(directory))).toMatchObject({ reason: { _tag: "NotHeld" } })
      expect(yield* Effect.flip(attach(join(directory, "no")))).toMatchObject({ reason: { _tag: "NotHeld" } })
      writeFileSync(join(directory, "holder.json"), "{")
      expect(yield* Effect.flip(attach(directory))).toMatchObject({ reason: { _tag: "HolderFailed" } })
      expect((yield* ProcessHolder.use((one) => one.destroy({ directory })))._tag).toBe("Stuck")
      rmSync(join(directory, "holder.json"))
    }))

  world("one of another boot is lost, and nobody is touched", ({ directory, spawn }) =>
    Effect.gen(function*() {
      const held = yield* Effect.scoped(spawn("cat <&3"))
      const file = join(directory, "holder.json")
      const written = readFileSync(file, "utf8")
      rmSync(join(directory, "holder.sock"))
      writeFileSync(file, written.replaceAll(held.identity.bootId, "an earlier boot"))
      const again = yield* attach(directory)
      expect(yield* again.exit).toEqual(ExitStatus.lost("the host was started anew since", "identity"))
      yield* again.signal("SIGKILL")
      expect((yield* ProcessHolder.use((one) => one.destroy({ directory })))._tag).toBe("Absent")
      expect(isThere(held.pid)).toBe(true)
      writeFileSync(file, written)
    }))
})

describe("destroy", () => {
  world("leaves nothing, whenever the supervisor was killed", ({ directory, own }) =>
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      for (let round = 0; round < 16; round++) {
        const place = join(directory, `${round}`)
        mkdirSync(place, { mode: 0o700 })
        const one = supervisor(place, own, "sleep 1000 & setsid sleep 1000 & wait")
        yield* one.says("starting")
        yield* Effect.sleep(round * 15)
        yield* one.kill
        const dry = yield* holder.destroy({ directory: place, dryRun: true })
        const fate = yield* holder.destroy({ directory: place })
        expect(["Absent", "Destroyed"]).toContain(fate._tag)
        expect([fate._tag, "Absent"]).toContain(dry._tag)
        expect(yield* eventually(() => own.alive().length === 0)).toBe(true)
        expect((yield* holder.destroy({ directory: place }))._tag).toBe("Absent")
      }
    }))

  world("has nothing to end where one was interrupted as it started", ({ directory, sh }) =>
    Effect.gen(function*() {
      const holder = yield* ProcessHolder
      const inside = (place: string) => (pid: string): boolean => {
        try {
          return readlinkSync(`/proc/${pid}/cwd`).startsWith(place) && isThere(Number(pid))
        } catch {
          return false
        }
      }
      for (let round = 0; round < 16; round++) {
        const place = join(directory, `${round}`)
        mkdirSync(place, { mode: 0o700 })
        const { args, command: program, options } = sh("sleep 1000 & setsid sleep 1000 & wait")
        const command = ChildProcess.make(program, args, { ...options, cwd: place })
        let isUp = false
        const launch = Effect.tap(holder.spawn(command, { directory: place }), () => Effect.sync(() => (isUp = true)))
        yield* Effect.scoped(launch).pipe(Effect.timeoutOption(round * 10))
        // At once, unless it came up.
        const { _tag: fate } = yield* holder.destroy({ directory: place, dryRun: true })
        expect(fate).toBe(isUp ? "Destroyed" : "Absent")
        if (isUp) yield* holder.destroy({ directory: place })
        expect(readdirSync("/proc").filter(inside(place))).toEqual([])
      }
    }))

  world(
    "does not kill another process that has the pid of a holder that is gone",
    ({ directory, own }) =>
      Effect.gen(function*() {
        const stranger = spawnNode("sleep", ["1000"], { env: { ...process.env, ...own.env } })
        const marked = (mark: string) =>
          spawnNode("sleep", ["1000"], { env: { ...process.env, ...own.env, [Mark.variable]: mark } })
        const left = marked("held-1.1")
        // Before its execve(2), the child has the environment of the holder.
        const early = marked("held-1.1-holder")
        const host = yield* ProcessHost
        const { startTime } = yield* Effect.fromOption(yield* host.inspect(stranger.pid ?? 0))
        // As it is when the holder was killed just after it had started its child.
        const holder = { bootId: host.bootId, pid: stranger.pid, startTime: startTime - 1 }
        writeFileSync(join(directory, "holder.json"), JSON.stringify({ version: 1, holder, mark: "held-1.1" }))
        expect((yield* ProcessHolder.use((one) => one.destroy({ directory })))._tag).toBe("Destroyed")
        expect(own.alive()).toEqual([stranger.pid])
        expect([left, early].filter(({ pid }) => isThere(pid ?? 0))).toEqual([])
        expect(stranger.kill("SIGKILL")).toBe(true)
      })
  )

  world("ends a holder that does not listen any more", ({ directory, holder, own, spawn }) =>
    Effect.gen(function*() {
      yield* Effect.scoped(spawn("sleep 1000"))
      process.kill(holder(), "SIGSTOP")
      expect((yield* Effect.timeout(ProcessHolder.use((one) => one.destroy({ directory })), "8 seconds"))._tag).toBe(
        "Destroyed"
      )
      expect(own.alive()).toEqual([])
    }))
})
