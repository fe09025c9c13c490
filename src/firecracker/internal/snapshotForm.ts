/** What a snapshot is made of. */
import * as Snapshot from "../../microvm/Snapshot.ts"
import type { MemoryLayer } from "../FirecrackerHost.ts"

/**
 * How a snapshot holds the machine:
 *
 * - `full`: its memory, and the state of its devices.
 * - `diff`: the same, but of its memory only the pages that are others than in its base, with a list of them.
 * - `unstarted`: it has not run yet, so there is nothing but its spec, and copies of the files that it boots.
 *
 * @category models
 * @since 0.1.0
 */
export type Form = "full" | "diff" | "unstarted"

/**
 * The files of a snapshot: `state` and `memory` in the form `full`, and `pages` as well in the form `diff`; in `unstarted` there
 * are `kernel` and, if the machine has one, `initramfs`.
 *
 * @category constants
 * @since 0.1.0
 */
export const snapshotFiles = {
  state: "state",
  memory: "memory",
  pages: "pages",
  kernel: "kernel",
  initramfs: "initramfs"
} as const

/**
 * A memory file, and the differences to it, the topmost last.
 *
 * @category models
 * @since 0.1.0
 */
export interface Merged {
  readonly base: string
  readonly layers: ReadonlyArray<MemoryLayer>
}

const isForm = (form: string): form is Form => form === "full" || form === "diff" || form === "unstarted"

/** What is wrong with what a snapshot is made of. */
export const formFaults = (snapshot: Snapshot.Snapshot): ReadonlyArray<string> => {
  const known = Snapshot.layers(snapshot)
  const { form } = snapshot.manifest
  if (!isForm(form)) return [`its form ${form} is not known here`]
  const [first, ...others] = known.map(({ manifest }) => manifest.form)
  const isWhole = others.length === 0 ? form !== "diff" : first === "full" && others.every((one) => one === "diff")
  return isWhole ? Snapshot.faults(snapshot) : [`it is made of ${[first, ...others].join(", ")}, which makes no memory`]
}

export const mergedOf = (from: Snapshot.Snapshot): Merged | undefined => {
  const [first, ...others] = Snapshot.layers(from)
  if (first === undefined || others.length === 0) return undefined
  const at = ({ directory }: Snapshot.Snapshot, name: string) => `${directory}/${name}`
  return {
    base: at(first, snapshotFiles.memory),
    layers: others.map((one) => ({ memory: at(one, snapshotFiles.memory), pages: at(one, snapshotFiles.pages) }))
  }
}
