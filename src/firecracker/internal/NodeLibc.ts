/**
 * What Node cannot do: receive a descriptor over a socket, map a file, find its holes, wait for a process that is not its child. By koffi, an
 * optional peer dependency. Structures are those of Linux on 64 bits and little-endian, which are the same with glibc and
 * with musl.
 */
import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type * as Koffi from "koffi"
import * as NodeFs from "node:fs"
import { createRequire } from "node:module"
import { getSystemErrorName } from "node:util"
import * as FirecrackerError from "../FirecrackerError.ts"
import type { Peer } from "../PageServer.ts"

/** A piece of what came over a connection. */
export interface Received {
  /** None at the end. */
  readonly bytes: Uint8Array
  readonly descriptor: number | undefined
}

/** None of these waits. They throw an error with a `code`, such as `EADDRINUSE`. Descriptors are closed on exec. */
export interface Libc {
  /** Where koffi is, for other threads. */
  readonly koffi: string
  readonly eventfd: () => number
  /** An epoll that watches for what can be read: the bit of the first descriptor is 1, that of the second 2, and so on. */
  readonly epoll: (descriptors: ReadonlyArray<number>) => number
  /** A stream socket at a path of 107 bytes at most, to which only its owner may connect. */
  readonly bind: (path: string) => number
  readonly listen: (socket: number) => void
  /** Undefined while nobody connects. */
  readonly accept: (listener: number) => number | undefined
  readonly peerOf: (connection: number) => Peer
  /** Undefined while nothing has come. */
  readonly receive: (connection: number, most: number) => Received | undefined
  readonly makeNonBlocking: (descriptor: number) => void
  /** Readable once the process has ended. */
  readonly pidfd: (pid: number) => number
  /** The address of so many bytes of a file, or of zeros, to read only. */
  readonly map: (length: number, descriptor?: number) => number
  readonly unmap: (address: number, length: number) => void
  /** Where the reading goes on (lseek(2)). */
  readonly lseek: (descriptor: number, offset: number, whence: number) => number
}

export const nameOf = (errno: number): string => getSystemErrorName(-errno)

export const textOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

export const failure = (why: string, cause?: unknown): FirecrackerError.FirecrackerError =>
  FirecrackerError.make(new FirecrackerError.PageServerFailed({ why, cause }))

/** What was said to `failure`. */
export const whyOf = ({ message, reason }: FirecrackerError.FirecrackerError): string =>
  reason._tag === "PageServerFailed" ? reason.why : message

export const attempt = <A>(what: string, run: () => A): Effect.Effect<A, FirecrackerError.FirecrackerError> =>
  Effect.try({ try: run, catch: (cause) => failure(`${what}: ${textOf(cause)}`, cause) })

export const close = (descriptor: number | undefined): Effect.Effect<void> =>
  Effect.sync(() => descriptor === undefined || NodeFs.closeSync(descriptor))

/** A descriptor, until the scope closes. */
export const opened = (
  what: string,
  open: () => number
): Effect.Effect<number, FirecrackerError.FirecrackerError, Scope.Scope> =>
  Effect.acquireRelease(attempt(what, open), close)

const [AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC, SOCK_NONBLOCK] = [1, 1, 0o2000000, 0o4000] as const
const [SOL_SOCKET, SO_PEERCRED, SCM_RIGHTS, MSG_CTRUNC, MSG_CMSG_CLOEXEC] = [1, 17, 1, 8, 0x40000000] as const
const [F_GETFL, F_SETFL, O_NONBLOCK, EFD_CLOEXEC] = [3, 4, 0o4000, 0o2000000] as const
const [PROT_READ, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE] = [1, 2, 0x20, 0x4000] as const
const [EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN] = [0o2000000, 1, 1] as const
const pidfdOpen = 434

/** How large `struct epoll_event` is, and where its data are. It is packed on x86-64 alone. */
export const epollEvent = process.arch === "x64" ? { size: 12, data: 4 } as const : { size: 16, data: 8 } as const

type Argument = number | Uint8Array | null

const make = (koffi: typeof Koffi, path: string): Libc => {
  const libc = koffi.load(null)
  const declare = (declaration: string) => {
    const call: (...args: ReadonlyArray<Argument>) => number = libc.func(declaration)
    return (...args: ReadonlyArray<Argument>): number => {
      const result = call(...args)
      if (result >= 0) return result
      const code = nameOf(koffi.errno())
      throw Object.assign(new Error(`${declaration.split(/[ (]/)[1]}: ${code}`), { code })
    }
  }
  const accept4 = declare("int accept4(int, void *, void *, int)")
  const bind = declare("int bind(int, void *, uint)")
  const epollCreate1 = declare("int epoll_create1(int)")
  const epollCtl = declare("int epoll_ctl(int, int, int, void *)")
  const eventfd = declare("int eventfd(uint, int)")
  const fcntl = declare("int fcntl(int, int, long)")
  const getsockopt = declare("int getsockopt(int, int, int, void *, void *)")
  const lseek = declare("long lseek(int, long, int)")
  const listen = declare("int listen(int, int)")
  const mmap = declare("intptr_t mmap(void *, size_t, int, int, int, long)")
  const munmap = declare("int munmap(uintptr_t, size_t)")
  const recvmsg = declare("long recvmsg(int, void *, int)")
  const socket = declare("int socket(int, int, int)")
  const syscall = declare("long syscall(long, long, long)")

  const unlessEmpty = <A>(run: () => A): A | undefined => {
    try {
      return run()
    } catch (error) {
      if (hasProperty(error, "code") && error.code === "EAGAIN") return undefined
      throw error
    }
  }

  const unlessFailing = (descriptor: number, prepare: (descriptor: number) => void): number => {
    try {
      prepare(descriptor)
      return descriptor
    } catch (error) {
      NodeFs.closeSync(descriptor)
      throw error
    }
  }

  return {
    koffi: path,
    eventfd: () => eventfd(0, EFD_CLOEXEC),
    epoll: (descriptors) =>
      unlessFailing(epollCreate1(EPOLL_CLOEXEC), (epoll) => {
        for (const [index, descriptor] of descriptors.entries()) {
          const event = Buffer.alloc(epollEvent.size)
          event.writeUInt32LE(EPOLLIN)
          event.writeUInt32LE(1 << index, epollEvent.data)
          epollCtl(epoll, EPOLL_CTL_ADD, descriptor, event)
        }
      }),
    bind: (at) =>
      unlessFailing(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), (descriptor) => {
        // What a socket has before, its file gets.
        NodeFs.fchmodSync(descriptor, 0o600)
        const address = Buffer.alloc(110)
        address.writeUInt16LE(AF_UNIX)
        bind(descriptor, address, 2 + address.write(at, 2) + 1)
      }),
    listen: (descriptor) => {
      listen(descriptor, 8)
    },
    accept: (listener) => unlessEmpty(() => accept4(listener, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK)),
    peerOf: (connection) => {
      const credentials = Buffer.alloc(12)
      const length = Buffer.alloc(4)
      length.writeUInt32LE(credentials.length)
      getsockopt(connection, SOL_SOCKET, SO_PEERCRED, credentials, length)
      return { pid: credentials.readInt32LE(0), uid: credentials.readUInt32LE(4), gid: credentials.readUInt32LE(8) }
    },
    receive: (connection, most) => {
      const buffer = Buffer.alloc(most)
      const vector = Buffer.alloc(16)
      vector.writeBigUInt64LE(koffi.address(buffer), 0)
      vector.writeBigUInt64LE(BigInt(most), 8)
      const control = Buffer.alloc(24)
      const message = Buffer.alloc(56)
      message.writeBigUInt64LE(koffi.address(vector), 16)
      message.writeBigUInt64LE(1n, 24)
      message.writeBigUInt64LE(koffi.address(control), 32)
      // The head, and one descriptor. There would be room for a second one.
      message.writeBigUInt64LE(20n, 40)
      const length = unlessEmpty(() => recvmsg(connection, message, MSG_CMSG_CLOEXEC))
      if (length === undefined) return undefined
      const isRights = message.readBigUInt64LE(40) >= 20n && control.readInt32LE(8) === SOL_SOCKET &&
        control.readInt32LE(12) === SCM_RIGHTS
      const descriptor = isRights ? control.readInt32LE(16) : undefined
      if ((message.readInt32LE(48) & MSG_CTRUNC) !== 0) {
        if (descriptor !== undefined) NodeFs.closeSync(descriptor)
        throw new Error("more descriptors came than one, or than this process may have")
      }
      return { bytes: buffer.subarray(0, length), descriptor }
    },
    makeNonBlocking: (descriptor) => {
      fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL, 0) | O_NONBLOCK)
    },
    pidfd: (pid) => syscall(pidfdOpen, pid, 0),
    map: (length, descriptor) =>
      mmap(
        null,
        length,
        PROT_READ,
        MAP_PRIVATE | MAP_NORESERVE | (descriptor === undefined ? MAP_ANONYMOUS : 0),
        descriptor ?? -1,
        0
      ),
    unmap: (address, length) => {
      munmap(address, length)
    },
    lseek: (descriptor, offset, whence) => lseek(descriptor, offset, whence)
  }
}

const isKoffi = (module: unknown): module is typeof Koffi =>
  ["load", "address", "errno"].every((name) => hasProperty(module, name) && typeof module[name] === "function")

/** Fails with `PageServerFailed` where it cannot be used. */
export const load: Effect.Effect<Libc, FirecrackerError.FirecrackerError> = Effect.suspend(() => {
  const { arch, platform } = process
  if (platform !== "linux" || (arch !== "x64" && arch !== "arm64")) {
    return Effect.fail(failure(`it is not for ${platform} on ${arch}`))
  }
  return Effect.try({
    try: () => {
      // Not by `import`: then it would become a part of bundles, which cannot hold its native code.
      const require = createRequire(import.meta.url)
      const koffi: unknown = require("koffi")
      if (!isKoffi(koffi)) throw new Error("it is not the version that is needed")
      return make(koffi, require.resolve("koffi"))
    },
    catch: (cause) =>
      hasProperty(cause, "code") && cause.code === "MODULE_NOT_FOUND"
        ? failure("the package koffi is not installed: npm install koffi", cause)
        : failure(`koffi cannot be loaded: ${textOf(cause)}`, cause)
  })
})
