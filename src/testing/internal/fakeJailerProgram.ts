/**
 * The program behind the command `jailer` of a fake: `node fakeJailerProgram.ts OPTIONS [ARGUMENT…]`. It leaves what a jailer leaves,
 * but no process can live in so empty a directory: a fake Firecracker is told where its root is, and keeps to it.
 */
import { spawn, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { type Argument, BadArguments, badId, parse } from "./fakeFirecrackerArguments.ts"
import { numbers } from "./fakeFirecrackerSettings.ts"
import { ioError } from "./fakeFirecrackerWorld.ts"
import * as Cgroup from "./fakeJailerCgroup.ts"
import { JailerError, refuse } from "./fakeJailerError.ts"
import { type JailerSettings, readSettings, type Step } from "./fakeJailerSettings.ts"

const known: ReadonlyArray<Argument> = [
  ...["id", "exec-file", "uid", "gid"].map((name): Argument => ({ name, kind: "value", required: true })),
  ...["chroot-base-dir", "netns", "cgroup-version", "parent-cgroup"].map((name): Argument => ({ name, kind: "value" })),
  ...["daemonize", "new-pid-ns", "version"].map((name): Argument => ({ name, kind: "flag" })),
  ...["cgroup", "resource-limit"].map((name): Argument => ({ name, kind: "values" }))
]

const nsfs = 0x6e736673

interface Env {
  readonly id: string
  readonly chroot: string
  readonly execFile: string
  readonly execName: string
  readonly uid: number
  readonly gid: number
  readonly netns: string | undefined
  readonly daemonize: boolean
  readonly newPidNs: boolean
  readonly cgroups: ReadonlyArray<Cgroup.Cgroup>
  readonly limits: { readonly fsize: number | undefined; readonly noFile: number }
  readonly extra: ReadonlyArray<string>
}

const canonical = (path: string): string => {
  try {
    return Fs.realpathSync(path)
  } catch (error) {
    throw refuse("Canonicalize", `Failed to canonicalize path ${path}: %s`, [path], error)
  }
}

const number = (text: string, type: "Uid" | "Gid"): number => {
  if (/^\+?\d+$/.test(text) && Number(text) < 2 ** 32) return Number(text)
  throw refuse(type, `Invalid ${type.toLowerCase()}: ${text}`, [text])
}

const limitsOf = (all: ReadonlyArray<string>): Env["limits"] => {
  let fsize: number | undefined
  let noFile = 2048
  for (const one of all) {
    const at = one.indexOf("=")
    if (at < 0) throw refuse("ResLimitFormat", `Invalid format for resources limits: ${one}`, [one])
    const name = one.slice(0, at)
    const value = one.slice(at + 1)
    if (!/^\+?\d+$/.test(value)) {
      const why = value === "" ? "cannot parse integer from empty string" : "invalid digit found in string"
      throw refuse("ResLimitValue", `Invalid limit value for resource: ${value}: ${why}`, [value, why])
    }
    if (name === "fsize") fsize = Number(value)
    else if (name === "no-file") noFile = Number(value)
    else throw refuse("ResLimitArgument", `Invalid resource argument: ${name}`, [name])
  }
  return { fsize, noFile }
}

const environmentOf = (settings: JailerSettings, argv: ReadonlyArray<string>): Env | "help" | "version" => {
  const given = (() => {
    try {
      return parse(known, argv)
    } catch (error) {
      if (!(error instanceof BadArguments)) throw error
      throw new JailerError(`Failed to parse arguments: ${error.message}`, `ArgumentParsing(${error.debug})`)
    }
  })()
  if (given.help) return "help"
  if (given.version) return "version"
  const text = (name: string) => given.value(name) ?? ""
  const [minor] = numbers(settings.version)

  const id = text("id")
  const wrongId = badId(id)
  if (wrongId !== undefined) {
    throw new JailerError(`Invalid instance ID: ${wrongId.text}`, `InvalidInstanceId(${wrongId.debug})`)
  }
  const execFile = canonical(text("exec-file"))
  if (!Fs.statSync(execFile).isFile()) throw refuse("NotAFile", `${execFile} is not a file`, [execFile])
  const execName = Path.basename(execFile)
  if (minor < 13 && !execName.includes("firecracker")) {
    throw refuse(
      "ExecFileName",
      `Invalid filename. The filename of \`--exec-file\` option must contain "firecracker": ${execName}`,
      [execName]
    )
  }
  const base = canonical(given.value("chroot-base-dir") ?? "/srv/jailer")
  if (!Fs.statSync(base).isDirectory()) throw refuse("NotADirectory", `${base} is not a directory`, [base])
  const uid = number(text("uid"), "Uid")
  const gid = number(text("gid"), "Gid")
  const parent = given.value("parent-cgroup") ?? execName
  const cgroups = Cgroup.plan({
    mounts: settings.mounts,
    version: given.value("cgroup-version") ?? "1",
    parent,
    id,
    properties: given.values("cgroup") ?? []
  })
  return {
    id,
    chroot: Path.join(base, execName, id, "root"),
    execFile,
    execName,
    uid,
    gid,
    netns: given.value("netns"),
    daemonize: given.flag("daemonize"),
    newPidNs: given.flag("new-pid-ns"),
    cgroups,
    limits: limitsOf(given.values("resource-limit") ?? []),
    extra: given.extra
  }
}

const chown = (path: string, shown: string, { gid, uid }: Env): void => {
  try {
    // -1, which is this, changes nothing.
    Fs.chownSync(path, uid === 2 ** 32 - 1 ? -1 : uid, gid === 2 ** 32 - 1 ? -1 : gid)
  } catch (error) {
    throw refuse("ChangeFileOwner", `Failed to change owner for ${shown}: %s`, [shown], error)
  }
}

const copyExecutable = (env: Env, version: string): void => {
  const to = Path.join(env.chroot, env.execName)
  const [minor, patch] = numbers(version)
  // What lies there already was followed and written to before a fix of early 2026.
  if (minor < 13 || (minor === 13 && patch < 2) || (minor === 14 && patch < 1)) {
    try {
      Fs.writeFileSync(to, Fs.readFileSync(env.execFile))
      return Fs.chmodSync(to, Fs.statSync(env.execFile).mode & 0o7777)
    } catch (error) {
      throw refuse("Copy", `Failed to copy ${env.execFile} to ${to}: %s`, [env.execFile, to], error)
    }
  }
  const { O_CREAT, O_NOFOLLOW, O_WRONLY } = Fs.constants
  const open = (path: string, flags: number, mode: number) => {
    try {
      return Fs.openSync(path, flags, mode)
    } catch (error) {
      throw refuse("Open", `Failed to open ${path}: %s`, [path], error)
    }
  }
  const content = Fs.readFileSync(env.execFile)
  const target = open(to, O_WRONLY | O_CREAT | O_NOFOLLOW, Fs.statSync(env.execFile).mode & 0o7777)
  try {
    if (Fs.fstatSync(target).nlink > 1) throw refuse("HardLink", `Detected hard link at: ${to}`, [to])
    chown(to, to, env)
    Fs.writeSync(target, content)
  } finally {
    Fs.closeSync(target)
  }
}

const joinNamespace = (path: string): void => {
  try {
    Fs.closeSync(Fs.openSync(path, "r"))
  } catch (error) {
    throw refuse("FileOpen", `Failed to open file ${path}: %s`, [path], error)
  }
  if (Fs.statfsSync(path).type === nsfs) return
  const error = Object.assign(new Error("EINVAL"), { code: "EINVAL" })
  throw refuse("SetNetNs", "Failed to join network namespace: netns: %s", [], error)
}

const makeFolders = (env: Env): void => {
  for (const folder of ["/", "/dev", "/dev/net", "/run"]) {
    const path = Path.join(env.chroot, folder)
    try {
      Fs.mkdirSync(path, { recursive: true })
      Fs.chmodSync(path, 0o700)
    } catch (error) {
      throw refuse("CreateDir", `Failed to create directory ${folder}: %s`, [folder], error)
    }
    chown(path, folder, env)
  }
}

const userfaultfd = (): number | undefined => {
  const found = /^ *(\d+) userfaultfd$/m.exec(Fs.readFileSync("/proc/misc", "utf8"))?.[1]
  return found === undefined ? undefined : Number(found)
}

/** A node for a device; where that is not allowed, a file in its place. */
const makeNode = (env: Env, device: string, major: number, minor: number): void => {
  const path = Path.join(env.chroot, device)
  try {
    Fs.closeSync(Fs.openSync(path, Fs.constants.O_CREAT | Fs.constants.O_EXCL | Fs.constants.O_WRONLY, 0o600))
  } catch (error) {
    throw refuse("MknodDev", `Failed to create ${device} via mknod inside the jail: %s`, [device], error, "first")
  }
  if (process.getuid?.() === 0) {
    const aside = `${path}~`
    const { status } = spawnSync("/bin/mknod", ["-m", "600", aside, "c", String(major), String(minor)], {
      stdio: "ignore"
    })
    if (status === 0) Fs.renameSync(aside, path)
  }
  chown(path, device, env)
}

const makeDevices = (env: Env, at: (step: Step) => void): void => {
  at("tun")
  makeNode(env, "/dev/net/tun", 10, 200)
  at("kvm")
  makeNode(env, "/dev/kvm", 10, 232)
  try {
    makeNode(env, "/dev/urandom", 1, 9)
  } catch (error) {
    if (!(error instanceof JailerError)) throw error
    Fs.writeSync(
      1,
      `Warning! Could not create /dev/urandom device inside jailer: ${error.message}.\nMMDS version 2 will not be available to use.\n`
    )
  }
  at("userfaultfd")
  const minor = userfaultfd()
  if (minor !== undefined) makeNode(env, "/dev/userfaultfd", 10, minor)
}

const writePid = (env: Env, pid: number): void => {
  const shown = `/${env.execName}.pid`
  try {
    Fs.writeFileSync(Path.join(env.chroot, shown), String(pid), { flag: "wx" })
  } catch (error) {
    throw refuse("FileOpen", `Failed to open file ${shown}: %s`, [shown], error)
  }
}

const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`

/** As a shell has it: limits, and then the program in place of the shell. */
const commandOf = (env: Env, before: string): ReadonlyArray<string> => {
  const micros = String(process.hrtime.bigint() / 1000n)
  const words = [
    Path.join(env.chroot, env.execName),
    ...`--id ${env.id} --start-time-us ${micros} --start-time-cpu-us 0 --parent-cpu-time-us 0`.split(" "),
    ...env.extra
  ]
  const fsize = env.limits.fsize === undefined ? "" : `ulimit -f ${Math.ceil(env.limits.fsize / 512)}; `
  return ["-c", `ulimit -n ${env.limits.noFile}; ${fsize}${before}exec ${words.map(quoted).join(" ")}`]
}

const checkExecutable = (env: Env): void => {
  const bad = (code: string) =>
    refuse("Exec", "Failed to exec into Firecracker: %s", [], Object.assign(new Error(code), { code }))
  if ((Fs.statSync(Path.join(env.chroot, env.execName)).mode & 0o111) === 0) throw bad("EACCES")
  if (env.uid === 2 ** 32 - 1 || env.gid === 2 ** 32 - 1) throw bad("EINVAL")
}

const run = (env: Env, settings: JailerSettings): void => {
  const at = (step: Step): void => {
    const fault = settings.faults.find((one) => one.step === step)
    if (fault === undefined) return
    if (fault.signal !== undefined) process.kill(process.pid, fault.signal)
    const error = Object.assign(new Error(step), { code: fault.errno ?? "EPERM" })
    switch (step) {
      case "chroot":
        throw refuse("CreateDir", `Failed to create directory ${env.chroot}: %s`, [env.chroot], error)
      case "copy":
        throw refuse("Open", `Failed to open ${env.execFile}: %s`, [env.execFile], error)
      case "netns":
        throw refuse("SetNetNs", "Failed to join network namespace: netns: %s", [], error)
      case "limits":
        throw refuse("Setrlimit", "Failed to set limit for resource: number of file descriptors", [
          "number of file descriptors"
        ])
      case "cgroup":
        throw refuse("CreateDir", `Failed to create directory ${env.execName}: %s`, [env.execName], error)
      case "mount":
        throw refuse("UnshareNewNs", "Failed to unshare into new mount namespace: %s", [], error)
      case "folders":
        throw refuse("ChangeFileOwner", "Failed to change owner for /: %s", ["/"], error)
      case "tun":
      case "kvm":
      case "userfaultfd": {
        const device = step === "tun" ? "/dev/net/tun" : `/dev/${step}`
        throw refuse("MknodDev", `Failed to create ${device} via mknod inside the jail: %s`, [device], error, "first")
      }
      case "daemonize":
        throw refuse("Daemonize", "Failed to daemonize: %s", [], error)
      case "pid":
        throw refuse("FileOpen", `Failed to open file /${env.execName}.pid: %s`, [`/${env.execName}.pid`], error)
      case "exec":
        throw refuse("Exec", "Failed to exec into Firecracker: %s", [], error)
    }
  }
  at("chroot")
  try {
    Fs.mkdirSync(env.chroot, { recursive: true })
  } catch (error) {
    throw refuse("CreateDir", `Failed to create directory ${env.chroot}: %s`, [env.chroot], error)
  }
  at("copy")
  copyExecutable(env, settings.version)
  at("netns")
  if (env.netns !== undefined) joinNamespace(env.netns)
  at("limits")
  at("cgroup")
  Cgroup.setUp(env.cgroups, process.pid)
  at("mount")
  at("folders")
  makeFolders(env)
  makeDevices(env, at)

  const environment = {
    FAKE_FIRECRACKER_JAIL: JSON.stringify({
      root: env.chroot,
      uid: env.uid,
      gid: env.gid,
      first: env.newPidNs
    })
  }
  if (env.daemonize) {
    at("daemonize")
    const failed = settings.faults.find((one) => one.step === "pid" || one.step === "exec")
    const pidFile = quoted(Path.join(env.chroot, `${env.execName}.pid`))
    // Nobody waits for it: the jailer has ended before this is known to work.
    const before = `sleep 0.05; ${
      failed?.step === "pid" ? "exit 1; " : ""
    }set -C; printf %s $$ > ${pidFile} || exit 1; ${failed?.step === "exec" ? "exit 1; " : ""}`
    // It leads no session, nor a group.
    const words = ["-c", `"$0" "$@" &`, "/bin/sh", ...commandOf(env, before)]
    spawn("/bin/sh", words, { cwd: env.chroot, detached: true, env: environment, stdio: "ignore" }).unref()
    return
  }
  if (env.newPidNs) {
    const child = spawn("/bin/sh", commandOf(env, ""), { cwd: env.chroot, env: environment, stdio: "inherit" })
    child.unref()
    at("pid")
    writePid(env, child.pid ?? 0)
    return
  }
  at("pid")
  writePid(env, process.pid)
  at("exec")
  checkExecutable(env)
  process.chdir(env.chroot)
  process.execve?.("/bin/sh", ["/bin/sh", ...commandOf(env, "")], environment)
}

const main = ([optionsFile = "", ...argv]: ReadonlyArray<string>): void => {
  const settings = readSettings(Fs.readFileSync(optionsFile, "utf8"))
  try {
    const env = environmentOf(settings, argv)
    if (typeof env === "string") {
      Fs.writeSync(1, `Jailer v${settings.version}\n\n`)
      return
    }
    run(env, settings)
  } catch (error) {
    const told = error instanceof JailerError ? error : new JailerError(ioError(error).text, ioError(error).debug)
    if (numbers(settings.version)[0] >= 13 || told.debug.startsWith("ArgumentParsing")) {
      Fs.writeSync(2, `${told.message}\nError: ${told.debug}\n`)
      process.exitCode = 1
      return
    }
    const hint = "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace"
    const thread = `thread 'main' (${process.pid})`
    Fs.writeSync(2, `\n${thread} panicked at src/jailer/src/main.rs:355:27:\nJailer error: ${told.message}\n${hint}\n`)
    process.kill(process.pid, "SIGABRT")
  }
}

main(process.argv.slice(2))
