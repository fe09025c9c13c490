import type { Call, Room, Told } from "./systemCalls.ts"

/** Bytes of the seed, which are counted as full entropy: twice what the kernel's generator needs. */
export const seedBytes = 64

/**
 * Calls of which each needs those before.
 *
 * @internal
 */
export interface Step {
  readonly name: string
  readonly calls: ReadonlyArray<Call>
  /** There may be no such file. */
  readonly optional?: true
}

const ENOENT = 2
const O_WRONLY = 0o1
const O_CREAT = 0o100
const O_TRUNC = 0o1000
const O_DIRECTORY = 0o200000
const RNDADDENTROPY = 0x40085203
const RNDRESEEDCRNG = 0x5207
const ADJ_SETOFFSET = 0x0100
const ADJ_NANO = 0x2000
const timexBytes = 208
const perSecond = 1_000_000_000n
/** What the first file gets, and all others, as each is closed. */
const fd = 3

const encoder = new TextEncoder()
const decoder = new TextDecoder()

const open = (path: string, flags: number, permissions = 0): Call => ({
  what: `open ${path}`,
  number: 2,
  args: [encoder.encode(`${path}\0`), flags, permissions],
  expected: fd
})

const close = (): Call => ({ what: "close", number: 3, args: [fd] })

const written = (path: string, text: string): ReadonlyArray<Call> => {
  const bytes = encoder.encode(text)
  return [
    open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o644),
    { what: `write ${path}`, number: 1, args: [fd, bytes, bytes.length], expected: bytes.length },
    close()
  ]
}

/**
 * Reads a file, as far as there is room.
 *
 * @internal
 */
export const readInto = (path: string, room: Room): ReadonlyArray<Call> => [
  open(path, 0),
  { what: `read ${path}`, number: 0, args: [fd, room, room.room] },
  close()
]

const listInto = (path: string, room: Room): ReadonlyArray<Call> => [
  open(path, O_DIRECTORY),
  { what: `getdents64 ${path}`, number: 217, args: [fd, room, room.room] },
  close()
]

/**
 * Gives the kernel's generator a seed that it uses at once, with a `struct rand_pool_info`: random(4).
 *
 * @internal
 */
export const seed = (bytes: Uint8Array): Step => {
  const info = new Uint8Array(8 + seedBytes)
  const view = new DataView(info.buffer)
  view.setInt32(0, 8 * seedBytes, true)
  view.setInt32(4, seedBytes, true)
  info.set(bytes, 8)
  return {
    name: "seed",
    calls: [
      open("/dev/random", O_WRONLY),
      { what: "RNDADDENTROPY", number: 16, args: [fd, RNDADDENTROPY, info] },
      // Or it would be used in a minute or so.
      { what: "RNDRESEEDCRNG", number: 16, args: [fd, RNDRESEEDCRNG] },
      close()
    ]
  }
}

/**
 * Reads the clock, in nanoseconds since 1970.
 *
 * @internal
 */
export const time = () => {
  const room = { room: 16 }
  return {
    step: { name: "clock", calls: [{ what: "clock_gettime", number: 228, args: [0, room] }] } satisfies Step,
    read: ({ bytes }: Told): number => {
      const { buffer, byteOffset } = bytes(room)
      const view = new DataView(buffer, byteOffset)
      return Number(view.getBigInt64(0, true) * perSecond + view.getBigInt64(8, true))
    }
  }
}

/**
 * Corrects the clock by an offset, with a `struct timex`: adjtimex(2).
 *
 * @internal
 */
export const clock = (correctionNanos: bigint): Step => {
  const timex = new Uint8Array(timexBytes)
  const view = new DataView(timex.buffer)
  // The nanoseconds are never negative, also of a correction that is.
  const nanos = ((correctionNanos % perSecond) + perSecond) % perSecond
  view.setUint32(0, ADJ_SETOFFSET | ADJ_NANO, true)
  view.setBigInt64(72, (correctionNanos - nanos) / perSecond, true)
  view.setBigInt64(80, nanos, true)
  return { name: "clock", calls: [{ what: "adjtimex", number: 159, args: [timex] }] }
}

/** @internal */
export const hostname = (name: string): Step => {
  const bytes = encoder.encode(name)
  return { name: "hostname", calls: [{ what: "sethostname", number: 170, args: [bytes, bytes.length] }] }
}

/** @internal */
export const machineId = (id: string): Step => ({ name: "machine-id", calls: written("/etc/machine-id", `${id}\n`) })

/**
 * It lies over the kernel's own since the guest was set up.
 *
 * @internal
 */
export const bootId = (id: string): Step => ({ name: "boot-id", calls: written("/run/boot-id", `${id}\n`) })

const rooms = {
  // Six strings of 65 bytes.
  utsname: { room: 6 * 65 },
  machineId: { room: 64 },
  bootId: { room: 64 },
  // For ".", "..", "lo" and 8 short names, and one of at most 15 bytes: if there is another, one is seen.
  interfaces: { room: 11 * 24 + 40 },
  // For ".", "..", and one of at most 255 bytes.
  hooks: { room: 2 * 24 + 280 }
}

/**
 * Reads all from where programs read it.
 *
 * @internal
 */
export const readBack: ReadonlyArray<Step> = [
  { name: "hostname", calls: [{ what: "uname", number: 63, args: [rooms.utsname] }] },
  { name: "machine-id", calls: readInto("/etc/machine-id", rooms.machineId) },
  { name: "boot-id", calls: readInto("/proc/sys/kernel/random/boot_id", rooms.bootId) },
  { name: "interfaces", calls: listInto("/sys/class/net", rooms.interfaces) },
  { name: "hooks", calls: listInto("/etc/microvm/renew.d", rooms.hooks), optional: true }
]

/**
 * The numbers of network cards. They are read with all else, as what is done to them goes by their numbers.
 *
 * @internal
 */
export const cardNumbers = (names: ReadonlyArray<string>) => {
  const numbers = names.map((name) => ({ name, room: { room: 8 } }))
  return {
    steps: numbers.map(({ name, room }): Step => ({
      name: `interface "${name}"`,
      calls: readInto(`/sys/class/net/${name}/ifindex`, room),
      // It is told by the list of interfaces.
      optional: true
    })),
    read: ({ bytes }: Told): ReadonlyArray<number> => numbers.map(({ room }) => Number(textOf(bytes(room))))
  }
}

/** @internal */
export const nameservers = (servers: ReadonlyArray<string>): Step => ({
  name: "nameservers",
  calls: written("/etc/resolv.conf", servers.map((server) => `nameserver ${server}\n`).join(""))
})

/**
 * What programs read of a card.
 *
 * @internal
 */
export const readCard = (name: string) => {
  const [mac, mtu] = [{ room: 24 }, { room: 8 }]
  return {
    steps: [
      { name: `mac of ${name}`, calls: readInto(`/sys/class/net/${name}/address`, mac) },
      { name: `mtu of ${name}`, calls: readInto(`/sys/class/net/${name}/mtu`, mtu) }
    ] satisfies ReadonlyArray<Step>,
    read: ({ bytes }: Told) => ({ mac: textOf(bytes(mac)), mtu: textOf(bytes(mtu)) })
  }
}

/**
 * The names of servers that programs ask.
 *
 * @internal
 */
export const readNameservers = () => {
  const room = { room: 512 }
  return {
    step: { name: "nameservers", calls: readInto("/etc/resolv.conf", room) } satisfies Step,
    read: ({ bytes }: Told): ReadonlyArray<string> =>
      Array.from(textOf(bytes(room)).matchAll(/^nameserver (.+)$/gm), ([, server = ""]) => server)
  }
}

/**
 * What was read of a text, without its last line's end.
 *
 * @internal
 */
export const textOf = (bytes: Uint8Array): string => {
  const end = bytes.indexOf(0)
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end)).replace(/\n$/, "")
}

/** Each `struct linux_dirent64` tells its length and ends with its name; zeros are none. */
const namesOf = (entries: Uint8Array): ReadonlyArray<string> => {
  const length = (entries[16] ?? 0) + 256 * (entries[17] ?? 0)
  if (length < 20 || length > entries.length) return []
  const name = textOf(entries.subarray(19, length))
  return [...name === "." || name === ".." ? [] : [name], ...namesOf(entries.subarray(length))]
}

/**
 * What `readBack` has told.
 *
 * @internal
 */
export const read = ({ bytes }: Told) => ({
  hostname: textOf(bytes(rooms.utsname).subarray(65, 130)),
  machineId: textOf(bytes(rooms.machineId)),
  bootId: textOf(bytes(rooms.bootId)),
  interfaces: namesOf(bytes(rooms.interfaces)).filter((name) => name !== "lo"),
  /** Some of what there is in the directory, if there is anything. */
  hooks: namesOf(bytes(rooms.hooks))
})

/**
 * The first call of each step that did not do as expected.
 *
 * @internal
 */
export const faultsOf = (steps: ReadonlyArray<Step>, { result }: Told): ReadonlyArray<string> =>
  steps.flatMap(({ calls, name, optional }) => {
    const failed = calls.find((call) => call.expected === undefined ? result(call) < 0 : result(call) !== call.expected)
    if (failed === undefined) return []
    const got = result(failed)
    if (optional && failed === calls[0] && got === -ENOENT) return []
    return [`${name}: ${failed.what} ${got < 0 ? `failed with errno ${-got}` : `gave ${got}`}`]
  })
