/**
 * The host as Node sees it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type * as PlatformError from "effect/PlatformError"
import * as ChildProcess from "effect/process/ChildProcess"
import { createHash, randomUUID } from "node:crypto"
import { readFileSync } from "node:fs"
import * as NodeFs from "node:fs/promises"
import * as NodeOs from "node:os"
import { join } from "node:path"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import * as NodeFileDigest from "../process/NodeFileDigest.ts"
import * as OwnedFiles from "../process/OwnedFiles.ts"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import { ProcessError } from "../process/ProcessError.ts"
import { ProcessHost } from "../process/ProcessHost.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { SupervisorGuard, Watched } from "../process/SupervisorGuard.ts"
import {
  type Architecture,
  type DirectoryOptions,
  type FileFacts,
  FirecrackerHost,
  type Kvm,
  parseSnapshotFormat
} from "./FirecrackerHost.ts"
import * as FirecrackerVersion from "./FirecrackerVersion.ts"
import { attempt, codeOf, hostFailed } from "./internal/NodeAttempt.ts"
import { isReadOnlyDevice } from "./internal/NodeJailFiles.ts"
import * as NodeLibc from "./internal/NodeLibc.ts"
import { listPages, mergeMemory } from "./internal/NodeMemoryFiles.ts"
import * as NodeApiTransport from "./NodeApiTransport.ts"

const unavailable = (why: string, remedy: string): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.BackendUnavailable({ backend: "firecracker", why, remedy }))

const architectureOf: { readonly [arch: string]: Architecture } = { x64: "x86_64", arm64: "aarch64" }

/** The device must open, which also loads the module on some hosts, and the processor must have what KVM needs. */
const lookAtKvm = async (architecture: Architecture, cpuinfo: string): Promise<Kvm> => {
  const device = "/dev/kvm"
  try {
    // A para-virtual KVM opens as well, but guests hang in it; and nobody is to ask for the right to open one that is of no use.
    if (architecture === "x86_64" && !/^flags\s*:.*\b(vmx|svm)\b/m.test(cpuinfo)) {
      const remedy = "turn on (nested) virtualization for this machine, or use another backend"
      return { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy }
    }
    await using _ = await NodeFs.open(device, "r+")
    return { _tag: "Usable" }
  } catch (error) {
    const code = codeOf(error)
    return code === "EACCES" || code === "EPERM"
      ? { _tag: "Unusable", why: `${device} may not be opened by us`, remedy: "join its group, mostly kvm" }
      : { _tag: "Unusable", why: `${device} cannot be opened: ${code}`, remedy: "load the kvm modules of the kernel" }
  }
}

/** Its name, and a digest of what it can do: the same model has other features below another hypervisor. */
const describeCpu = (cpuinfo: string): string => {
  const [first = ""] = cpuinfo.split("\n\n", 1)
  const lines = (keys: RegExp): ReadonlyArray<string> =>
    first.split("\n").flatMap((line) => {
      const [, key = "", value = ""] = /^(.*?)\s*:\s*(.*)$/.exec(line) ?? []
      return keys.test(key) ? [value] : []
    })
  const name = lines(/^(model name|CPU (implementer|variant|part|revision))$/).join(" ")
  const features = lines(/^(flags|vmx flags|Features|bugs)$/).join("\n")
  return `${name} (features ${createHash("sha256").update(features).digest("hex").slice(0, 8)})`
}

/** Where Linux says what it is: Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst. */
const kernelOf = (head: Buffer): FileFacts["kernel"] =>
  head.toString("latin1", 0, 4) === "\x7fELF"
    ? "ELF"
    : head.toString("latin1", 0x202, 0x206) === "HdrS"
    ? "bzImage"
    : head.toString("latin1", 56, 60) === "ARM\x64"
    ? "arm64 Image"
    : undefined

const lookAtFile = async (path: string, writable: boolean): Promise<FileFacts> => {
  const { O_NONBLOCK, O_RDONLY, O_RDWR } = NodeFs.constants
  try {
    // A pipe without a writer would hold up the open.
    await using handle = await NodeFs.open(path, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK)
    const stat = await handle.stat()
    if (stat.isBlockDevice()) {
      const device = true
      return writable && await isReadOnlyDevice(path)
        ? { path, device, fault: "the kernel has it as read-only" }
        : { path, device }
    }
    if (!stat.isFile()) return { path, fault: "it is neither a regular file nor a block device" }
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(0x206), 0, 0x206, 0)
    const kernel = kernelOf(buffer.subarray(0, bytesRead))
    return kernel === undefined ? { path } : { path, kernel }
  } catch (error) {
    return { path, fault: `it cannot be opened${writable ? " for writing" : ""}: ${codeOf(error)}` }
  }
}

const makeReadable: FirecrackerHost["Service"]["makeReadable"] = (path) =>
  attempt("chmod", path, () => NodeFs.chmod(path, 0o644))

/** Loaded only where there are disks. */
const identifyDisk = Effect.promise(() => import("../host/NodeDiskIdentity.ts"))

const copy: FirecrackerHost["Service"]["copy"] = (from, to) => {
  const { COPYFILE_EXCL, COPYFILE_FICLONE } = NodeFs.constants
  return Effect.andThen(
    attempt(`copy ${from} to`, to, () => NodeFs.copyFile(from, to, COPYFILE_EXCL | COPYFILE_FICLONE)),
    makeReadable(to)
  )
}

const write: FirecrackerHost["Service"]["write"] = (path, text) =>
  attempt("write", path, async () => {
    const made = `${path}.new`
    await NodeFs.writeFile(made, text, { flag: "wx", mode: 0o600 })
    await NodeFs.rename(made, path)
  })

const longestText = 2 ** 20

const readText: FirecrackerHost["Service"]["read"] = (path) =>
  attempt("read", path, async () => {
    const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = NodeFs.constants
    const handle = await NodeFs.open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((error: unknown) => {
      if (codeOf(error) === "ENOENT") return undefined
      throw error
    })
    if (handle === undefined) return undefined
    await using file = handle
    const stat = await file.stat()
    if (stat.isFile() && stat.size <= longestText) return await file.readFile("utf8")
    throw new Error(`it is no file of ${longestText} bytes at most`)
  })

/** What a directory of a machine has in it from the start. */
const fill = (directory: string, { files, links }: DirectoryOptions) =>
  attempt("fill", directory, () =>
    Promise.all([
      ...Array.from(links, ([name, target]) => NodeFs.symlink(target, join(directory, name))),
      ...files.map((name) => NodeFs.writeFile(join(directory, name), "", { mode: 0o600 }))
    ]))

const keepDirectory: FirecrackerHost["Service"]["keepDirectory"] = Effect.fn("FirecrackerHost.keepDirectory")(
  function*(directory, options) {
    yield* attempt("make", directory, () => NodeFs.mkdir(directory, { mode: 0o700 })).pipe(
      Effect.mapError((error) =>
        error.reason._tag === "HostFailed" && error.reason.why === "EEXIST"
          ? hostFailed("make", directory, "there is, or was, a machine in it: give an empty one", error)
          : error
      )
    )
    yield* fill(directory, options)
  }
)

const empty: FirecrackerHost["Service"]["empty"] = (directory) =>
  attempt("empty", directory, async () => {
    const names = await NodeFs.readdir(directory)
    await Promise.all(names.map((name) => NodeFs.rm(join(directory, name), { recursive: true, force: true })))
  })

const remove: FirecrackerHost["Service"]["remove"] = (paths) =>
  // All of them, also after a failure.
  Effect.flatMap(
    Effect.forEach(paths, (path) => Effect.result(attempt("remove", path, () => NodeFs.rm(path, { force: true })))),
    Effect.forEach((removed) => Effect.fromResult(removed), { discard: true })
  )

/** Whoever is in a jail could have put something else there: a link to a file of ours, or a pipe. */
const openLog = async (path: string, flags: number): Promise<NodeFs.FileHandle> => {
  const handle = await NodeFs.open(path, flags | NodeFs.constants.O_NOFOLLOW | NodeFs.constants.O_NONBLOCK)
  if ((await handle.stat()).isFile()) return handle
  await handle.close()
  throw new Error(`${path} is no file`)
}

const tailBytes = 65_536

const tail: FirecrackerHost["Service"]["tail"] = (path) =>
  Effect.tryPromise(async () => {
    await using handle = await openLog(path, NodeFs.constants.O_RDONLY)
    const { size } = await handle.stat()
    const length = Math.min(size, tailBytes)
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length)
    const text = buffer.toString("utf8", 0, bytesRead)
    const written = text.replace(/^\0+/, "")
    // Behind the hole that `trim` has left is the beginning of a line.
    return size <= tailBytes || written !== text ? written : text.slice(text.indexOf("\n") + 1)
  }).pipe(Effect.orElseSucceed(() => ""))

const keptBytes = 2 ** 20

const trim: FirecrackerHost["Service"]["trim"] = (path) =>
  Effect.tryPromise(async () => {
    await using handle = await openLog(path, NodeFs.constants.O_RDWR)
    // stat(2): a block has 512 bytes, whatever those of the file system have.
    if ((await handle.stat()).blocks * 512 <= keptBytes) return false
    await handle.truncate(0)
    return true
  }).pipe(Effect.orElseSucceed(() => false))

/**
 * A directory that no other user can prepare for us: of this user's session, else below its home. Not one of
 * `/tmp`, whose names are anybody's.
 */
const defaultParent = async (uid: number): Promise<string> => {
  const session = process.env["XDG_RUNTIME_DIR"] ?? ""
  // sudo(8) may leave us with another user's.
  const isOurs = session.startsWith("/") && await NodeFs.stat(session).then((stat) => stat.uid === uid, () => false)
  return join(isOurs ? session : join(NodeOs.homedir(), ".local", "state"), "effect-microvm-runtime", "firecracker")
}

/** Who may write there could put other files in place of ours. */
const checkParent = (parent: string, uid: number) =>
  Effect.gen(function*() {
    const stat = yield* attempt("look at", parent, () => NodeFs.stat(parent))
    const why = !stat.isDirectory()
      ? "it is no directory"
      : stat.uid !== uid
      ? `it belongs to uid ${stat.uid}, and we are ${uid}`
      : (stat.mode & 0o022) !== 0
      ? "others may write to it"
      : undefined
    if (why === undefined) return
    const remedy = `${why}: let MICROVM_FIRECRACKER_STATE_DIR name a directory of our own`
    return yield* hostFailed("make a directory in", parent, remedy)
  })

/**
 * Looks at the real host. Firecracker is asked for its version, and is given 10 seconds to answer.
 *
 * Directories of machines are made in `effect-microvm-runtime/firecracker` of `XDG_RUNTIME_DIR`, else of `~/.local/state`,
 * unless another place is named.
 *
 * ```ts import.meta.vitest
 * import * as NodeServices from "@effect/platform-node/NodeServices"
 * import { FirecrackerHost, NodeFirecrackerHost } from "effect-microvm-runtime/firecracker"
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const facts = FirecrackerHost.FirecrackerHost.use((host) => host.inspect("/proc/version"))
 * const layer = NodeFirecrackerHost.layer.pipe(Layer.provide([NodeProcessSpawner.layer, NodeServices.layer]))
 * await Effect.runPromise(Effect.provide(facts, layer)) // => { path: "/proc/version" }
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  FirecrackerHost,
  never,
  ProcessSpawner | ProcessHost | SupervisorGuard | FileSystem.FileSystem | Path.Path
> = Layer.effect(
  FirecrackerHost,
  Effect.gen(function*() {
    const spawner = yield* ProcessSpawner
    const processes = yield* ProcessHost
    const guard = yield* SupervisorGuard
    const files = Context.pick(FileSystem.FileSystem, Path.Path, ProcessHost)(
      yield* Effect.context<
        ProcessHost | FileSystem.FileSystem | Path.Path
      >()
    )
    const uid = process.geteuid?.() ?? 0
    const swept = new Set<string>()
    const libc = yield* Effect.cached(
      Effect.mapError(NodeLibc.load, (error) => hostFailed("look for holes in", "files", NodeLibc.whyOf(error), error))
    )

    const observe: FirecrackerHost["Service"]["observe"] = Effect.fn("FirecrackerHost.observe")(function*(options) {
      const architecture = architectureOf[process.arch]
      if (architecture === undefined) {
        const remedy = "use a host with an x86-64 or 64-bit ARM CPU"
        return yield* unavailable(`no machine is known for ${process.arch}`, remedy)
      }
      const remedyOf = (variable: string) => `install a release of Firecracker, or set ${variable}`
      const [binaryRemedy, jailerRemedy] = [remedyOf("MICROVM_FIRECRACKER_BIN"), remedyOf("MICROVM_JAILER_BIN")]
      const find = Effect.fnUntraced(function*(command: string, remedy: string) {
        const { executable, faults } = yield* processes.locate({ command, path: process.env["PATH"], cwd: undefined })
        const [reason, ...others] = faults
        return reason === undefined
          ? executable
          : yield* unavailable(new ProcessError({ reason, others }).message, remedy)
      })
      const ask = <A>(binary: string, flag: string, remedy: string, read: (text: string) => A | undefined) =>
        Effect.gen(function*() {
          const child = yield* spawner.spawn(ChildProcess.make(binary, [flag], { stdin: "ignore" }), {
            // It starts nothing, and a cgroup takes longer than it does.
            killScope: "process"
          })
          yield* child.exit
          const { stderr, stdout } = yield* child.tail
          const text = `${stdout.text}${stderr.text}`
          return read(text) ??
            (yield* unavailable(`${binary} ${flag} says ${JSON.stringify(text.slice(0, 200))}`, remedy))
        }).pipe(
          Effect.scoped,
          Effect.catchTag("ProcessError", (error) => Effect.fail(unavailable(error.message, remedy))),
          Effect.timeoutOrElse({
            duration: "10 seconds",
            orElse: () => Effect.fail(unavailable(`${binary} ${flag} gave no answer within 10 seconds`, remedy))
          })
        )
      const lookAtJailer = Effect.fnUntraced(function*(command: string) {
        const found = yield* find(command, jailerRemedy)
        return { binary: found, version: yield* ask(found, "--version", jailerRemedy, FirecrackerVersion.parse) }
      })

      if (options.diffs === true) {
        yield* Effect.mapError(
          NodeLibc.load,
          (error) => unavailable(NodeLibc.whyOf(error), "do without differences between snapshots, or see to it")
        )
      }
      const cpuinfo = yield* Effect.promise(() => NodeFs.readFile("/proc/cpuinfo", "utf8"))
      const binary = yield* find(options.binary ?? "firecracker", binaryRemedy)
      const version = yield* Effect.cached(ask(binary, "--version", binaryRemedy, FirecrackerVersion.parse))
      const { digest, jailer, ...seen } = yield* Effect.all({
        digest: Effect.orElseSucceed(NodeFileDigest.sha256(binary), () => undefined),
        version,
        // What is no Firecracker is told by what it says it is, whichever answer comes first.
        snapshotFormat: Effect.tapError(
          ask(binary, "--snapshot-version", binaryRemedy, parseSnapshotFormat),
          () => version
        ),
        kvm: Effect.promise(() => lookAtKvm(architecture, cpuinfo)),
        jailer: options.jailer === undefined ? Effect.undefined : lookAtJailer(options.jailer)
      }, { concurrency: "unbounded" })
      return {
        binary,
        ...seen,
        ...(digest !== undefined && { digest }),
        architecture,
        cpu: describeCpu(cpuinfo),
        kernel: NodeOs.release(),
        uid,
        passesCapabilities: uid !== 0 &&
          ProcessCapabilities.parse(readFileSync("/proc/self/status", "utf8")).ambient !== 0n,
        ...(jailer !== undefined && { jailer })
      }
    })

    const makeDirectory: FirecrackerHost["Service"]["makeDirectory"] = Effect.fn("FirecrackerHost.makeDirectory")(
      function*(options) {
        const parent = options.parent ?? (yield* Effect.promise(() => defaultParent(uid)))
        const fromPlatform = (operation: string) => (cause: PlatformError.PlatformError) =>
          hostFailed(operation, parent, cause.message, cause)
        yield* Effect.mapError(OwnedFiles.ensureDirectory(parent), fromPlatform("make"))
        yield* checkParent(parent, uid)
        if (!swept.has(parent)) {
          yield* Effect.mapError(OwnedFiles.sweep(parent), fromPlatform("sweep"))
          swept.add(parent)
        }
        const directory = yield* Effect.mapError(
          OwnedFiles.temporaryDirectory(parent),
          fromPlatform("make a directory in")
        )
        // Between the two it would stay until the next one sweeps.
        yield* Effect.mapError(
          guard.watch(Watched.Directory({ path: directory })),
          (cause) => hostFailed("guard", directory, cause.message, cause)
        )
        yield* fill(directory, options)
        return directory
      },
      Effect.provide(files)
    )

    return FirecrackerHost.of({
      observe,
      inspect: (path, { writable = false } = {}) => Effect.promise(() => lookAtFile(path, writable)),
      disk: (path, options) => Effect.flatMap(identifyDisk, ({ identify }) => identify(path, options)),
      makeDirectory,
      keepDirectory,
      empty,
      connect: (socketPath) => NodeApiTransport.make({ socketPath }),
      copy,
      makeReadable,
      write,
      read: readText,
      listPages: (memory, to) => Effect.flatMap(libc, (loaded) => listPages(loaded, memory, to)),
      mergeMemory,
      moment: Effect.sync(() => randomUUID()),
      remove,
      tail,
      trim
    })
  })
)
