import { list, option, parse, string, type Struct, struct, variant, withDefault } from "./fakeSerde.ts"

/** What a jailer does, in order. */
export const steps = [
  "chroot",
  "copy",
  "netns",
  "limits",
  "cgroup",
  "mount",
  "folders",
  "tun",
  "kvm",
  "userfaultfd",
  "daemonize",
  "pid",
  "exec"
] as const
export type Step = (typeof steps)[number]

const settings = {
  version: withDefault(string, "1.16.1"),
  mounts: withDefault(string, "/proc/mounts"),
  faults: withDefault(
    list(struct("Fault", { step: variant(steps), errno: option(string), signal: option(string) })),
    []
  )
}
export type JailerSettings = Struct<typeof settings>
const shape = struct("Options", settings)

export const readSettings = (text: string): JailerSettings => parse(shape, Buffer.from(text))
