/** What a fake Firecracker has of the machine it runs on: files, named as it names them, and the words of their errors. */
import * as Fs from "node:fs"
import type * as Net from "node:net"
import * as Path from "node:path"

const messages: Readonly<Record<string, readonly [number, string, string]>> = {
  EPERM: [1, "PermissionDenied", "Operation not permitted"],
  ENOENT: [2, "NotFound", "No such file or directory"],
  ENXIO: [6, "Uncategorized", "No such device or address"],
  EAGAIN: [11, "WouldBlock", "Resource temporarily unavailable"],
  EACCES: [13, "PermissionDenied", "Permission denied"],
  EBUSY: [16, "ResourceBusy", "Device or resource busy"],
  EEXIST: [17, "AlreadyExists", "File exists"],
  ENODEV: [19, "Uncategorized", "No such device"],
  ENOTDIR: [20, "NotADirectory", "Not a directory"],
  EISDIR: [21, "IsADirectory", "Is a directory"],
  EINVAL: [22, "InvalidInput", "Invalid argument"],
  EMFILE: [24, "Uncategorized", "Too many open files"],
  ETXTBSY: [26, "ExecutableFileBusy", "Text file busy"],
  EFBIG: [27, "FileTooLarge", "File too large"],
  ENOSPC: [28, "StorageFull", "No space left on device"],
  EROFS: [30, "ReadOnlyFilesystem", "Read-only file system"],
  ENAMETOOLONG: [36, "InvalidFilename", "File name too long"],
  ELOOP: [40, "FilesystemLoop", "Too many levels of symbolic links"],
  EADDRINUSE: [98, "AddrInUse", "Address already in use"],
  ECONNREFUSED: [111, "ConnectionRefused", "Connection refused"]
}

export const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "EINVAL"

/** A path that no socket's name has room for. */
const tooLong = Object.assign(new Error("too long"), { code: "SUN_LEN" })

/** An error of the system as Rust prints it: for people, and for programmers. */
export const ioError = (error: unknown): { readonly text: string; readonly debug: string } => {
  const code = codeOf(error)
  if (code === "ERR_INVALID_ARG_VALUE") {
    const text = "file name contained an unexpected NUL byte"
    return { text, debug: `Error { kind: InvalidInput, message: "${text}" }` }
  }
  if (code === "SUN_LEN") {
    const text = "path must be shorter than SUN_LEN"
    return { text, debug: `Error { kind: InvalidInput, message: "${text}" }` }
  }
  const [number, kind, message] = messages[code] ?? [5, "Uncategorized", "Input/output error"]
  return {
    text: `${message} (os error ${number})`,
    debug: `Os { code: ${number}, kind: ${kind}, message: "${message}" }`
  }
}

export interface World {
  /** Where a path that Firecracker was told leads. In a jail that is somewhere below its root. */
  readonly resolve: (path: string) => string
  /** The same for a socket, by a name that is short enough to bind it where it can be. */
  readonly socketPath: (path: string) => string
}

/**
 * Files as a process sees them that works in `cwd`, or the only directory it sees is `root`. In a jail the process works in its
 * root, so that names of sockets are no longer there than they are in a real one.
 */
export const make = (options: { readonly root?: string | undefined; readonly cwd?: string | undefined }): World => {
  const { cwd, root } = options
  const resolve = (path: string) =>
    path === "" ? "" : root === undefined ? Path.resolve(cwd ?? ".", path) : Path.join(root, Path.resolve("/", path))
  return {
    resolve,
    socketPath: (path) => {
      // What has no name is given one by the system, of a kind that no file has.
      if (path === "") return `\0fake-${process.pid}-${performance.now()}`
      const short = root !== undefined ? `.${Path.resolve("/", path)}` : cwd === undefined ? path : resolve(path)
      if (Buffer.byteLength(path) > 107 || Buffer.byteLength(short) > 107) throw tooLong
      return short
    }
  }
}

/** Why a socket could not be bound. Node tells a missing directory as one that is not allowed. */
export const bindError = (error: unknown, path: string): unknown =>
  codeOf(error) === "EACCES" && !Fs.existsSync(Path.dirname(path))
    ? Object.assign(new Error("missing"), { code: "ENOENT" })
    : error

/** What of a text goes into a descriptor at once. A reader that is gone or too slow is no reason to stop. */
export const writeSome = (descriptor: number, text: string): boolean => {
  try {
    Fs.writeSync(descriptor, text)
    return true
  } catch {
    return false
  }
}

/** The process's own stdout, never waited for where that can be had. */
export const openStdout = (): number => {
  const { O_APPEND, O_NONBLOCK, O_WRONLY } = Fs.constants
  try {
    return Fs.fstatSync(1).isFIFO() ? Fs.openSync("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_APPEND) : 1
  } catch {
    return 1
  }
}

/** Closes a server and leaves its file, which Node would remove: a process that dies does not. */
export const leaveSocket = (server: Net.Server, path: string): void => {
  const aside = `${path}~`
  try {
    Fs.renameSync(path, aside)
    server.close()
    Fs.renameSync(aside, path)
  } catch {
    server.unref()
  }
}
