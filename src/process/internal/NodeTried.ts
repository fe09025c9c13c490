import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { attempt } from "./NodeErrno.ts"

/** Which file it is, in which state, since which start of the machine. */
const stateOf = (executable: string, bootId: string): string => {
  const { ctimeNs, dev, ino, mtimeNs, size } = NodeFs.statSync(executable, { bigint: true })
  return [bootId, executable, dev, ino, size, mtimeNs, ctimeNs].join(" ")
}

const fileOf = (directory: string, executable: string): string =>
  NodePath.join(directory, `${NodePath.basename(executable)}.tried`)

/** Has a program been seen to work since the machine was started, and is it still the same file? */
export const isKnown = (directory: string, executable: string, bootId: string): boolean =>
  attempt(() => NodeFs.readFileSync(fileOf(directory, executable), "utf8") === stateOf(executable, bootId)) ?? false

/** Best effort: without it, the program is tried again. */
export const keep = (directory: string, executable: string, bootId: string): void => {
  const file = fileOf(directory, executable)
  const own = `${file}.${process.pid}`
  attempt(() => {
    if (!NodeFs.existsSync(directory)) NodeFs.mkdirSync(directory, { mode: 0o700 })
    // Through no link that somebody else has put there.
    NodeFs.writeFileSync(own, stateOf(executable, bootId), { flag: "wx", mode: 0o600 })
    NodeFs.renameSync(own, file)
  })
  attempt(() => NodeFs.rmSync(own, { force: true }))
}
