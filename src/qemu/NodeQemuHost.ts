/**
 * The host as Node sees it.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import { readFileSync } from "node:fs"
import * as NodeFs from "node:fs/promises"
import * as NodeOs from "node:os"
import * as ExitStatus from "../lifecycle/ExitStatus.ts"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import * as NodeUserMap from "../process/NodeUserMap.ts"
import * as ProcessCapabilities from "../process/ProcessCapabilities.ts"
import type { ProcessError } from "../process/ProcessError.ts"
import { ProcessSpawner } from "../process/ProcessSpawner.ts"
import { SupervisorGuard } from "../process/SupervisorGuard.ts"
import { describeCpu } from "./internal/NodeCpu.ts"
import { makeRam } from "./internal/NodeRam.ts"
import { receive } from "./internal/NodeReceive.ts"
import { type Answer, answerOf } from "./internal/NodeVersions.ts"
import { type Architecture, type FileFacts, HostFailed, type Kvm, parseVersion, QemuHost } from "./QemuHost.ts"

const unavailable = (why: string, remedy: string): MicroVmError.MicroVmError =>
  MicroVmError.make(new MicroVmError.BackendUnavailable({ backend: "qemu", why, remedy }))

const architectureOf: { readonly [arch: string]: Architecture } = { x64: "x86_64", arm64: "aarch64" }

const packageOf: { readonly [A in Architecture]: string } = { x86_64: "qemu-system-x86", aarch64: "qemu-system-arm" }

const codeOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "code" in error ? String(error.code) : String(error)

const withoutDevice: { readonly [A in Architecture]: string } = {
  x86_64: "sudo modprobe kvm_intel || sudo modprobe kvm_amd",
  aarch64: "nothing to type: take a kernel with KVM in it"
}

/** The device must open, which also loads the module on some hosts, and the processor must have what KVM needs. */
const lookAtKvm = async (architecture: Architecture): Promise<Kvm> => {
  const device = "/dev/kvm"
  try {
    // A para-virtual KVM opens as well, but guests hang in it; and nobody is to ask for the right to open one that is of no use.
    if (
      architecture === "x86_64" && !/^flags\s*:.*\b(vmx|svm)\b/m.test(await NodeFs.readFile("/proc/cpuinfo", "utf8"))
    ) {
      const remedy = "nothing to type: turn on (nested) virtualization for this machine"
      return { _tag: "Unusable", why: "the CPU shows neither vmx nor svm", remedy }
    }
    await using handle = await NodeFs.open(device, "r+")
    const { gid, mode } = await handle.stat()
    return { _tag: "Usable", gid, mode: mode & 0o777 }
  } catch (error) {
    const code = codeOf(error)
    return code === "EACCES" || code === "EPERM"
      ? {
        _tag: "Unusable",
        why: `${device} may not be opened by us`,
        remedy: "sudo usermod -a -G kvm \"$USER\" # and log in again"
      }
      : {
        _tag: "Unusable",
        why: `${device} cannot be opened: ${code}`,
        remedy: withoutDevice[architecture]
      }
  }
}

const isTunClosed = async (): Promise<boolean> => {
  const stat = await NodeFs.stat("/dev/net/tun").catch(() => undefined)
  return stat !== undefined && (stat.mode & 0o006) !== 0o006
}

const lookAtFile = async (path: string, writable: boolean): Promise<FileFacts> => {
  const { O_NONBLOCK, O_RDONLY, O_RDWR } = NodeFs.constants
  try {
    // A pipe without a writer would hold up the open.
    await using handle = await NodeFs.open(path, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK)
    const stat = await handle.stat()
    const facts = { path, worldReadable: (stat.mode & 0o004) !== 0, worldWritable: (stat.mode & 0o002) !== 0 }
    return stat.isFile() ? facts : { ...facts, fault: "it is no regular file" }
  } catch (error) {
    const code = codeOf(error)
    const fault = `it cannot be opened${writable ? " for writing" : ""}: ${code}`
    const isShort = code === "EMFILE" || code === "ENFILE"
    const isClosed = isShort || ["EACCES", "EPERM", "EROFS"].includes(code)
    return {
      path,
      worldReadable: false,
      worldWritable: false,
      fault,
      ...(isClosed && { isClosed }),
      ...(isShort && { remedy: "raise the limit of open files (ulimit -n), or do less at once" })
    }
  }
}

/** Loaded only where there are disks. */
const identifyDisk = Effect.promise(() => import("../host/NodeDiskIdentity.ts"))

const copy: QemuHost["Service"]["copy"] = (from, to) =>
  Effect.uninterruptible(Effect.tryPromise({
    try: async () => {
      const { COPYFILE_EXCL, COPYFILE_FICLONE } = NodeFs.constants
      await NodeFs.copyFile(from, to, COPYFILE_EXCL | COPYFILE_FICLONE)
      await NodeFs.chmod(to, 0o644)
    },
    catch: (cause) => new HostFailed({ path: to, why: `no copy of ${from} can be made: ${String(cause)}`, cause })
  }))

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * A directory, made if need be in one that is there, in which what programs say of their version is kept, for as long as they are the same files: to ask QEMU takes
   * 40 ms. A script is asked each time. By default nothing is kept.
   */
  readonly versions?: string | undefined
}

/**
 * Looks at the real host, likewise, with options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = ({ versions }: Options): Layer.Layer<QemuHost, never, ProcessSpawner | SupervisorGuard> =>
  Layer.effect(
    QemuHost,
    Effect.gen(function*() {
      const spawner = yield* ProcessSpawner
      const guard = yield* SupervisorGuard
      const searched = process.env["PATH"] ?? "/usr/bin:/bin"
      const firstLine = (program: string, afresh: boolean): Effect.Effect<Answer, ProcessError> =>
        answerOf(versions, {
          program,
          path: searched,
          afresh,
          ask: Effect.scoped(Effect.gen(function*() {
            const child = yield* spawner.spawn(ChildProcess.make(program, ["--version"], { stdin: "ignore" }), {
              // It starts nothing, and a cgroup takes longer than it does.
              killScope: "process"
            })
            const status = yield* child.exit
            const { stderr, stdout } = yield* child.tail
            const [line = ""] = `${stdout.text}${stderr.text}`.split("\n", 1)
            return [line, ExitStatus.isSuccess(status) && line !== ""] as const
          }))
        })

      const observe: QemuHost["Service"]["observe"] = Effect.fn("QemuHost.observe")(function*(options) {
        const architecture = architectureOf[process.arch]
        if (architecture === undefined) {
          return yield* unavailable(
            `no machine is known for ${process.arch}`,
            "use a host with an x86-64 or 64-bit ARM CPU"
          )
        }
        const binary = options.binary ?? `qemu-system-${architecture}`
        const remedy = `install it (Debian, Ubuntu: ${packageOf[architecture]}), or set MICROVM_QEMU_BIN`
        const uid = process.geteuid?.() ?? 0
        const program = Effect.gen(function*() {
          const { answer: line, sha256 } = yield* firstLine(binary, options.afresh ?? false).pipe(
            Effect.mapError((error) => unavailable(error.message, remedy)),
            Effect.timeoutOrElse({
              duration: "10 seconds",
              orElse: () => Effect.fail(unavailable(`${binary} --version gave no answer within 10 seconds`, remedy))
            })
          )
          const version = parseVersion(line) ??
            (yield* unavailable(`${binary} --version says ${JSON.stringify(line.slice(0, 200))}`, remedy))
          return { version, ...(sha256 !== undefined && { digest: sha256 }) }
        })
        const setpriv = firstLine("setpriv", options.afresh ?? false).pipe(
          Effect.map(({ answer }) => answer.includes("util-linux")),
          Effect.timeoutOrElse({ duration: "10 seconds", orElse: () => Effect.succeed(false) }),
          Effect.orElseSucceed(() => false)
        )
        const passesCapabilities = ProcessCapabilities.parse(readFileSync("/proc/self/status", "utf8")).ambient !== 0n
        const { cpuinfo, program: told, ...seen } = yield* Effect.all({
          program,
          setpriv: uid === 0 || passesCapabilities ? setpriv : Effect.succeed(false),
          kvm: Effect.promise(() => lookAtKvm(architecture)),
          tunIsClosed: Effect.promise(isTunClosed),
          cpuinfo: Effect.promise(() => NodeFs.readFile("/proc/cpuinfo", "utf8"))
        }, { concurrency: "unbounded" })
        const cpu = describeCpu(cpuinfo, seen.kvm, NodeOs.release())
        const others = uid === 0 ? NodeUserMap.others() : []
        return { binary, architecture, uid, others, passesCapabilities, ...told, ...seen, cpu, path: searched }
      })
      return QemuHost.of({
        observe,
        inspect: (path, { writable = false } = {}) => Effect.promise(() => lookAtFile(path, writable)),
        disk: (path, options) => Effect.flatMap(identifyDisk, ({ identify }) => identify(path, options)),
        copy,
        makeRam,
        receive: (file, from) => receive(guard, file, from)
      })
    })
  )

/**
 * Looks at the real host. QEMU is asked for its version, and is given 10 seconds to answer.
 *
 * ```ts import.meta.vitest
 * import { NodeProcessSpawner } from "effect-microvm-runtime/process"
 * import { NodeQemuHost, QemuHost } from "effect-microvm-runtime/qemu"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const facts = QemuHost.QemuHost.use((host) => host.inspect("/proc/version"))
 * const layer = Layer.provide(NodeQemuHost.layer, NodeProcessSpawner.layer)
 * await Effect.runPromise(Effect.provide(facts, layer)) // => { path: "/proc/version", worldReadable: true, worldWritable: false }
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<QemuHost, never, ProcessSpawner | SupervisorGuard> = layerWith({})
