// Brings a clone to the state in which every script of package.json works: npm packages, `dist`, Debian packages, guest image.
// Plain JavaScript on Node's own modules, because it runs before anything is installed, on whatever Node the machine has.
//
//   node scripts/setup.mjs             all steps
//   node scripts/setup.mjs npm dist    only these
//
// Each step looks at what is there and does only what is missing, so a second run repairs an interrupted first one.
// Everything is said on stderr: stdout belongs to the program that follows.
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  symlinkSync
} from "node:fs"
import { connect, createServer } from "node:net"
import { constants as os } from "node:os"
import { basename, delimiter, dirname, join, relative } from "node:path"
import { fileURLToPath } from "node:url"

const BAD_USAGE = 64
const UNAVAILABLE = 69
const TICK_MILLIS = 2000
const KEPT_OUTPUT_CHARACTERS = 64 * 1024

const root = realpathSync(join(dirname(fileURLToPath(import.meta.url)), ".."))
const binaries = join(root, "node_modules", ".bin")
const projectNode = join(binaries, "node")

/**
 * Commands a Debian package has to bring. Machines boot without those that are not `needed`, which are for networks, disks and tests:
 * most of what they do takes root.
 */
const debian = [
  {
    command: "qemu-system-x86_64",
    package: "qemu-system-x86",
    why: "runs the guests where Firecracker cannot",
    needed: true
  },
  { command: "ip", package: "iproute2", why: "makes the links of machines", needed: false },
  { command: "nft", package: "nftables", why: "says what machines may reach", needed: false },
  {
    command: "mount",
    package: "mount",
    why: "mounts block devices in jails, and file systems in tests",
    needed: false
  },
  { command: "pgrep", package: "procps", why: "shows the tests what runs, and sets what they change", needed: false },
  {
    command: "python3",
    package: "python3-minimal",
    why: "gives the tests the sockets that Node has not",
    needed: false
  },
  { command: "mkfs.ext4", package: "e2fsprogs", why: "makes and grows the disks of machines", needed: false },
  {
    command: "mkfs.btrfs",
    package: "btrfs-progs",
    why: "makes the tests a file system whose files share blocks",
    needed: false
  }
]

/** An end that is explained to the reader without a stack trace. */
class SetupFailed extends Error {
  /**
   * @param {string} message
   * @param {number} exitCode
   */
  constructor(message, exitCode) {
    super(message)
    this.exitCode = exitCode
  }
}

/** @param {string} line */
const say = (line) => process.stderr.write(`setup: ${line}\n`)

/** @param {number} since */
const elapsed = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`

/**
 * Says every two seconds that `name` still goes on, until `work` ends.
 *
 * @template A
 * @param {string} name
 * @param {Promise<A>} work
 * @returns {Promise<A>}
 */
const watched = async (name, work) => {
  const since = Date.now()
  const ticker = setInterval(() => say(`${name} … ${elapsed(since)}`), TICK_MILLIS)
  try {
    return await work
  } finally {
    clearInterval(ticker)
  }
}

/**
 * The folders of PATH, less the project's own programs, which npm puts first and which come and go while packages are replaced;
 * and with those an administrator's programs are in, which apt-get needs.
 */
const folders = [
  ...(process.env["PATH"] ?? "").split(delimiter).filter((one) => one !== binaries),
  "/usr/sbin",
  "/sbin"
]
const outerPath = folders.join(delimiter)

/** @param {string} command */
const onPath = (command) =>
  folders.some((folder) => {
    try {
      accessSync(join(folder, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })

/** @param {string} path */
const readJson = (path) => JSON.parse(readFileSync(path, "utf8"))

// ---------------------------------------------------------------------------------------------------------------------
// One set-up of a clone at a time
// ---------------------------------------------------------------------------------------------------------------------

/**
 * Holds the clone for this process and for the children it hands the result to. The lock is the name of an abstract socket: the
 * kernel frees it when its last holder dies, however it dies, so there is no stale lock to detect; and an `npm ci` that outlives
 * a killed set-up goes on holding it, so that the next set-up waits for it instead of working against it.
 *
 * @returns {Promise<import("node:net").Server>}
 */
const lockClone = async () => {
  const name = `\0effect-microvm-runtime-setup-${createHash("sha256").update(root).digest("hex").slice(0, 32)}`
  for (;;) {
    const server = createServer((waiter) => waiter.on("error", () => {}).unref())
    const held = await new Promise((resolve, reject) => {
      server.once("error", (error) => "code" in error && error.code === "EADDRINUSE" ? resolve(false) : reject(error))
      server.listen(name, () => resolve(true))
    })
    if (held) return server
    await watched(
      "waiting for another set-up of this clone",
      new Promise((resolve) => connect(name).on("error", () => {}).on("close", resolve).resume())
    )
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Running programs
// ---------------------------------------------------------------------------------------------------------------------

/** @type {import("node:net").Server | undefined} */
let lock
/** @type {import("node:child_process").ChildProcess | undefined} */
let child

/** Node has no public name for the descriptor of a server; without one, a child just does not hold the lock. */
const lockDescriptor = () => /** @type {any} */ (lock)?._handle?.fd ?? "ignore"

/**
 * Runs a program to its end with its output kept back, shown only when the program fails.
 *
 * @param {string} name what the progress lines call it
 * @param {ReadonlyArray<string>} command
 * @param {object} [options]
 * @param {boolean} [options.terminal] gives it our terminal
 * @param {boolean} [options.writesClone] it changes the clone: should it outlive us, the clone stays locked
 * @param {string} [options.path]
 * @returns {Promise<{ readonly ok: boolean, readonly output: string, readonly end: string }>}
 */
const run = (name, [program = "", ...args], { path = outerPath, terminal = false, writesClone = false } = {}) =>
  watched(
    name,
    new Promise((resolve) => {
      let kept = ""
      const output = terminal ? "inherit" : "pipe"
      child = spawn(program, args, {
        cwd: root,
        env: { ...process.env, PATH: path },
        stdio: [terminal ? "inherit" : "ignore", output, output, writesClone ? lockDescriptor() : "ignore"]
      })
      for (const stream of [child.stdout, child.stderr]) {
        stream?.setEncoding("utf8").on("data", (text) => {
          kept = `${kept}${text}`.slice(-KEPT_OUTPUT_CHARACTERS)
        })
      }
      /**
       * @param {boolean} ok
       * @param {string} end
       */
      const ended = (ok, end) => {
        child = undefined
        resolve({ ok, output: kept, end })
      }
      child.on("error", (error) => ended(false, `cannot be started: ${error.message}`))
      child.on(
        "close",
        (code, signal) => ended(code === 0, signal === null ? `exit code ${code}` : `ended by ${signal}`)
      )
    })
  )

/**
 * @param {string} name
 * @param {ReadonlyArray<string>} command
 * @param {Parameters<typeof run>[2]} [options]
 */
const runOrFail = async (name, command, options) => {
  const { end, ok, output } = await run(name, command, options)
  if (!ok) throw new SetupFailed(`${output}\n${name} failed: \`${command.join(" ")}\`: ${end}`, 1)
}

for (const signal of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"])) {
  process.on(signal, () => {
    say(`ended by ${signal}; run it again to go on`)
    const code = 128 + os.signals[signal]
    if (child === undefined) process.exit(code)
    // Nothing may follow: not when the child ends, and not when it may not be signalled, as sudo's children may not.
    child.removeAllListeners("close").removeAllListeners("error").on("error", () => process.exit(code))
    child.on("exit", () => process.exit(code)).kill(signal)
  })
}

// ---------------------------------------------------------------------------------------------------------------------
// npm packages
// ---------------------------------------------------------------------------------------------------------------------

/**
 * npm's own record of what it laid down, written when all of it stands, install scripts included.
 */
const installedLock = join(root, "node_modules", ".package-lock.json")

const npmMissing = () => {
  if (!existsSync(installedLock)) return "not installed"
  const wanted = Object.entries(readJson(join(root, "package-lock.json")).packages)
  const installed = readJson(installedLock).packages
  for (const [path, entry] of wanted) {
    if (path === "") continue
    const there = installed[path]
    // Absent optional packages are those of other platforms.
    if (there === undefined && (entry.optional === true || entry.devOptional === true)) continue
    if (there?.version !== entry.version || there?.integrity !== entry.integrity) return `${path} is not the locked one`
    if (!existsSync(join(root, path, "package.json"))) return `${path} is gone`
  }
  // Without install scripts the package `node` has no binary.
  return existsSync(projectNode) ? undefined : "node_modules/.bin/node is gone"
}

const installNpm = async () => {
  // Under npm, go on with that very npm, unless the Node it runs on is one that is about to be replaced.
  const { npm_execpath: npmCli = "", npm_node_execpath: npmNode = "" } = process.env
  const sameNpm = basename(npmCli) === "npm-cli.js" && npmNode !== "" && !npmNode.startsWith(join(root, "node_modules"))
  // From here on the old record would be a lie if we were killed.
  rmSync(installedLock, { force: true })
  await runOrFail("npm packages (npm ci)", [
    ...(sameNpm ? [npmNode, npmCli] : ["npm"]),
    "ci",
    // Whatever the environment says: nothing may be left out.
    "--include=dev",
    "--include=optional",
    "--include=peer",
    "--ignore-scripts=false",
    "--dry-run=false",
    "--loglevel=error"
  ], { writesClone: true })
  const missing = npmMissing()
  if (missing !== undefined) throw new SetupFailed(`npm ci ended well, yet ${missing}`, 1)
  return true
}

// ---------------------------------------------------------------------------------------------------------------------
// Debian packages
// ---------------------------------------------------------------------------------------------------------------------

const debianMissing = () => {
  const missing = debian.filter(({ command }) => !onPath(command))
  return missing.length === 0 ? undefined : missing.map((one) => `${one.package} (${one.why})`).join(", ")
}

/** Asks for the password, if there has to be one, on the terminal and before the progress lines begin. */
const maySudo = async () =>
  onPath("sudo") &&
  (await (process.stdin.isTTY ? run("sudo", ["sudo", "-v"], { terminal: true }) : run("sudo", ["sudo", "-n", "true"])))
    .ok

const installDebian = async () => {
  const missing = debian.filter(({ command }) => !onPath(command))
  const names = missing.map((one) => one.package)
  /** @param {string} why */
  const byHand = (why) => {
    const list = missing.map((one) => `  ${one.package}: ${one.why} (${one.command})`).join("\n")
    if (missing.some(({ needed }) => needed)) throw new SetupFailed(`${why}:\n${list}`, UNAVAILABLE)
    say(`${why}; machines run without these:\n${list}`)
    return false
  }
  if (!onPath("apt-get")) return byHand("there is no apt-get here; install these by hand and run this again")
  const isRoot = process.getuid?.() === 0
  if (!isRoot && !(await maySudo())) {
    return byHand(`neither root nor sudo; let an administrator type: apt-get install ${names.join(" ")}`)
  }
  const asRoot = isRoot ? [] : ["sudo", "-n"]
  /** @param {ReadonlyArray<string>} command */
  const quietly = (command) => [...asRoot, "env", "DEBIAN_FRONTEND=noninteractive", ...command]
  const install = quietly([
    "apt-get",
    "install",
    "--yes",
    "--no-install-recommends",
    "-o",
    "DPkg::Lock::Timeout=300",
    ...names
  ])
  // Missing or outdated package lists and an interrupted dpkg all show as a first try that fails.
  if (!(await run(`Debian packages (${names.join(", ")})`, install)).ok) {
    await run("Debian packages (dpkg --configure -a)", quietly(["dpkg", "--configure", "-a"]))
    await runOrFail("Debian package lists (apt-get update)", quietly(["apt-get", "update"]))
    await runOrFail(`Debian packages (${names.join(", ")})`, install)
  }
  const missingStill = debianMissing()
  if (missingStill !== undefined) {
    throw new SetupFailed(`apt-get ended well, yet there is no ${missingStill}`, UNAVAILABLE)
  }
  return true
}

// ---------------------------------------------------------------------------------------------------------------------
// dist, and the command `microvm` of this clone
// ---------------------------------------------------------------------------------------------------------------------

const commandSource = join(root, "src", "cli", "bin.ts")
const commandBuilt = join(root, "dist", "cli", "bin.js")
const commandLink = join(binaries, "microvm")
const distStamp = join(root, "dist", ".stamp")

/** A digest of everything `dist` is made from. */
const sourceDigest = () => {
  const hash = createHash("sha256")
  const files = ["package.json", "package-lock.json", "tsconfig.json", "tsconfig.build.json"]
  const sources = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" }).filter((name) =>
    name.endsWith(".ts")
  )
  // What stands in for something else in a bundle is beside the program that makes it.
  const scripts = readdirSync(join(root, "scripts")).filter((name) => name === "build.mjs" || name.endsWith(".cjs"))
  const made = [...scripts.map((name) => join("scripts", name)), ...sources.map((name) => join("src", name))]
  for (const file of [...files, ...made.sort()]) {
    hash.update(`${file}\0`).update(readFileSync(join(root, file))).update("\0")
  }
  return hash.digest("hex")
}

const distMissing = () => {
  if (!existsSync(distStamp)) return "not built"
  if (readFileSync(distStamp, "utf8") !== sourceDigest()) return "sources changed"
  if (existsSync(commandSource) && !linkStands()) return "node_modules/.bin/microvm is not linked"
  return undefined
}

const linkStands = () => {
  try {
    return lstatSync(commandLink).isSymbolicLink() && join(binaries, readlinkSync(commandLink)) === commandBuilt
  } catch {
    return false
  }
}

const buildDist = async () => {
  const digest = sourceDigest()
  if (!existsSync(distStamp) || readFileSync(distStamp, "utf8") !== digest) {
    await runOrFail("dist", [projectNode, "scripts/build.mjs", digest], { writesClone: true })
  }
  if (existsSync(commandBuilt) && !linkStands()) {
    chmodSync(commandBuilt, 0o755)
    rmSync(commandLink, { force: true })
    symlinkSync(relative(binaries, commandBuilt), commandLink)
  }
  return true
}

// ---------------------------------------------------------------------------------------------------------------------
// Guest image
// ---------------------------------------------------------------------------------------------------------------------

/** The command looks for itself whether the image stands: it knows the digests, and its cache may be outside the clone. */
const buildImage = async () => {
  if (!existsSync(commandSource)) {
    say("guest image: skipped, there is no src/cli/bin.ts to build it with")
    return
  }
  await runOrFail("guest image (microvm image build)", [projectNode, commandBuilt, "image", "build"], {
    path: `${binaries}${delimiter}${outerPath}`
  })
}

// ---------------------------------------------------------------------------------------------------------------------

/**
 * @param {string} title
 * @param {() => string | undefined} missing what is not there yet; undefined when all of it is
 * @param {() => Promise<boolean>} fill gives false where it left something out, and has said so
 */
const ensure = async (title, missing, fill) => {
  const reason = missing()
  if (reason === undefined) return
  const since = Date.now()
  say(`${title}: ${reason}`)
  if (await fill()) say(`${title}: done, ${elapsed(since)}`)
}

/**
 * In order: each stands on those before it. The packages are what a machine may not get: whoever is told so has `microvm doctor` then.
 *
 * @type {ReadonlyMap<string, () => Promise<void>>}
 */
const steps = new Map([
  ["npm", () => ensure("npm packages", npmMissing, installNpm)],
  ["dist", () => ensure("dist", distMissing, buildDist)],
  ["debian", () => ensure("Debian packages", debianMissing, installDebian)],
  ["image", buildImage]
])

const main = async () => {
  const names = process.argv.slice(2)
  const unknown = names.filter((name) => !steps.has(name))
  if (unknown.length > 0) {
    throw new SetupFailed(`no such step: ${unknown.join(", ")}; there are ${[...steps.keys()].join(", ")}`, BAD_USAGE)
  }
  lock = await lockClone()
  for (const [name, step] of steps) if (names.length === 0 || names.includes(name)) await step()
}

try {
  await main()
} catch (error) {
  if (!(error instanceof SetupFailed)) throw error
  say(error.message.trim())
  process.exitCode = error.exitCode
} finally {
  lock?.close()
}
