/** How a fake Firecracker is told what to be and what to do wrong, as JSON. */
import { bool, list, option, parse, string, type Struct, struct, u8, usize, variant, withDefault } from "./fakeSerde.ts"

const fault = struct("Fault", {
  _tag: variant(["Slow", "Hang", "Split", "Truncate", "Raw", "Die", "NeverBind", "BindLate", "IgnoreTerm"]),
  method: option(string),
  path: option(string),
  call: option(usize),
  millis: option(usize),
  bytes: option(usize),
  answer: option(string),
  moment: option(variant(["Before", "Half", "After"])),
  code: option(u8),
  signal: option(string)
})

const settings = {
  version: withDefault(string, "1.16.1"),
  architecture: option(variant(["x86_64", "aarch64"])),
  snapshotVersion: option(string),
  guest: withDefault(variant(["none", "echo", "agent"]), "agent"),
  drivers: withDefault(bool, true),
  bootMillis: withDefault(usize, 20),
  checkKernel: withDefault(bool, false),
  ignoreCtrlAltDel: withDefault(bool, false),
  console: withDefault(list(string), []),
  faults: withDefault(list(fault), []),
  events: option(string)
}

export type Fault = Struct<{ readonly fault: typeof fault }>["fault"]
const shape = struct("Options", settings)
export type Settings = Struct<typeof settings>

/** The second and third number of a version. */
export const numbers = (version: string): readonly [minor: number, patch: number] => {
  const [, minor = 17, patch = 0] = version.split(/[.-]/).map(Number)
  return [minor, patch]
}

/** From a file's text and, over it, from that of the environment. */
export const read = (text: string, over: string | undefined): Settings => {
  const first: unknown = JSON.parse(text)
  const second: unknown = JSON.parse(over ?? "{}")
  return parse(shape, Buffer.from(JSON.stringify({ ...Object(first), ...Object(second) })))
}

const jail = struct("Jail", { root: string, uid: usize, gid: usize, first: bool })
export type Jail = Struct<{ readonly jail: typeof jail }>["jail"]

/** What a fake jailer hands on to the program that it starts. */
export const readJail = (text: string): Jail => parse(jail, Buffer.from(text))
