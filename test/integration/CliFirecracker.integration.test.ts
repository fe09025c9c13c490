/**
 * The executable with `--backend firecracker`: on a fake that is a process of its own, with a guest behind its vsock, and on a
 * real one where that is named and KVM is usable.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import * as FakeFirecracker from "../../src/testing/FakeFirecracker.ts"
import * as FakeJailer from "../../src/testing/FakeJailer.ts"
import { bin, Executable, makeCache, microvm, type Options, processes, until } from "../cli/executable.ts"
import { Runs } from "./background.ts"

const longer = 300_000

const temporary = (name: string): string => NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), `microvm-${name}-`))

/** A place for machines, and what is left there of processes and files. */
class Place {
  readonly state = temporary("state-test")
  readonly cache = makeCache()

  left(): ReadonlyArray<string> {
    const below = processes().filter(({ directory }) => directory.startsWith(this.state))
    return [...below.map(({ line }) => line), ...NodeFs.readdirSync(this.state)]
  }

  remove(): void {
    for (const directory of [this.state, this.cache]) NodeFs.rmSync(directory, { recursive: true, force: true })
  }
}

/** Runs to the end, after which nothing may be left. */
const runIn = async (
  place: Place,
  binary: string,
  args: ReadonlyArray<string>,
  options: Options = {},
  act: (run: Executable) => Promise<void> = async () => {}
) => {
  await using running = new Executable(["--backend", "firecracker", ...args], {
    cache: place.cache,
    ...options,
    env: { MICROVM_FIRECRACKER_BIN: binary, MICROVM_FIRECRACKER_STATE_DIR: place.state, ...options.env }
  })
  await act(running)
  const ended = await running.end()
  await until(`nothing left of ${args.join(" ")}`, () => [...running.traces(), ...place.left()].length === 0)
  return { ...ended, stdout: running.stdout, stderr: running.stderr }
}

const buildImage = () => {
  const built = microvm("image", "build")
  assert.strictEqual(built.status, 0, built.stderr)
}

describe("microvm run --backend firecracker, on a fake", () => {
  const scope = Scope.makeUnsafe()
  let place: Place
  const install = (options: FakeFirecracker.Options = {}) =>
    Effect.runPromise(Scope.provide(FakeFirecracker.install({ guest: "agent", ...options }), scope))
  let fake: FakeFirecracker.Installed
  beforeAll(async () => {
    buildImage()
    place = new Place()
    fake = await install()
  }, 900_000)
  afterAll(async () => {
    place.remove()
    await Effect.runPromise(Scope.close(scope, Exit.void))
  })
  const machines = () => processes().filter(({ directory }) => directory.startsWith(place.state))
  const assume = { MICROVM_FIRECRACKER_KVM: "assume" }
  const run = (args: ReadonlyArray<string>, options: Options = {}, act?: (run: Executable) => Promise<void>) =>
    runIn(place, fake.binary, args, { ...options, env: { ...assume, ...options.env } }, act)

  it("runs a command, with what it reads and writes, and exits with its code", async () => {
    const echoed = await run(["--cold", "--", "cat"], { stdin: "from the host" })
    assert.deepStrictEqual([echoed.code, echoed.stdout], [0, "from the host"])
    const [first, ...others] = (await Effect.runPromise(fake.requests)).map(({ method, path }) => `${method} ${path}`)
    assert.strictEqual(first, "GET /version")
    assert.includeMembers(others, ["PUT /machine-config", "PUT /boot-source", "PUT /vsock", "PUT /actions"])
    assert.strictEqual((await run(["--cold", "--", "exit", "7"])).code, 7)
  }, longer)

  const ends: ReadonlyArray<readonly [what: string, args: ReadonlyArray<string>, code: number, told: RegExp]> = [
    ["that is not there", ["--", "nonesuch"], 127, /nonesuch/],
    ["that takes too long", ["--timeout", "1s", "--", "sleep", "60"], 124, /did not end within 1s/]
  ]
  it.each(ends)("tells of a command %s", async (_, args, code, told) => {
    const ended = await run(["--cold", ...args])
    assert.strictEqual(ended.code, code, ended.stderr)
    assert.match(ended.stderr, told)
  }, longer)

  it("restores machines from a golden one", async () => {
    const first = await run(["--", "echo", "first"])
    assert.deepStrictEqual([first.code, first.stdout], [0, "first\n"])
    assert.match(first.stderr, /making a golden machine/)
    const second = await run(["--", "echo", "second"])
    assert.deepStrictEqual([second.code, second.stdout], [0, "second\n"])
    assert.notMatch(second.stderr, /golden/)
    assert.match(second.stderr, /^microvm: restored in \d/m)
  }, longer)

  it.each(["SIGTERM", "SIGINT"] as const)("ends in order by %s", async (signal) => {
    const { code } = await run(["--cold", "--", "sleep", "60"], {}, async (running) => {
      await until("a machine", () => machines().length > 0)
      running.kill(signal)
    })
    assert.strictEqual(code, signal === "SIGTERM" ? 143 : 130)
  }, longer)

  it("leaves nothing when it is killed", async () => {
    const { signal } = await run(["--cold", "--", "sleep", "60"], {}, async (running) => {
      await until("a machine", () => machines().length > 0)
      running.kill("SIGKILL")
    })
    assert.strictEqual(signal, "SIGKILL")
  }, longer)

  it("goes on in the background, whatever becomes of its supervisor", async () => {
    await using runs = new Runs(bin)
    const env = {
      ...assume,
      MICROVM_FIRECRACKER_BIN: fake.binary,
      MICROVM_FIRECRACKER_STATE_DIR: place.state,
      MICROVM_BACKEND: "firecracker",
      MICROVM_CACHE_DIR: place.cache
    }
    const end = (...args: ReadonlyArray<string>) => runs.start(args, { env }).end
    const id = runs.name()
    const started = await end("run", "--detach", "--name", id, "--", "sleep", "60")
    assert.deepInclude(started, { code: 0, stdout: `${id}\n` }, started.stderr)
    assert.deepInclude(await end("exec", id, "--", "echo", "hello"), { code: 0, stdout: "hello\n" })

    const supervisor = runs.supervisor(id)
    process.kill(supervisor, "SIGKILL")
    await until("its end", () => !runs.processes().some(({ pid }) => pid === supervisor))
    const recovered = await end("recover")
    assert.strictEqual(recovered.code, 0, recovered.stderr)
    assert.notStrictEqual(runs.supervisor(id), supervisor)
    assert.deepInclude(await end("exec", id, "--", "echo", "again"), { code: 0, stdout: "again\n" })
    assert.deepInclude(await end("stop", "--force", id), { code: 0 })
    await runs.nothingLeft()
    assert.deepStrictEqual(place.left(), [])
  }, longer)

  const isRoot = process.geteuid?.() === 0
  if (!isRoot) console.warn("SKIPPED machines in jails: we are not root")
  it.skipIf(!isRoot)("runs commands in jails, booted and restored, and keeps none", async () => {
    const jails = temporary("jails-test")
    // The user of a jail has to get through.
    NodeFs.chmodSync(jails, 0o711)
    const { binary } = await Effect.runPromise(Scope.provide(FakeJailer.install(), scope))
    const env = {
      MICROVM_JAILER_BIN: binary,
      MICROVM_JAILER_UID: "54321",
      MICROVM_JAILER_GID: "54321",
      MICROVM_JAILER_CHROOT_BASE: jails,
      MICROVM_JAILER_CGROUP_PARENT: `test-cli-${process.pid}`
    }
    try {
      for (const how of [["--cold"], [], []]) {
        const { code, stderr, stdout } = await run([...how, "--", "echo", "jailed"], { env })
        assert.deepStrictEqual([code, stdout], [0, "jailed\n"], stderr)
      }
      const { code, stderr } = await run(["--detach", "--", "true"], { env })
      assert.notStrictEqual(code, 0)
      assert.match(stderr, /kept in jails.*leave out the jail/s)
      assert.deepStrictEqual(
        NodeFs.readdirSync(jails, { recursive: true }).filter((name) => String(name).includes("/")),
        []
      )
    } finally {
      NodeFs.rmSync(jails, { recursive: true })
    }
  }, longer)

  it("does not wait for the guest of a Firecracker that has been killed", async () => {
    const silent = await install({ guest: "none" })
    const { code, stderr } = await runIn(
      place,
      silent.binary,
      ["--cold", "--", "true"],
      { env: assume },
      async (running) => {
        await running.says("booting the guest")
        for (const { pid } of machines()) process.kill(pid, "SIGKILL")
        const begun = Date.now()
        await running.ended
        assert.isBelow(Date.now() - begun, 30_000)
      }
    )
    assert.strictEqual(code, 125)
    assert.match(stderr, /SIGKILL/)
  }, longer)

  it("says how Firecracker ended when it does, with its own last words", async () => {
    const dying = await install({ faults: [{ _tag: "Die", path: "/boot-source", moment: "Before", code: 148 }] })
    const { code, stderr } = await runIn(place, dying.binary, ["--cold", "--", "true"], { env: assume })
    assert.strictEqual(code, 125)
    assert.match(stderr, /its seccomp filter refused a system call.*exited with code 148/s)
  }, longer)

  it("refuses a host whose KVM is of no use, and says what to do", async () => {
    const unusable = await runIn(place, fake.binary, ["--cold", "--", "true"], { env: {} })
    if (unusable.code === 0) return console.warn("SKIPPED the refusal of a host without KVM: it is usable here")
    assert.strictEqual(unusable.code, 69, unusable.stderr)
  }, longer)
})

const real = process.env["FIRECRACKER_BIN"]
const hasKvm = /^flags\s*:.*\b(vmx|svm)\b/m.test(NodeFs.readFileSync("/proc/cpuinfo", "utf8")) &&
  NodeFs.existsSync("/dev/kvm")
const lacking = real === undefined
  ? "FIRECRACKER_BIN names no Firecracker"
  : hasKvm
  ? undefined
  : "KVM is not usable here"
if (lacking !== undefined) console.warn(`SKIPPED real guests on a real Firecracker: ${lacking}`)

describe.skipIf(lacking !== undefined)("microvm run --backend firecracker, on a real one", () => {
  let place: Place
  beforeAll(() => {
    buildImage()
    place = new Place()
  }, 900_000)
  afterAll(() => place.remove())

  it("runs commands in machines that boot and in machines that are restored", async () => {
    for (const how of [["--cold"], [], []]) {
      const { code, stderr, stdout } = await runIn(place, real ?? "", [...how, "--", "uname", "-s"])
      assert.deepStrictEqual([code, stdout], [0, "Linux\n"], stderr)
    }
  }, longer)
})
