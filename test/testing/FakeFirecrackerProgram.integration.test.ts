import { assert, describe, it } from "@effect/vitest"
import { FakeFirecracker, FakeJailer } from "effect-microvm-runtime/testing"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { steps } from "../../src/testing/internal/fakeJailerSettings.ts"
import * as Client from "./firecrackerClient.ts"

const directory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => {
    const made = Fs.realpathSync(Fs.mkdtempSync(join(tmpdir(), "fake-")))
    Fs.chmodSync(made, 0o755)
    Fs.writeFileSync(join(made, "vmlinux"), "kernel")
    return made
  }),
  (made) => Effect.sync(() => Fs.rmSync(made, { recursive: true }))
)

const isAlive = (pid: number): boolean => {
  try {
    return !/^State:\s+Z/m.test(Fs.readFileSync(`/proc/${pid}/status`, "utf8"))
  } catch {
    return false
  }
}

const endOf = async (child: ChildProcess): Promise<number | string> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit")
  return child.signalCode ?? child.exitCode ?? -1
}

const run = Effect.fnUntraced(function*(
  binary: string,
  args: ReadonlyArray<string>,
  cwd: string,
  env: Readonly<Record<string, string>> = {}
) {
  const child = yield* Effect.acquireRelease(
    Effect.sync(() => spawn(binary, args, { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] })),
    (running) =>
      Effect.promise(() => {
        running.kill("SIGKILL")
        return endOf(running)
      })
  )
  let stdout = ""
  let stderr = ""
  child.stdout.on("data", (bytes) => {
    stdout += String(bytes)
  })
  child.stderr.on("data", (bytes) => {
    stderr += String(bytes)
  })
  return {
    child,
    ended: Effect.promise(() => endOf(child)),
    stdout: () => stdout,
    stderr: () => stderr
  }
})

const until = <A>(found: () => A, good: (value: A) => boolean) =>
  Effect.sync(found).pipe(
    Effect.repeat({ schedule: Schedule.spaced("10 millis"), until: good }),
    Effect.timeout("10 seconds")
  )

/** A Firecracker with its API in a directory of its own. */
const start = Effect.fnUntraced(function*(
  options: FakeFirecracker.Options = {},
  args: ReadonlyArray<string> = [],
  env: Readonly<Record<string, string>> = {}
) {
  const fake = yield* FakeFirecracker.install(options)
  const cwd = yield* directory
  const program = yield* run(fake.binary, ["--api-sock", "api.sock", ...args], cwd, env)
  const socketPath = join(cwd, "api.sock")
  const listening = Effect.scoped(Client.connect(socketPath)).pipe(
    Effect.retry(Schedule.spaced("10 millis")),
    Effect.timeout("10 seconds")
  )
  const ask = (method: string, path: string, body?: string) => Client.ask(socketPath, method, path, body)
  return { ...fake, ...program, cwd, socketPath, listening, ask }
})

const boot = Effect.fnUntraced(function*(
  ask: (method: string, path: string, body?: string) => Effect.Effect<string, Error>
) {
  yield* ask("PUT", "/boot-source", `{"kernel_image_path":"vmlinux","boot_args":"console=ttyS0 reboot=k"}`)
  assert.strictEqual(yield* ask("PUT", "/actions", `{"action_type":"InstanceStart"}`), "204")
})

describe("the program", () => {
  it.live.each(["SIGTERM", "SIGINT", "SIGKILL", "SIGQUIT"] as const)(
    "ends by %s at once, and leaves its socket",
    (signal) =>
      Effect.gen(function*() {
        const { child, ended, listening, socketPath } = yield* start()
        yield* listening
        child.kill(signal)
        assert.strictEqual(yield* ended, signal)
        assert.isTrue(Fs.existsSync(socketPath))
      }).pipe(Effect.scoped)
  )

  it.live.each([["SIGSEGV", 150], ["SIGBUS", 149], ["SIGHUP", 156], ["SIGXFSZ", 151]] as const)(
    "makes a code of %s, and counts it",
    ([signal, code]) =>
      Effect.gen(function*() {
        const { child, cwd, ended, listening } = yield* start({}, ["--metrics-path", "metrics"])
        yield* listening
        child.kill(signal)
        assert.strictEqual(yield* ended, code)
        assert.include(Fs.readFileSync(join(cwd, "metrics"), "utf8"), `"${signal.toLowerCase()}":1`)
      }).pipe(Effect.scoped)
  )

  it.live("does not start where a socket has been left", () =>
    Effect.gen(function*() {
      const { binary, child, cwd, ended, listening, socketPath } = yield* start()
      yield* listening
      child.kill("SIGKILL")
      yield* ended
      const { status, stderr } = spawnSync(binary, ["--api-sock", socketPath], { cwd, encoding: "utf8" })
      assert.deepStrictEqual([status, stderr], [1, `Error: RunWithApi(FailedToBindSocket("${socketPath}"))\n`])
    }).pipe(Effect.scoped))

  it.live("ends in order when its guest reboots, with what it had to say", () =>
    Effect.gen(function*() {
      const { ask, cwd, ended, listening, stderr, stdout } = yield* start(
        { console: ["hello from the guest"] },
        ["--id", "one", "--log-path", "log", "--level", "Debug", "--show-level", "--metrics-path", "metrics"]
      )
      yield* listening
      yield* boot(ask)
      yield* until(stdout, (text) => text.includes("hello from the guest"))
      yield* ask("PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`)
      assert.deepStrictEqual([yield* ended, stderr()], [0, ""])
      assert.notInclude(stdout(), "API server")
      const log = Fs.readFileSync(join(cwd, "log"), "utf8")
      assert.match(log, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} \[one:main:INFO\] Running Firecracker v1\.16\.1$/m)
      assert.match(log, /\[one:fc_api:DEBUG\] Total previous API call duration: \d+ us\.$/m)
      assert.match(log, /Vmm is stopping\.\n.*Firecracker exiting successfully\. exit_code=0\n$/)
      assert.lengthOf(Fs.readFileSync(join(cwd, "metrics"), "utf8").trimEnd().split("\n"), 2)
    }).pipe(Effect.scoped))

  it.live("is not kept alive by a vsock client that says nothing", () =>
    Effect.gen(function*() {
      const { ask, cwd, ended, listening } = yield* start({ guest: "echo" })
      yield* listening
      yield* ask("PUT", "/vsock", `{"guest_cid":3,"uds_path":"v.sock"}`)
      yield* boot(ask)
      const idle = yield* Client.connect(join(cwd, "v.sock"))
      assert.strictEqual(yield* ask("PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`), "204")
      assert.strictEqual(yield* Effect.timeout(idle.rest, "5 seconds"), "")
      assert.strictEqual(yield* Effect.timeout(ended, "5 seconds"), 0)
    }).pipe(Effect.scoped))

  it.live("needs no API", () =>
    Effect.gen(function*() {
      const { binary } = yield* FakeFirecracker.install({ console: ["up"] })
      const cwd = yield* directory
      Fs.writeFileSync(
        join(cwd, "config"),
        JSON.stringify({ "boot-source": { kernel_image_path: "vmlinux", boot_args: "console=ttyS0" }, drives: [] })
      )
      const { child, ended, stdout } = yield* run(binary, ["--no-api", "--config-file", "config"], cwd)
      yield* until(stdout, (text) => text.includes("up\r\n"))
      child.kill("SIGTERM")
      assert.strictEqual(yield* ended, "SIGTERM")
    }).pipe(Effect.scoped))

  it.live("is told more by its environment, and by what is updated", () =>
    Effect.gen(function*() {
      const fake = yield* FakeFirecracker.install({ version: "1.7.0" })
      const version = (env: Readonly<Record<string, string>>) =>
        spawnSync(fake.binary, ["--version"], { encoding: "utf8", env: { ...process.env, ...env } }).stdout.split(
          "\n"
        )[0]
      assert.strictEqual(version({ FAKE_FIRECRACKER: `{"version":"1.14.4"}` }), "Firecracker v1.14.4")
      yield* fake.update({ version: "1.12.1" })
      assert.strictEqual(version({}), "Firecracker v1.12.1")
    }).pipe(Effect.scoped))

  it.live("tells what all of it were asked", () =>
    Effect.gen(function*() {
      const { ask, connections, listening, requests } = yield* start()
      yield* listening
      yield* ask("PUT", "/logger", "{}")
      assert.deepStrictEqual(yield* requests, [{ connection: 2, method: "PUT", path: "/logger", body: "{}" }])
      assert.strictEqual((yield* connections).refused, 0)
    }).pipe(Effect.scoped))
})

describe("a fault of the program", () => {
  it.live("no socket, or a late one", () =>
    Effect.gen(function*() {
      const never = yield* start({ faults: [{ _tag: "NeverBind" }] })
      const late = yield* start({ faults: [{ _tag: "BindLate", millis: 300 }] })
      yield* late.listening
      assert.match(yield* late.ask("GET", "/"), /^200 /)
      assert.isFalse(Fs.existsSync(never.socketPath))
      assert.isTrue(isAlive(never.child.pid ?? 0))
    }).pipe(Effect.scoped))

  it.live("an end by a code or a signal", () =>
    Effect.gen(function*() {
      for (const [how, end] of [[{ code: 148 }, 148], [{ signal: "SIGSEGV" }, "SIGSEGV"]] as const) {
        const { ask, ended, listening } = yield* start({
          faults: [{ _tag: "Die", path: "/", moment: "Before", ...how }]
        })
        yield* listening
        assert.strictEqual(yield* ask("GET", "/"), "")
        assert.strictEqual(yield* ended, end)
      }
    }).pipe(Effect.scoped))

  it.live("no ear for SIGTERM", () =>
    Effect.gen(function*() {
      const { ask, child, ended, listening } = yield* start({ faults: [{ _tag: "IgnoreTerm" }] })
      yield* listening
      child.kill("SIGTERM")
      assert.match(yield* ask("GET", "/"), /^200 /)
      child.kill("SIGINT")
      assert.strictEqual(yield* ended, "SIGINT")
    }).pipe(Effect.scoped))
})

/** A user of our own needs no root, and any other does. */
const isRoot = process.geteuid?.() === 0
const user = isRoot ? 54_321 : process.geteuid?.() ?? 0
const group = isRoot ? 54_321 : process.getegid?.() ?? 0

describe("the jailer", () => {
  const jail = Effect.fnUntraced(function*(options: FakeJailer.Options, ...more: ReadonlyArray<string>) {
    const firecracker = yield* FakeFirecracker.install()
    const { binary } = yield* FakeJailer.install(options)
    const base = yield* directory
    const root = join(base, "firecracker", "one", "root")
    const args = ["--id", "one", "--exec-file", firecracker.binary, "--uid", `${user}`, "--gid", `${group}`]
      .concat("--chroot-base-dir", base, more)
    const read = (name: string) => Fs.existsSync(join(root, name)) ? Fs.readFileSync(join(root, name), "utf8") : ""
    yield* Effect.addFinalizer(() =>
      Effect.promise(async () => {
        const pid = Number(read("firecracker.pid"))
        if (pid === 0 || !isAlive(pid)) return
        process.kill(pid, "SIGKILL")
        while (isAlive(pid)) await new Promise((resolve) => setTimeout(resolve, 10))
      })
    )
    return { ...(yield* run(binary, args, base)), binary, args, base, root, read }
  })
  const socket = ["--", "--api-sock", "/run/a.sock"]

  it.live("makes a jail, and becomes what is in it", () =>
    Effect.gen(function*() {
      const { child, read, root, stderr } = yield* jail({}, "--resource-limit", "no-file=1000", ...socket)
      const socketPath = join(root, "run/a.sock")
      yield* until(() => [Fs.existsSync(socketPath), stderr()], ([is, said]) => is === true || said !== "")
      assert.strictEqual(stderr(), "")
      assert.strictEqual(read("firecracker.pid"), `${child.pid}`)
      assert.match(yield* Client.ask(socketPath, "GET", "/"), /^200 \{"id":"one"/)
      const status = Fs.readFileSync(`/proc/${child.pid}/status`, "utf8")
      assert.match(status, new RegExp(`^Uid:\\t${user}\\t${user}\\t${user}\\t${user}$`, "m"))
      assert.match(Fs.readFileSync(`/proc/${child.pid}/limits`, "utf8"), /^Max open files +1000 +1000 /m)
      assert.notInclude(Fs.readFileSync(`/proc/${child.pid}/environ`, "utf8"), "PATH=")
      const made = ["", "dev", "dev/net", "dev/net/tun", "dev/kvm", "run", "run/a.sock"]
      for (const name of made) assert.strictEqual(Fs.statSync(join(root, name)).uid, user, name)
      assert.strictEqual(Fs.statSync(join(root, "dev/kvm")).isCharacterDevice(), isRoot)
    }).pipe(Effect.scoped))

  it.live("keeps all paths below its root", () =>
    Effect.gen(function*() {
      const { read, root } = yield* jail({}, ...socket, "--log-path", "/log")
      const socketPath = join(root, "run/a.sock")
      yield* until(() => Fs.existsSync(socketPath), (is) => is)
      assert.match(read("log"), /Running Firecracker/)
      const kernel = `{"kernel_image_path":"/../vmlinux"}`
      assert.match(yield* Client.ask(socketPath, "PUT", "/boot-source", kernel), /No such file/)
      Fs.writeFileSync(join(root, "vmlinux"), "kernel")
      assert.strictEqual(yield* Client.ask(socketPath, "PUT", "/boot-source", kernel), "204")
    }).pipe(Effect.scoped))

  it.live.each(["--daemonize", "--new-pid-ns", "--daemonize --new-pid-ns"])(
    "with %s ends before it does",
    (modes) =>
      Effect.gen(function*() {
        const flags = modes.split(" ")
        const { child, ended, read, root } = yield* jail({}, ...flags, ...socket)
        assert.strictEqual(yield* ended, 0)
        const pid = Number(yield* until(() => read("firecracker.pid"), (text) => text !== ""))
        assert.notStrictEqual(pid, child.pid)
        yield* until(() => Fs.existsSync(join(root, "run/a.sock")), (is) => is)
        process.kill(pid, "SIGTERM")
        // The first process of a namespace hears nothing but SIGKILL from outside.
        if (flags.includes("--new-pid-ns")) {
          assert.match(yield* Client.ask(join(root, "run/a.sock"), "GET", "/"), /^200 /)
          process.kill(pid, "SIGKILL")
        }
        yield* until(() => isAlive(pid), (alive) => !alive)
      }).pipe(Effect.scoped)
  )

  it.live("does not find its jail used twice", () =>
    Effect.gen(function*() {
      const first = yield* jail({}, ...socket)
      yield* until(() => Fs.existsSync(join(first.root, "run/a.sock")), (is) => is)
      first.child.kill("SIGKILL")
      yield* first.ended
      const again = () => spawnSync(first.binary, first.args, { encoding: "utf8" })
      assert.include(
        again().stderr,
        "Failed to create /dev/net/tun via mknod inside the jail: File exists (os error 17)"
      )
      for (const device of ["net/tun", "kvm", "userfaultfd"]) {
        Fs.rmSync(join(first.root, "dev", device), { force: true })
      }
      const { status, stderr } = again()
      assert.strictEqual(status, 1)
      assert.strictEqual(
        stderr,
        "Failed to open file /firecracker.pid: File exists (os error 17)\n" +
          `Error: FileOpen("/firecracker.pid", Os { code: 17, kind: AlreadyExists, message: "File exists" })\n`
      )
    }).pipe(Effect.scoped))

  const text = "--id one --exec-file /bin/true --uid 1 --gid 1"
  it.live.each(
    [
      ["", "Failed to parse arguments: Argument 'exec-file' required, but not found."],
      [text.replace("one", "a_b"), "Invalid instance ID: Invalid char (_) at position 1"],
      [
        text.replace("one", "a".repeat(65)),
        "Invalid instance ID: Invalid len (65);  the length must be between 1 and 64"
      ],
      [
        text.replace("/bin/true", "/bin/nothing"),
        "Failed to canonicalize path /bin/nothing: No such file or directory (os error 2)"
      ],
      [text.replace("/bin/true", "/bin"), " is not a file"],
      [`${text.replace("uid 1", "uid x")} --chroot-base-dir /`, "Invalid uid: x"],
      [`${text.replace("gid 1", "gid -1")} --chroot-base-dir /`, "Invalid gid: -1"],
      [
        `${text} --chroot-base-dir /missing`,
        "Failed to canonicalize path /missing: No such file or directory (os error 2)"
      ],
      [`${text} --chroot-base-dir / --cgroup-version 2 --cgroup memory=1`, "Cgroup invalid file: memory"],
      [`${text} --chroot-base-dir / --cgroup cpu.shares`, "Invalid format for cgroups: cpu.shares"],
      [
        `${text} --chroot-base-dir / --parent-cgroup /a`,
        "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'"
      ],
      [`${text} --chroot-base-dir / --resource-limit x=1`, "Invalid resource argument: x"],
      [
        `${text} --chroot-base-dir / --resource-limit no-file=x`,
        "Invalid limit value for resource: x: invalid digit found in string"
      ],
      [
        `${text} --nope`,
        "Failed to parse arguments: Found argument 'nope' which wasn't expected, or isn't valid in this context."
      ],
      [`${text} --id two`, "Failed to parse arguments: The argument 'id' was provided more than once."]
    ] as const
  )("refuses %j", ([args, why]) =>
    Effect.gen(function*() {
      const cgroups = yield* directory
      Fs.writeFileSync(join(cgroups, "cgroup.controllers"), "cpu memory\n")
      Fs.writeFileSync(join(cgroups, "mounts"), `none ${cgroups} cgroup2 rw 0 0\nnone ${cgroups} cgroup rw,cpu 0 0\n`)
      const { binary } = yield* FakeJailer.install({ mounts: join(cgroups, "mounts") })
      const { status, stderr } = spawnSync(binary, args === "" ? [] : args.split(" "), { encoding: "utf8" })
      assert.strictEqual(status, 1)
      assert.include(stderr.split("\n")[0], why)
    }).pipe(Effect.scoped))

  it.live.each(steps.filter((step) => step !== "daemonize"))("fails to do this: %s", (step) =>
    Effect.gen(function*() {
      const { ended, stderr } = yield* jail({ faults: [{ step, errno: "ENOSPC" }] }, ...socket)
      assert.strictEqual(yield* ended, 1)
      assert.match(yield* until(stderr, (said) => said.endsWith("\n")), step === "limits" ? /Setrlimit/ : /os error 28/)
    }).pipe(Effect.scoped))

  it.live("says it as it was said before 1.13", () =>
    Effect.gen(function*() {
      const { ended, stderr } = yield* jail({ version: "1.12.1", faults: [{ step: "kvm" }] })
      assert.strictEqual(yield* ended, "SIGABRT")
      assert.match(
        yield* until(stderr, (said) => said.endsWith("\n")),
        /panicked at src\/jailer\/src\/main\.rs:\d+:\d+:\nJailer error: Failed to create \/dev\/kvm via mknod/
      )
    }).pipe(Effect.scoped))
})
