/**
 * The guest's end of `GuestRenewal` for `FakeGuestAgent`: `microvm-syscalls` with a kernel that knows the calls of a renewal
 * and can be made to refuse some, and `microvm-renew-hooks`.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Program } from "./FakeGuestProgram.ts"
import { bytesOf, concat } from "./internal/fakeFiles.ts"
import { answer, type FakeCard } from "./internal/fakeNetlink.ts"

/**
 * A step of the renewal.
 *
 * @category models
 * @since 0.1.0
 */
export type Step = "seed" | "clock" | "hostname" | "machine-id" | "boot-id" | "network"

/**
 * A network card. Addresses have the lengths of their prefixes; those of IPv6 are written out: `fd00:0:0:0:0:0:0:1/127`.
 *
 * @category models
 * @since 0.1.0
 */
export type Card = FakeCard

/**
 * What is a guest's own. It may be changed from outside, as by a program in the guest.
 *
 * @category models
 * @since 0.1.0
 */
export interface Own {
  /** Milliseconds by which its clock is ahead of ours. */
  clockOff: number
  hostname: string
  machineId: string
  bootId: string
  /** All that its random number generator was given. */
  readonly seeds: Array<Uint8Array>
  readonly cards: ReadonlyArray<FakeCard>
  nameservers: ReadonlyArray<string>
}

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Milliseconds by which its clock is ahead of ours at the start. Default 0. */
  readonly clockOff?: number | undefined
  /** Steps that fail, with `EPERM`. */
  readonly refuses?: ReadonlyArray<Step> | undefined
  /** Steps that change nothing, and do not say so. */
  readonly passesOver?: ReadonlyArray<Step> | undefined
  /** Network interfaces besides the loopback. */
  readonly interfaces?: ReadonlyArray<string> | undefined
  /** What is in `/etc/microvm/renew.d`, with the exit codes. */
  readonly hooks?: Readonly<Record<string, number>> | undefined
  /** How long it takes until the first call is made. Default no time. */
  readonly takes?: Duration.Input | undefined
}

/**
 * What a kernel has besides what a renewal changes.
 *
 * @category models
 * @since 0.1.0
 */
export interface World {
  /** Milliseconds since 1970. */
  readonly now: number
  /** What is read of other files. */
  readonly file?: ((path: string) => Uint8Array | undefined) | undefined
  /** Makes calls that no renewal has, with the memory at which their arguments may point. */
  readonly call?:
    | ((number: number, args: readonly [number, number, number], memory: Uint8Array) => number | undefined)
    | undefined
}

const EPERM = 1
const ENOENT = 2
const EAGAIN = 11
const EBADF = 9
const ENOSYS = 38
const inputBytes = 4096
const headerBytes = 8
const callBytes = 16

/** What is opened that is no file. */
const socket = "a socket of netlink"

const decoder = new TextDecoder()

const textAt = (block: Uint8Array, at: number): string => decoder.decode(block.subarray(at, block.indexOf(0, at)))

/** As getdents64(2) tells them. */
const entries = (names: ReadonlyArray<string>): Uint8Array =>
  names.map((name) => {
    const bytes = bytesOf(name)
    const entry = new Uint8Array(8 * Math.ceil((19 + bytes.length + 1) / 8))
    entry[16] = entry.length % 256
    entry[17] = entry.length >> 8
    entry.set(bytes, 19)
    return entry
  }).reduce(concat, new Uint8Array(0))

/**
 * What is the guest's own, and the programs that change it.
 *
 * ```ts import.meta.vitest
 * import { FakeGuestRenewal } from "effect-microvm-runtime/testing"
 * FakeGuestRenewal.make({ clockOff: -60_000 }).own.clockOff // => -60000
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options = {}): {
  readonly own: Own
  readonly programs: Readonly<Record<string, Program>>
  /** What an input of system calls writes, or nothing when it is not as long as it says. */
  readonly run: (input: Uint8Array, world: World) => Uint8Array | undefined
} => {
  const { hooks = {}, interfaces = [], takes = Duration.zero } = options
  const own: Own = {
    clockOff: options.clockOff ?? 0,
    hostname: "microvm",
    machineId: "0".repeat(32),
    bootId: "00000000-0000-0000-0000-000000000000",
    seeds: [],
    cards: interfaces.map(() => ({ mac: "02:00:00:00:00:00", mtu: 1500, addresses: [], gateways: [] })),
    nameservers: []
  }

  /** The result of a call that changes something. */
  const step = (name: Step, result: number, change: () => void): number => {
    if (options.refuses?.includes(name) === true) return -EPERM
    if (options.passesOver?.includes(name) !== true) change()
    return result
  }

  /** By path: what is read, and what a write does. */
  const files: Readonly<Record<string, readonly [read: () => Uint8Array, write?: (bytes: Uint8Array) => number]>> = {
    "/dev/random": [() => new Uint8Array(0)],
    "/etc/machine-id": [
      () => bytesOf(`${own.machineId}\n`),
      (bytes) => step("machine-id", bytes.length, () => void (own.machineId = decoder.decode(bytes).trimEnd()))
    ],
    "/run/boot-id": [
      () => bytesOf(`${own.bootId}\n`),
      (bytes) => step("boot-id", bytes.length, () => void (own.bootId = decoder.decode(bytes).trimEnd()))
    ],
    "/etc/resolv.conf": [
      () => bytesOf(own.nameservers.map((server) => `nameserver ${server}\n`).join("")),
      (bytes) =>
        step("network", bytes.length, () => {
          own.nameservers = Array.from(
            decoder.decode(bytes).matchAll(/^nameserver (.+)$/gm),
            ([, server = ""]) => server
          )
        })
    ],
    ...Object.fromEntries(interfaces.flatMap((name, nth) => {
      const card = () => own.cards[nth]
      return [
        [`/sys/class/net/${name}/ifindex`, [() => bytesOf(`${nth + 2}\n`)] as const],
        [`/sys/class/net/${name}/address`, [() => bytesOf(`${card()?.mac}\n`)] as const],
        [`/sys/class/net/${name}/mtu`, [() => bytesOf(`${card()?.mtu}\n`)] as const]
      ]
    })),
    "/proc/sys/kernel/random/boot_id": [() => bytesOf(`${own.bootId}\n`)],
    "/sys/class/net": [() => entries([".", "..", "lo", ...interfaces])],
    ...(options.hooks === undefined
      ? {}
      : { "/etc/microvm/renew.d": [() => entries([".", "..", ...Object.keys(hooks)])] })
  }

  const run = (input: Uint8Array, world: World): Uint8Array | undefined => {
    const block = concat(input, new Uint8Array(inputBytes))
    const view = new DataView(block.buffer)
    const calls = view.getUint16(4, true)
    if (view.getUint32(0, true) !== input.length || calls === 0) return undefined
    let written: Uint8Array = new Uint8Array(0)
    let opened: string | undefined
    let answered: Uint8Array | undefined
    const fileOf = (path: string) => {
      const bytes = world.file?.(path)
      return files[path] ?? (bytes === undefined ? undefined : [() => bytes] as const)
    }
    const read = (at: number, bytes: Uint8Array, most: number): number => {
      block.set(bytes.subarray(0, most), at)
      return Math.min(bytes.length, most)
    }
    const call = (number: number, args: readonly [number, number, number]): number => {
      const [a, b, c] = args
      const file = a === 3 && opened !== undefined ? fileOf(opened) : undefined
      const isSocket = a === 3 && opened === socket
      switch (number) {
        case 0: // read
        case 217: // getdents64
          if (isSocket) return answered === undefined ? -EAGAIN : read(b, answered, c)
          return file === undefined ? -EBADF : read(b, file[0](), c)
        case 1: // write
          if (isSocket) {
            answered = answer(own.cards, block.slice(b, b + c), (change) => -step("network", 0, change))
            return c
          }
          if (a !== 1) return file?.[1]?.(block.slice(b, b + c)) ?? -EBADF
          written = concat(written, block.subarray(b, b + c))
          return c
        case 2: { // open
          const path = textAt(block, a)
          if (fileOf(path) === undefined) return -ENOENT
          opened = path
          return 3
        }
        case 3: // close
          if (file === undefined && !isSocket) return -EBADF
          opened = undefined
          return 0
        case 16: // ioctl
          if (opened !== "/dev/random") return -EBADF
          // RNDADDENTROPY, else RNDRESEEDCRNG.
          return b === 0x40085203
            ? step("seed", 0, () => own.seeds.push(block.slice(c + 8, c + 8 + view.getInt32(c + 4, true))))
            : 0
        case 41: // socket
          opened = socket
          answered = undefined
          return 3
        case 228: { // clock_gettime
          const nanos = BigInt(Math.round((world.now + own.clockOff) * 1e6))
          view.setBigInt64(b, nanos / 1_000_000_000n, true)
          view.setBigInt64(b + 8, nanos % 1_000_000_000n, true)
          return 0
        }
        case 63: // uname
          return read(a + 65, bytesOf(`${own.hostname}\0`), 65) && 0
        case 159: // adjtimex
          return step("clock", 5, () => {
            const nanos = view.getBigInt64(a + 72, true) * 1_000_000_000n + view.getBigInt64(a + 80, true)
            own.clockOff += Number(nanos) / 1e6
          })
        case 170: // sethostname
          return step("hostname", 0, () => void (own.hostname = decoder.decode(block.subarray(a, a + b))))
        case 436: // close_range
          return 0
        default:
          return world.call?.(number, args, block) ?? -ENOSYS
      }
    }
    for (let nth = 0; nth < calls; nth++) {
      const at = headerBytes + nth * callBytes
      const result = call(view.getUint16(at, true), [
        view.getUint32(at + 4, true),
        view.getUint32(at + 8, true),
        view.getUint32(at + 12, true)
      ])
      view.setInt32(view.getUint16(6, true) + 4 * nth, result, true)
    }
    return written
  }

  return {
    own,
    run,
    programs: {
      "microvm-syscalls": Effect.fnUntraced(function*({ stdin, write }) {
        const input = yield* Stream.runFold(
          stdin,
          () => new Uint8Array(0),
          (all: Uint8Array, part: Uint8Array) => concat(all, part)
        )
        yield* Effect.sleep(takes)
        const written = run(input, { now: yield* Clock.currentTimeMillis })
        if (written === undefined) return 1
        yield* write("stdout", written)
        return 0
      }),
      "microvm-renew-hooks": Effect.fnUntraced(function*({ write }) {
        const all = Object.entries(hooks).toSorted(([a], [b]) => a < b ? -1 : 1)
        const failed = all.filter(([, status]) => status !== 0)
        yield* write("stdout", all.flatMap(([name, status]) => status === 0 ? [`restarted ${name}\n`] : []).join(""))
        yield* write(
          "stderr",
          failed.map(([name, status]) => `microvm-renew-hooks: ${name} ended with ${status}\n`).join("")
        )
        return failed.length === 0 ? 0 : 1
      })
    }
  }
}
