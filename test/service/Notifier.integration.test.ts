import { afterEach, assert, beforeEach, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { execFileSync, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeNotifier from "../../src/service/NodeNotifier.ts"
import { type Notification, Notifier } from "../../src/service/Notifier.ts"
import { eventually, fixture, type Run, start, startFixture } from "./support/edge.ts"

let directory = ""
const path = process.env["PATH"] ?? "/usr/bin:/bin"

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "notify-"))
})

afterEach(() => {
  process.env["PATH"] = path
  rmSync(directory, { recursive: true })
})

const receive = async (address: string): Promise<Run> => {
  const receiver = start("python3", [fixture("edgeReceiver.py"), address])
  await receiver.said("bound")
  return receiver
}

/** Makes only this program of all there are findable. */
const onlyWith = (...commands: ReadonlyArray<string>): void => {
  const bin = join(directory, "bin")
  mkdirSync(bin)
  for (const command of commands) {
    // What is called python3 may be a script that chooses one.
    const find = command === "python3" ? "python3 -c 'import sys; print(sys.executable)'" : `command -v ${command}`
    symlinkSync(execFileSync("sh", ["-c", find]).toString().trim(), join(bin, command))
  }
  process.env["PATH"] = bin
}

const told = (
  options: NodeNotifier.Options,
  notifications: ReadonlyArray<Notification>
): Promise<ReadonlyArray<string>> => {
  const warnings: Array<string> = []
  const logger = Logger.layer([Logger.make(({ message }) => {
    warnings.push(String(message))
  })])
  return Effect.gen(function*() {
    const { notify } = yield* Notifier
    for (const notification of notifications) yield* notify(notification)
  }).pipe(
    Effect.provide(Layer.provideMerge(NodeNotifier.layerWith(options), logger)),
    Effect.as(warnings),
    Effect.runPromise
  )
}

const programs = ["systemd-notify", "perl", "python3"]
const here = programs.filter((command) => spawnSync("sh", ["-c", `command -v ${command}`]).status === 0)
if (here.length < programs.length) {
  console.warn(`skipped: ${programs.filter((command) => !here.includes(command)).join(", ")}, which is not on the PATH`)
}

describe.each(here)("by %s", (command) => {
  it.each(["path", "abstract name"])("reaches a socket by %s", async (kind) => {
    const socket = kind === "path" ? join(directory, "socket") : `@${directory}`
    await using receiver = await receive(socket)
    onlyWith(command)
    const warnings = await told({ socket }, [{ ready: true, status: "-n ünd so = weiter" }])
    assert.deepStrictEqual(warnings, [])
    await receiver.said("READY=1")
    await receiver.said("STATUS=-n ünd so = weiter")
  })
})

describe("the service manager", () => {
  it("is told everything, the last word included, in few messages", async () => {
    const socket = join(directory, "socket")
    await using receiver = await receive(socket)
    const many = Array.from({ length: 500 }, (_, index) => ({ status: `step ${index}` }))
    await told({ socket }, [{ ready: true }, ...many, { stopping: true, extendTimeout: "5 seconds" }])
    for (const line of ["READY=1", "STATUS=step 499", "STOPPING=1", "EXTEND_TIMEOUT_USEC=5000000"]) {
      await receiver.said(line)
    }
    assert.isBelow(receiver.stdout().split("datagram").length, 10)
  })

  it("that is not there costs one warning", async () => {
    const warnings = await told({ socket: join(directory, "nobody") }, [{ ready: true }])
    assert.lengthOf(warnings, 1)
    assert.include(warnings.join(""), `cannot be told how things stand: ${here[0]}: `)
  })

  it("without any program to send is a warning with a remedy", async () => {
    onlyWith()
    const warnings = await told({ socket: join(directory, "socket") }, [{ ready: true }])
    assert.lengthOf(warnings, 1)
    assert.match(warnings.join(""), /none of systemd-notify, perl, python3 is on the PATH: install one/)
  })

  it("that takes no more messages holds nothing up for long", async () => {
    const socket = join(directory, "socket")
    await using receiver = await receive(socket)
    receiver.kill("SIGSTOP")
    // A socket holds a few datagrams (net.unix.max_dgram_qlen), the rest block their sender.
    const fill = "import socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.setblocking(False)\n" +
      "try:\n  while True: s.sendto(b'x', sys.argv[1])\nexcept BlockingIOError: pass"
    execFileSync("python3", ["-c", fill, socket])
    const began = performance.now()
    const warnings = await told({ socket }, [{ ready: true }])
    assert.isBelow(performance.now() - began, 8000)
    assert.lengthOf(warnings, 1)
  })
})

describe("a service", () => {
  it("says that it is ready, alive and stopping to whom its environment names", async () => {
    const socket = join(directory, "socket")
    await using receiver = await receive(socket)
    await using run = startFixture("edge.ts", ["serve"], { env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000" } })
    await run.said("ready")
    await receiver.said("READY=1")
    await receiver.said("STATUS=Serving")
    assert.isTrue(await eventually(() => receiver.stdout().split("WATCHDOG=1").length > 3))
    run.kill("SIGTERM")
    const end = await run.end
    assert.deepStrictEqual([end.code, end.stderr], [10, ""])
    await receiver.said("STOPPING=1")
  })

  it("gives no sign of life for another process", async () => {
    const socket = join(directory, "socket")
    await using receiver = await receive(socket)
    await using other = startFixture("edge.ts", ["serve"], {
      env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: "200000", WATCHDOG_PID: "1" }
    })
    await receiver.said("READY=1")
    await Effect.runPromise(Effect.sleep("500 millis"))
    assert.notInclude(receiver.stdout(), "WATCHDOG")
    other.kill("SIGTERM")
    await other.end
  })

  it("runs the same where the variable names nothing that it knows", async () => {
    await using run = startFixture("edge.ts", ["code", "3"], { env: { NOTIFY_SOCKET: "vsock:2:1" } })
    const end = await run.end
    assert.deepStrictEqual([end.code, end.stderr], [3, ""])
  })

  it("leaves no sender behind", () => {
    const senders = readdirSync("/proc").filter((name) => /^\d+$/.test(name)).filter((pid) => {
      try {
        return execFileSync("cat", [`/proc/${pid}/environ`], { stdio: "pipe" }).includes(
          `NOTIFY_SOCKET=${tmpdir()}/notify-`
        )
      } catch {
        return false
      }
    })
    assert.deepStrictEqual(senders, [])
  })
})
