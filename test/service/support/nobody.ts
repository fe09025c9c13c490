import { spawnSync } from "node:child_process"

/** Runs a command as a user without any rights; needs root. */
export const asNobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] as const

const [setpriv, ...args] = asNobody

/** Can that user run what is in this clone? */
export const canBeNobody = spawnSync(setpriv, [...args, "test", "-r", import.meta.filename]).status === 0
if (!canBeNobody) {
  console.warn("Skipped: what runs as another user, because that needs root, and a clone that others may read")
}
