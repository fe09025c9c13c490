import type { CGroups } from "../JailPlan.ts"

/** A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)). */
export interface Mount {
  readonly point: string
  /** Of the mount itself: `ro`, `nodev`. */
  readonly options: ReadonlyArray<string>
  readonly type: string
  /** Of the file system: for cgroups (version 1), the controllers are among them. */
  readonly fileSystemOptions: ReadonlyArray<string>
}

/** Space, tab, newline and backslash stand there as octal escapes. */
const unescapePath = (path: string): string =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))

export const parse = (text: string): ReadonlyArray<Mount> =>
  text.split("\n").flatMap((line) => {
    const [left = "", right = ""] = line.split(" - ")
    const [point, options] = left.split(" ").slice(4)
    const [type, , fileSystemOptions] = right.split(" ")
    return point === undefined || options === undefined || type === undefined ? [] : [{
      point: unescapePath(point),
      options: options.split(","),
      type,
      fileSystemOptions: fileSystemOptions?.split(",") ?? []
    }]
  })

/** Where the cgroups are. Of several mounts the first counts: it is the one that the jailer takes. */
export const cgroupMounts = (
  mounts: ReadonlyArray<Mount>
): { readonly unified: string | undefined; readonly separate: CGroups["separate"] } => {
  const separate = new Map<string, string>()
  for (const { fileSystemOptions, point, type } of mounts) {
    if (type !== "cgroup") continue
    for (const controller of fileSystemOptions) {
      if (!separate.has(controller)) separate.set(controller, point)
    }
  }
  return { unified: mounts.find(({ type }) => type === "cgroup2")?.point, separate }
}

/** The mounts below a directory, the last made first. */
export const below = (mounts: ReadonlyArray<Mount>, directory: string): ReadonlyArray<Mount> =>
  mounts.filter(({ point }) => point.startsWith(`${directory}/`)).toReversed()

/** The mount that a path is on: of those with the longest point, the one that lies on top. */
export const holding = (mounts: ReadonlyArray<Mount>, path: string): Mount | undefined =>
  mounts
    .filter(({ point }) => point === "/" || path === point || path.startsWith(`${point}/`))
    .reduce<Mount | undefined>(
      (best, mount) => best === undefined || mount.point.length >= best.point.length ? mount : best,
      undefined
    )
