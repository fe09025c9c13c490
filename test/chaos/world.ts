/**
 * A host of its own for supervisors that die: a network namespace, a place for the files of others, cgroups, directories; and all that
 * is left in them.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Effect from "effect/Effect"
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import * as Limits from "../../src/host/Limits.ts"
import { type Answer, type Order, readAnswer } from "./orders.ts"

const program = fileURLToPath(new URL("./supervisorProgram.ts", import.meta.url))

/** Types are stripped, and code compiled, once for all. */
const compileCache = fileURLToPath(new URL("../../.cache/node", import.meta.url))

/** The variable that all that is started here has, unless it clears its environment. */
const mark = "CHAOS_WORLD"

export type Done = Extract<Answer, { readonly _tag: "Done" }>

/** Why this cannot be done here; absent when it can. */
export const missing = (): string | undefined => {
  if (process.geteuid?.() !== 0) return "it needs root"
  if (!existsSync("/dev/net/tun")) return "there is no /dev/net/tun"
  for (const [file, ...args] of [["ip", "-V"], ["nft", "--version"], ["nsenter", "--version"], ["mkfs.ext4", "-V"]]) {
    try {
      execFileSync(file ?? "", args, { stdio: "ignore" })
    } catch {
      return `there is no ${file}`
    }
  }
  return undefined
}

const sleep = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

/** Looks again and again; the last look counts. */
export const eventually = async <A>(look: () => A, isGood: (found: A) => boolean, within = 15_000): Promise<A> => {
  for (const deadline = performance.now() + within;; await sleep(20)) {
    const found = look()
    if (isGood(found) || performance.now() > deadline) return found
  }
}

const readText = (path: string): string => {
  try {
    return readFileSync(path, "utf8")
  } catch {
    return ""
  }
}

const list = (path: string): ReadonlyArray<string> => {
  try {
    return readdirSync(path)
  } catch {
    return []
  }
}

/** Every file below a directory, with what it is. */
export const tree = (directory: string): ReadonlyArray<string> =>
  list(directory).toSorted().flatMap((name): ReadonlyArray<string> => {
    const path = join(directory, name)
    const facts = lstatSync(path, { throwIfNoEntry: false })
    if (facts === undefined) return []
    if (facts.isDirectory()) return [`${path}/`].concat(tree(path))
    return [facts.isSymbolicLink() ? `${path} -> ${readlinkSync(path)}` : `${path} (${facts.size} bytes)`]
  })

/** A supervisor in a process of its own. */
export class Supervisor {
  readonly #child: ChildProcess
  readonly #answers: Array<Answer> = []
  #wake = (): void => {}
  #isGone = false
  stderr = ""

  constructor(child: ChildProcess) {
    this.#child = child
    child.stdin?.on("error", () => {})
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.stderr = (this.stderr + text).slice(-8192)
    })
    if (child.stdout !== null) {
      createInterface({ input: child.stdout }).on("line", (line) => {
        // What is logged goes there, too.
        if (!line.startsWith("{")) return
        this.#answers.push(readAnswer(line))
        this.#wake()
      }).on("close", () => {
        this.#isGone = true
        this.#wake()
      })
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  /** The next that it says; nothing when it has died. */
  async answer(): Promise<Answer | undefined> {
    for (;;) {
      const answer = this.#answers.shift()
      if (answer !== undefined || this.#isGone) return answer
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  say(line: string): void {
    this.#child.stdin?.write(`${line}\n`)
  }

  /** Has it do something, to its end or its own. */
  async obey(order: Order): Promise<Answer | undefined> {
    this.say(JSON.stringify(order))
    for (;;) {
      const answer = await this.answer()
      if (answer === undefined || answer._tag === "Done" || answer._tag === "Failed") return answer
    }
  }

  /** Has it do something that is not to fail. */
  async do(order: Order): Promise<Done> {
    const answer = await this.obey(order)
    if (answer?._tag === "Done") return answer
    throw new Error(this.#story(order, answer))
  }

  /** Has it start something, and waits until it says so. */
  async start(order: Order, until: Answer["_tag"]): Promise<void> {
    this.say(JSON.stringify(order))
    const answer = await this.answer()
    if (answer?._tag !== until) throw new Error(this.#story(order, answer))
  }

  #story(order: Order, answer: Answer | undefined): string {
    const said = answer === undefined ? "it died" : answer._tag === "Failed" ? answer.why : answer._tag
    return `${order.do} in ${order.state}: ${said}\n${this.stderr}`
  }

  async end(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const gone = once(this.#child, "exit")
    this.#child.kill(signal)
    await gone
  }

  /** Waits for its death. */
  async gone(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, "exit")
  }
}

export class World {
  readonly name: string
  readonly directory: string
  readonly templates: string
  readonly #cgroups: ReadonlyArray<string>
  /** In whose mount namespace `/run/netns` has nothing but what is made there. */
  #mounter: ChildProcess | undefined
  readonly #ready: Array<Supervisor> = []
  readonly #all = new Set<Supervisor>()
  #states = 0

  private constructor(name: string, directory: string, cgroups: ReadonlyArray<string>) {
    this.name = name
    this.directory = directory
    this.templates = join(directory, "templates")
    this.#cgroups = cgroups
  }

  static async make(): Promise<World> {
    const name = `chaos-${process.pid}-${randomBytes(3).toString("hex")}`
    const directory = mkdtempSync(join(tmpdir(), "chaos-"))
    chmodSync(directory, 0o755)
    const plan = await Effect.runPromise(
      Limits.plan({ token: "0000000000000000" }, { memoryMib: 1024, pids: 256 }).pipe(
        Effect.provide(NodeServices.layer)
      )
    )
    const bases = [...plan.data.v1, ...(plan.data.path === undefined ? [] : [plan.data.path])].map((path) =>
      path.replace(/\/[^/]+\/[^/]+$/, "")
    )
    const cgroups = bases.map((base) => join(base, name))
    const world = new World(name, directory, cgroups)
    try {
      for (const path of cgroups) mkdirSync(path)
      execFileSync("ip", ["netns", "add", name])
      world.inside(
        "sh",
        "-c",
        "echo 1 > /proc/sys/net/ipv4/ip_forward; ip link set lo up; ip link add up0 type veth peer name far0; " +
          "ip link set up0 addrgenmode none; ip link set far0 addrgenmode none; ip addr add 10.99.0.1/24 dev up0; ip link set up0 up; ip link set far0 up; ip route add default via 10.99.0.2"
      )
      await world.#hideNetns()
      mkdirSync(join(world.templates, "small"), { recursive: true })
      const image = join(world.templates, "small", "rootfs.ext4")
      execFileSync("mkfs.ext4", ["-q", "-F", image, "2M"], { stdio: "ignore" })
      chmodSync(image, 0o444)
    } catch (error) {
      await world.end()
      throw error
    }
    return world
  }

  /** Runs a program in the network namespace. */
  inside(file: string, ...args: ReadonlyArray<string>): string {
    return execFileSync("nsenter", [`--net=/run/netns/${this.name}`, "--", file, ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      maxBuffer: 64 * 2 ** 20
    })
  }

  async #hideNetns(): Promise<void> {
    // What is mounted here later is to be seen there.
    execFileSync("mount", ["--bind", "--make-shared", this.directory, this.directory])
    const hide = "mount -t tmpfs chaos /run/netns && echo ready && exec sleep infinity"
    const child = spawn("unshare", ["--mount", "--propagation", "slave", "sh", "-c", hide], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    this.#mounter = child
    const said = child.stdout === null ? undefined : await once(child.stdout, "data")
    if (String(said) !== "ready\n") throw new Error(`the mount namespace said ${String(said)}`)
  }

  /** The network namespaces of machines. */
  netns(): ReadonlyArray<string> {
    return list(`/proc/${this.#mounter?.pid}/root/run/netns`)
  }

  #spawn(): Supervisor {
    const command = [
      ...Limits.prefix(this.#cgroups),
      "nsenter",
      `--net=/run/netns/${this.name}`,
      `--mount=/proc/${this.#mounter?.pid}/ns/mnt`,
      "--",
      process.execPath,
      "--expose-gc",
      "--disable-warning=ExperimentalWarning",
      "--conditions=@effect-microvm-runtime/source",
      program,
      this.directory
    ]
    const [file = "", ...args] = command
    const child = spawn(file, args, {
      env: { ...process.env, NODE_COMPILE_CACHE: compileCache, TMPDIR: this.directory, [mark]: this.name },
      stdio: ["pipe", "pipe", "pipe"]
    })
    const supervisor = new Supervisor(child)
    this.#all.add(supervisor)
    return supervisor
  }

  /** A supervisor that is up; others come up meanwhile, as that takes longer than most that they do. */
  async supervisor(ahead = 2): Promise<Supervisor> {
    while (this.#ready.length < ahead + 1) this.#ready.push(this.#spawn())
    const one = this.#ready.shift() ?? this.#spawn()
    const answer = await one.answer()
    if (answer?._tag !== "Ready") throw new Error(`a supervisor does not come up: ${one.stderr}`)
    return one
  }

  /** A state directory that nobody has had before. */
  state(): string {
    return join(this.directory, "states", String(this.#states++))
  }

  /** Processes of this world that live, but for supervisors that are up. */
  processes(): ReadonlyArray<string> {
    const known = new Set([process.pid, ...[...this.#all].map(({ pid }) => pid)])
    return list("/proc").filter((name) => /^\d+$/.test(name) && !known.has(Number(name))).flatMap((pid) => {
      const [, command = "", state = ""] = /^\d+ \((.*)\) (.) /s.exec(readText(`/proc/${pid}/stat`)) ?? []
      if (state === "" || state === "Z" || state === "X") return []
      const line = readText(`/proc/${pid}/cmdline`)
      const isOurs = line.includes(this.directory) ||
        readText(`/proc/${pid}/environ`).split("\0").includes(`${mark}=${this.name}`) ||
        list(`/proc/${pid}/fd`).some((fd) => {
          try {
            return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith(this.directory)
          } catch {
            return false
          }
        })
      return isOurs ? [`process ${pid} (${command}): ${line.replaceAll("\0", " ").slice(0, 4096)}`] : []
    })
  }

  /** Guards of a supervisor. */
  guards(of: Supervisor): ReadonlyArray<number> {
    return list("/proc").filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) =>
      readText(`/proc/${pid}/stat`).replace(/^.*\) . /s, "").startsWith(`${of.pid} `) &&
      readText(`/proc/${pid}/cmdline`).includes("microvm-guard")
    )
  }

  /** Guards end by themselves once what they guard is gone; those of supervisors that are up stay. */
  #isGuard(process: string): boolean {
    return process.includes("microvm-guard")
  }

  /** Links, rules, routes and sockets of the namespace, in one text each. */
  network(): ReadonlyArray<string> {
    return this.inside(
      "sh",
      "-c",
      "ip -o link | sed 's/^[0-9]*: //'; ip -o addr | sed 's/^[0-9]*: //'; ip route show table all; ip -6 route show table all; " +
        `ip rule; nft -s list ruleset; grep -o '${this.directory}.*' /proc/net/unix || true`
    ).split("\n")
  }

  cgroups(): ReadonlyArray<string> {
    const below = (path: string): ReadonlyArray<string> =>
      list(path).flatMap((name): ReadonlyArray<string> => {
        const one = join(path, name)
        return lstatSync(one, { throwIfNoEntry: false })?.isDirectory() === true ? [one].concat(below(one)) : []
      })
    return this.#cgroups.flatMap(below)
  }

  mounts(): ReadonlyArray<string> {
    return readText("/proc/self/mountinfo").split("\n").filter((line) =>
      line.includes(this.directory) && line.split(" ")[4] !== this.directory
    )
  }

  /** All but processes. */
  traces(): ReadonlyArray<string> {
    return [
      ...this.network(),
      ...this.cgroups(),
      ...this.mounts(),
      ...this.netns().map((name) => `network namespace ${name}`),
      ...tree(this.directory).filter((path) => !this.#isOfNobody(path))
    ]
  }

  /** What a journal has of its own, when no machine is in it, and where the next address is looked for first. */
  #isOfNobody(path: string): boolean {
    return ["addresses", "users"].some((pool) => path.startsWith(join(this.directory, pool, "next -> "))) ||
      path === join(this.directory, "mounts/") ||
      /\/states\/(\d+\/($|(machines|quarantine|tmp|held)\/$|lease(\.json)? \()|$)/.test(path)
  }

  /** Those whose command line has this in it, of which there is to be one soon: a shell that forks is two for a moment. */
  async pids(
    part: string,
    isGood = (found: ReadonlyArray<number>): boolean => found.length === 1
  ): Promise<ReadonlyArray<number>> {
    return eventually(
      () => this.processes().filter((one) => one.includes(part)).map((one) => Number(/\d+/.exec(one)?.[0])),
      isGood
    )
  }

  /** A file system of so many KiB, empty, until `unmount`. */
  mount(kib: number): string {
    const path = join(this.directory, "mounts", String(this.#states++))
    mkdirSync(path, { recursive: true })
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${kib}k,mode=700`, "chaos", path])
    return path
  }

  /** From now on nothing can be written at this path, except to files that are open already. */
  protect(path: string): void {
    execFileSync("mount", ["--bind", path, path])
    // Unlike a mount, its flags are known to one mount namespace only.
    const args = ["-o", "remount,ro,bind", path]
    execFileSync("mount", args)
    execFileSync("nsenter", [`--mount=/proc/${this.#mounter?.pid}/ns/mnt`, "--", "mount", ...args])
  }

  unmount(path: string): void {
    execFileSync("umount", [path])
  }

  /** What is there that was not there before, and the other way round, once guards and dying processes are gone. */
  async leftovers(before: ReadonlyArray<string>): Promise<ReadonlyArray<string>> {
    const processes = await eventually(
      () => this.processes().filter((one) => !this.#isGuard(one)),
      (found) => found.length === 0
    )
    const now = this.traces()
    return [
      ...processes,
      ...now.filter((line) => !before.includes(line)).map((line) => `+ ${line}`),
      ...before.filter((line) => !now.includes(line)).map((line) => `- ${line}`)
    ]
  }

  /** A process that is nobody's. */
  stranger(): { readonly pid: number; readonly isAlive: () => boolean; readonly end: () => void } {
    const child = spawn("sleep", ["1000"], { stdio: "ignore" })
    return {
      pid: child.pid ?? 0,
      isAlive: () => child.exitCode === null && child.signalCode === null,
      end: () => void child.kill("SIGKILL")
    }
  }

  /** cgroups of somebody else's machine, with a process in them, until it ends. */
  strangeCgroups(token: string, pid: number): () => Promise<void> {
    const paths = this.#cgroups.map((base) => join(base, "effect-microvm-machines", token))
    for (const path of paths) {
      mkdirSync(path, { recursive: true })
      writeFileSync(join(path, "cgroup.procs"), String(pid))
    }
    return () => this.#removeCgroups(paths.flatMap((path) => [path, dirname(path)]))
  }

  /** After something went wrong, so that what comes next is not wrong for that. */
  async restore(before: ReadonlyArray<string>): Promise<void> {
    for (const one of this.processes()) {
      if (this.#isGuard(one)) continue
      try {
        process.kill(Number(/\d+/.exec(one)?.[0]), "SIGKILL")
      } catch {
        // It has gone meanwhile.
      }
    }
    for (const line of this.network()) {
      const [, link] = /^(mv\S+): </.exec(line) ?? []
      if (link === undefined || before.includes(line)) continue
      try {
        this.inside("ip", "link", "del", "dev", link)
      } catch {
        // Its supervisor was quicker.
      }
    }
    for (const name of this.netns()) {
      execFileSync("nsenter", [`--mount=/proc/${this.#mounter?.pid}/ns/mnt`, "--", "ip", "netns", "del", name])
    }
    if (!before.some((line) => line.startsWith("table "))) this.inside("nft", "flush ruleset")
    for (const path of this.mounts().map((line) => line.split(" ")[4] ?? "").toReversed()) {
      execFileSync("umount", [path])
    }
    for (const name of ["disks", "states", "mounts", "addresses/slots", "users/slots"]) {
      const path = join(this.directory, name)
      for (const one of list(path)) if (one !== ".tmp") rmSync(join(path, one), { recursive: true, force: true })
    }
    await eventually(() => this.processes().filter((one) => !this.#isGuard(one)), (found) => found.length === 0, 3_000)
    await this.#removeCgroups(this.cgroups().toReversed())
  }

  /** With all that is in them, which is ours. */
  async #removeCgroups(paths: ReadonlyArray<string>): Promise<void> {
    for (const path of paths) {
      await eventually(() => readText(join(path, "cgroup.procs")).split("\n").filter((pid) => pid !== ""), (pids) => {
        for (const pid of pids) {
          try {
            process.kill(Number(pid), "SIGKILL")
          } catch {
            // It has gone meanwhile.
          }
        }
        return pids.length === 0
      })
      if (existsSync(path)) rmdirSync(path)
    }
  }

  async end(): Promise<void> {
    for (const one of this.#all) await one.end()
    for (const path of this.mounts().map((line) => line.split(" ")[4] ?? "").toReversed()) {
      execFileSync("umount", [path])
    }
    for (const one of await eventually(() => this.processes(), (found) => found.length === 0, 5_000)) {
      process.kill(Number(/\d+/.exec(one)?.[0]), "SIGKILL")
    }
    await eventually(() => this.processes(), (found) => found.length === 0, 5_000)
    await this.#removeCgroups([...this.cgroups().toReversed(), ...this.#cgroups])
    this.#mounter?.kill("SIGKILL")
    if (this.#mounter !== undefined) execFileSync("umount", ["--lazy", this.directory])
    if (existsSync(`/run/netns/${this.name}`)) execFileSync("ip", ["netns", "del", this.name])
    rmSync(this.directory, { recursive: true, force: true })
  }
}
