import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { ProcessErrorReason } from "../ProcessError.ts"
import { attempt, errnoName } from "./NodeErrno.ts"

const isExecutable = (path: string): boolean =>
  attempt(() => NodeFs.accessSync(path, NodeFs.constants.X_OK) === undefined) ?? false

/** First bytes of a file, or `undefined` where it can be run but not read. */
const readHead = (path: string, length: number): string | undefined =>
  attempt(() => {
    const fd = NodeFs.openSync(path, "r")
    try {
      const head = Buffer.alloc(length)
      return head.toString("latin1", 0, NodeFs.readSync(fd, head, 0, length, 0))
    } finally {
      NodeFs.closeSync(fd)
    }
  })

/** The kernel reads a `#!` line up to here (execve(2), BINPRM_BUF_SIZE). */
const longestShebang = 256

/** Why execve(2) would refuse a regular file that has an x bit, or `undefined`. */
const refusal = (path: string): string | undefined => {
  const head = readHead(path, longestShebang)
  if (head === undefined || head.startsWith("\x7fELF")) return undefined
  if (!head.startsWith("#!")) return "it is neither an ELF file nor a script that starts with #!"
  const interpreter = /^#![ \t]*([^ \t\n]+)/.exec(head)?.[1]
  if (interpreter === undefined) return "its first line names no interpreter after #!"
  return isExecutable(interpreter) ? undefined : `its interpreter ${JSON.stringify(interpreter)} is not there`
}

const checkDirectory = (path: string): string | undefined => {
  try {
    if (!NodeFs.statSync(path).isDirectory()) return "is not a directory"
    NodeFs.accessSync(path, NodeFs.constants.X_OK)
    return undefined
  } catch (cause) {
    const code = errnoName(cause)
    return code === "ENOENT" ? "no such directory" : `cannot be entered (${code})`
  }
}

/** Finds what execvp(3) would find, from the directory that the child will be in. */
export const locate = (request: {
  readonly command: string
  readonly path: string | undefined
  readonly cwd: string | undefined
}): { readonly executable: string; readonly faults: ReadonlyArray<ProcessErrorReason> } => {
  const cwd = attempt(() => NodePath.resolve(request.cwd ?? "."))
  if (cwd === undefined) {
    const why = "our own working directory is gone: change to another"
    return { executable: request.command, faults: [ProcessErrorReason.BadWorkingDirectory({ path: ".", why })] }
  }
  const directoryFault = checkDirectory(cwd)
  const faults = directoryFault === undefined
    ? []
    : [ProcessErrorReason.BadWorkingDirectory({ path: request.cwd ?? cwd, why: directoryFault })]

  const searched = request.command.includes("/") ? [] : (request.path ?? "/bin:/usr/bin").split(":")
  const candidates = request.command.includes("/")
    ? [NodePath.resolve(cwd, request.command)]
    : searched.map((directory) => NodePath.resolve(cwd, directory, request.command))
  let refused: ProcessErrorReason | undefined
  for (const path of candidates) {
    const stat = attempt(() => NodeFs.statSync(path))
    if (stat === undefined) continue
    const why = stat.isDirectory()
      ? "it is a directory"
      : !stat.isFile()
      ? "it is not a regular file"
      : !isExecutable(path)
      ? "it has no x permission for us"
      : refusal(path)
    if (why === undefined) return { executable: path, faults }
    refused ??= ProcessErrorReason.NotExecutable({ path, why })
  }
  // Without the directory, a relative path says nothing of its own.
  const isHidden = directoryFault !== undefined && !NodePath.isAbsolute(request.command) && searched.length === 0
  const fault = refused ?? ProcessErrorReason.NotFound({ command: request.command, searched })
  return { executable: request.command, faults: isHidden ? faults : [fault, ...faults] }
}
