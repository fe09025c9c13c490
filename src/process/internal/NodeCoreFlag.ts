/**
 * Has a child left a core file? Node hands on its signal alone. From 6.15 on, Linux keeps the wait status of a process that
 * was reaped for who holds a pidfd of it. By koffi, an optional peer dependency: without it nothing is known, as before.
 */
import { hasProperty } from "effect/Predicate"
import type * as Koffi from "koffi"
import * as NodeFs from "node:fs"
import { attempt } from "./NodeErrno.ts"

/** A child that is looked at once more when it has ended. It holds a descriptor until it is closed. */
export interface Witness {
  /**
   * Certain if `true`. If not, nothing is known: the kernel keeps the status of the first thread, which has no flag when it was
   * another one that failed.
   */
  readonly hasDumped: () => boolean
  readonly close: () => void
}

// linux/pidfd.h. The structure may be longer than the kernel's, or shorter: this is its first version.
const info = { size: 64, mask: 0, exitCode: 60 } as const
const hasExit = 8n
/** `_IOWR(0xFF, 11, struct pidfd_info)` */
const getInfo = 0xc000ff0b | info.size << 16
const pidfdOpen = 434
const coreFlag = 0x80

interface Calls {
  /** Negative where there is none to be had. Closed on exec. */
  readonly open: (pid: number) => number
  /** The wait status, once it was reaped. */
  readonly statusOf: (descriptor: number) => number | undefined
}

const isKoffi = (module: unknown): module is Pick<typeof Koffi, "load"> =>
  hasProperty(module, "load") && typeof module.load === "function"

const load = (): Calls | undefined => {
  const { arch, platform } = process
  if (platform !== "linux" || (arch !== "x64" && arch !== "arm64")) return undefined
  // Node closes the descriptors of a thread that is ended, but only those that it has opened itself.
  if (!process.getBuiltinModule("node:worker_threads").isMainThread) return undefined
  // Not by `import`: then it would become a part of bundles, which cannot hold its native code. Nor by an import of `createRequire`,
  // a name that bundles give themselves.
  const koffi: unknown = process.getBuiltinModule("node:module").createRequire(import.meta.url)("koffi")
  if (!isKoffi(koffi)) return undefined
  const libc = koffi.load(null)
  const syscall: (...args: ReadonlyArray<number>) => number = libc.func("long syscall(long, long, long)")
  const ioctl: (descriptor: number, request: number, argument: Uint8Array) => number = libc.func(
    "int ioctl(int, ulong, void *)"
  )
  const ask = (descriptor: number): Buffer | undefined => {
    const buffer = Buffer.alloc(info.size)
    buffer.writeBigUInt64LE(hasExit, info.mask)
    return ioctl(descriptor, getInfo >>> 0, buffer) < 0 ? undefined : buffer
  }
  const calls: Calls = {
    open: (pid) => syscall(pidfdOpen, pid, 0),
    statusOf: (descriptor) => {
      const buffer = ask(descriptor)
      return buffer === undefined || (buffer.readBigUInt64LE(info.mask) & hasExit) === 0n
        ? undefined
        : buffer.readInt32LE(info.exitCode)
    }
  }
  // A kernel that does not know the question at all needs to be asked no more.
  const self = calls.open(process.pid)
  if (self < 0) return undefined
  try {
    return ask(self) && calls
  } finally {
    NodeFs.closeSync(self)
  }
}

let loaded: { readonly calls: Calls | undefined } | undefined

/** To be called in the turn in which the child was started, before Node can have reaped it. Nothing where nothing can be known. */
export const witness = (pid: number): Witness | undefined => {
  loaded ??= { calls: attempt(load) }
  const { calls } = loaded
  if (calls === undefined) return undefined
  let descriptor: number | undefined = calls.open(pid)
  if (descriptor < 0) return undefined
  return {
    hasDumped: () => descriptor !== undefined && ((calls.statusOf(descriptor) ?? 0) & coreFlag) !== 0,
    close: () => {
      if (descriptor !== undefined) NodeFs.closeSync(descriptor)
      descriptor = undefined
    }
  }
}
