/** Control groups as a jailer makes them, of either version. */
import * as Fs from "node:fs"
import * as Path from "node:path"
import { refuse } from "./fakeJailerError.ts"

interface Property {
  readonly file: string
  readonly value: string
}

export interface Cgroup {
  readonly version: 1 | 2
  readonly directory: string
  /** How many directories are between it and the mount. */
  readonly depth: number
  readonly properties: ReadonlyArray<Property>
}

interface Plan {
  /** A file like /proc/mounts. */
  readonly mounts: string
  readonly version: string
  readonly parent: string
  readonly id: string
  readonly properties: ReadonlyArray<string>
}

const isRelative = (path: string): boolean =>
  !path.startsWith("/") && !path.split("/").some((part) => part === "..") && !/^\.(\/|$)/.test(path)

interface Mount {
  readonly directory: string
  readonly options: ReadonlyArray<string>
}

const mountsOf = (file: string, version: number): ReadonlyArray<Mount> => {
  const type = version === 2 ? "cgroup2" : "cgroup"
  const found = Fs.readFileSync(file, "utf8").split("\n").map((line) => line.split(" ")).filter((words) =>
    words[2] === type
  ).map(([, directory = "", , options = ""]): Mount => ({ directory, options: options.split(",") }))
  const [first] = found
  if (first === undefined || (version !== 1 && version !== 2)) {
    const why = "No hierarchy found for this cgroup version."
    throw refuse("CgroupHierarchyMissing", `Hierarchy not found: ${why}`, [why])
  }
  return version === 2 ? [first] : found
}

const unavailable = (controller: string) =>
  refuse("CgroupControllerUnavailable", `Controller ${controller} is unavailable`, [controller])

const controllersOf = (mount: Mount): ReadonlyArray<string> => {
  try {
    return Fs.readFileSync(Path.join(mount.directory, "cgroup.controllers"), "utf8").split(/\s+/)
  } catch {
    return []
  }
}

const propertyOf = (text: string): Property => {
  const [file = "", value, ...rest] = text.split("=")
  if (value === undefined || value === "" || rest.length > 0) {
    throw refuse("CgroupFormat", `Invalid format for cgroups: ${text}`, [text])
  }
  if (!isRelative(file)) throw refuse("CgroupInvalidFile", `Cgroup invalid file: ${text}`, [text])
  return { file, value }
}

/** What is to be made, if it can be; nothing is made yet. But a group that is there already is entered at once. */
export const plan = (options: Plan): ReadonlyArray<Cgroup> => {
  const { id, mounts: file, parent, properties } = options
  if (!isRelative(parent)) {
    throw refuse(
      "CgroupInvalidParentPath",
      "Parent cgroup path is invalid. Path should not be absolute or contain '..' or '.'",
      []
    )
  }
  const version = Number(options.version)
  if (!/^\+?\d{1,3}$/.test(options.version) || version > 255) {
    throw refuse("CgroupInvalidVersion", `${options.version} is an invalid cgroup version specifier`, [options.version])
  }
  if (properties.length === 0) {
    if (version !== 2) return []
    const entered = Path.join(mountsOf(file, version)[0]?.directory ?? "", parent)
    if (Fs.existsSync(entered)) write(Path.join(entered, "cgroup.procs"), String(process.pid))
    return []
  }
  const mounts = mountsOf(file, version)
  const depth = parent.split("/").length
  const groups = new Map<string, Array<Property>>()
  for (const text of properties) {
    const property = propertyOf(text)
    const [controller = "", rest] = property.file.split(".")
    if (rest === undefined) {
      throw refuse("CgroupInvalidFile", `Cgroup invalid file: ${property.file}`, [property.file])
    }
    const mount = version === 2 ? mounts[0] : mounts.find(({ options: all }) => all.includes(controller))
    if (mount === undefined || (version === 2 && !controllersOf(mount).includes(controller))) {
      throw unavailable(controller)
    }
    const directory = Path.join(mount.directory, parent, id)
    groups.set(directory, [...groups.get(directory) ?? [], property])
  }
  return Array.from(groups, ([directory, all]): Cgroup => ({
    version: version === 2 ? 2 : 1,
    directory,
    depth,
    properties: all
  }))
}

const write = (file: string, value: string): void => {
  try {
    Fs.writeFileSync(file, `${value}\n`)
  } catch (error) {
    throw refuse("Write", `Failed to write to ${file}: %s`, [file], error)
  }
}

const read = (file: string): string => {
  try {
    return Fs.readFileSync(file, "utf8").replace(/\n$/, "")
  } catch (error) {
    throw refuse("ReadToString", `Failed to read file ${file} into a string: %s`, [file], error)
  }
}

/** Of version 1, a group has no value of its own before it is given that of its parent. */
const inherit = (directory: string, file: string, depth: number): void => {
  const above = Path.join(Path.dirname(directory), file)
  let value = read(above)
  if (value === "" && depth > 0) {
    inherit(Path.dirname(directory), file, depth - 1)
    value = read(above)
  }
  if (value === "") {
    throw refuse(
      "CgroupInheritFromParent",
      `Failed to inherit cgroups configurations from file ${file} in path ${directory}`,
      [directory, file]
    )
  }
  write(Path.join(directory, file), value)
}

/** Of version 2, a controller is switched on from the root down. */
const enable = (directory: string, controller: string): void => {
  const control = Path.join(directory, "cgroup.subtree_control")
  if (!Fs.existsSync(control)) return
  enable(Path.dirname(directory), controller)
  write(control, `+${controller}`)
}

export const setUp = (groups: ReadonlyArray<Cgroup>, pid: number): void => {
  for (const { depth, directory, properties, version } of groups) {
    try {
      Fs.mkdirSync(directory, { recursive: true })
    } catch (error) {
      throw refuse("CreateDir", `Failed to create directory ${directory}: %s`, [directory], error)
    }
    for (const { file, value } of properties) {
      if (version === 1) inherit(directory, file, depth)
      else enable(Path.dirname(directory), file.split(".")[0] ?? "")
      write(Path.join(directory, file), value)
    }
  }
  for (const { directory, version } of groups) {
    write(Path.join(directory, version === 1 ? "tasks" : "cgroup.procs"), String(pid))
  }
}
