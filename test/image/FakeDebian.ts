/** A Debian in which apt and dpkg are scripted: a spawner that answers their command lines and writes small packages. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Sink from "effect/Sink"
import * as Stream from "effect/Stream"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import * as ExitStatus from "../../src/lifecycle/ExitStatus.ts"
import type { Process } from "../../src/process/Process.ts"
import * as ProcessError from "../../src/process/ProcessError.ts"
import { ProcessSpawner } from "../../src/process/ProcessSpawner.ts"
import { elfFile } from "./elfFile.ts"

export interface Answer {
  readonly code?: number
  readonly stdout?: string
  readonly stderr?: string
}

type Tree = Readonly<Record<string, Uint8Array | string>>

const LOADER = "/lib64/ld-linux-x86-64.so.2"
const KERNEL = "linux-image-6.1.0-1-cloud-amd64"
const MODULES = "lib/modules/6.1.0-1-cloud-amd64"

/** The files of each package. */
const trees: Readonly<Record<string, Tree>> = {
  "busybox-static": { "bin/busybox": elfFile({}) },
  busybox: { "bin/busybox": elfFile({ interpreter: LOADER, needed: ["libc.so.6"] }) },
  "qemu-guest-agent": {
    "usr/sbin/qemu-ga": elfFile({ interpreter: LOADER, needed: ["libglib-2.0.so.0", "libc.so.6"] })
  },
  // As in Debian 13, where all is below usr.
  "libglib2.0-0": {
    "usr/lib/x86_64-linux-gnu/libglib-2.0.so.0": elfFile({ needed: ["libpcre2-8.so.0", "libc.so.6"] })
  },
  "libpcre2-8-0": { "usr/lib/x86_64-linux-gnu/libpcre2-8.so.0": elfFile({ needed: ["libc.so.6"] }) },
  libc6: {
    "lib/x86_64-linux-gnu/libc.so.6": elfFile({ interpreter: LOADER, needed: ["ld-linux-x86-64.so.2"] }),
    "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": elfFile({})
  },
  [KERNEL]: {
    [`boot/vmlinuz-6.1.0-1-cloud-amd64`]: "a kernel in a format that is left as it is",
    [`${MODULES}/modules.builtin`]: "kernel/drivers/virtio/virtio.ko\n",
    [`${MODULES}/kernel/drivers/virtio/virtio_ring.ko`]: "ring",
    [`${MODULES}/kernel/drivers/net/virtio_net.ko.xz`]: "net"
  }
}

const dependencies: Readonly<Record<string, ReadonlyArray<string>>> = {
  "linux-image-cloud-amd64": [KERNEL],
  "qemu-guest-agent": ["init-system-helpers", "libc6", "libglib2.0-0"],
  "busybox-static": [],
  busybox: ["libc6"],
  "init-system-helpers": ["perl-base"],
  "libglib2.0-0": ["libc6", "libpcre2-8-0"]
}

const depends = Object.entries(dependencies)
  .map(([name, all]) =>
    [name, ...all.map((one, index) => `${index === 0 ? "  PreDepends" : " |Depends"}: ${one}`)].join("\n")
  )
  .join("\n")

const version = "1:1.0-1"

const uris = (names: ReadonlyArray<string>, revision: string): string =>
  names.map((name) =>
    `'http://deb/${name}.deb' ${name}_1%3a1.0-1_amd64.deb 1000 SHA256:${
      Buffer.from(`${name}${revision}`).toString("hex").padEnd(64, "0").slice(-64)
    }`
  ).join("\n")

/**
 * `calls` are the command lines so far. `answer` may replace an answer, or wait with it; `revision` makes all packages
 * other ones.
 */
export const fakeDebian = (options: {
  readonly answer?: (command: string, args: ReadonlyArray<string>) => Effect.Effect<Answer | undefined>
  readonly absent?: ReadonlyArray<string>
} = {}) => {
  const calls: Array<string> = []
  const state = { revision: "1" }
  const respond = (command: string, args: ReadonlyArray<string>, cwd: string): Answer => {
    if (command === "dpkg") return { stdout: "amd64\n" }
    if (command === "apt-cache") return { stdout: depends }
    if (command === "apt-get" && args.includes("--print-uris")) {
      return { stdout: uris(args.slice(args.indexOf("--print-uris") + 1), state.revision) }
    }
    if (command === "apt-get" && args.includes("download")) {
      for (const one of args.slice(args.indexOf("download") + 1)) {
        const name = one.slice(0, -version.length - 1)
        writeFileSync(join(cwd, `${name}_1%3a1.0-1_amd64.deb`), `${name} ${state.revision}`)
      }
      return {}
    }
    if (command === "dpkg-deb") {
      const [, file = "", root = ""] = args
      const [name = "", revision = ""] = readFileSync(file, "utf8").split(" ")
      for (const [path, content] of Object.entries(trees[name] ?? {})) {
        mkdirSync(dirname(join(root, path)), { recursive: true })
        writeFileSync(join(root, path), path.startsWith("boot/") ? `${String(content)} ${revision}` : content)
      }
      return {}
    }
    return { code: 100, stderr: `E: ${command} ${args.join(" ")}: not scripted` }
  }
  const spawner = ProcessSpawner.of({
    spawn: (command) =>
      Effect.gen(function*() {
        if (command._tag !== "StandardCommand") return yield* Effect.die("no pipelines are expected")
        const args = command.args.map(String)
        calls.push([command.command, ...args].join(" "))
        if (options.absent?.includes(command.command) === true) {
          return yield* ProcessError.fromReason(
            ProcessError.ProcessErrorReason.NotFound({ command: command.command, searched: ["/usr/bin"] })
          )
        }
        const replaced = yield* (options.answer?.(command.command, args) ?? Effect.succeed(undefined))
        const { code = 0, stderr = "", stdout = "" } = replaced ??
          respond(command.command, args, command.options.cwd ?? "/nonexistent")
        const status = ExitStatus.exited(code)
        const ended: Process = {
          identity: { bootId: "boot", pid: 1000, startTime: 1 },
          pid: 1000,
          killScope: { _tag: "Process", reason: "scripted" },
          exit: Effect.succeed(status),
          poll: Effect.succeed(Option.some(status)),
          stdin: Sink.drain,
          stdout: Stream.encodeText(Stream.make(stdout)),
          stderr: Stream.encodeText(Stream.make(stderr)),
          tail: Effect.die("nobody asks for it"),
          channel: () => Effect.die("it has none"),
          signal: () => Effect.void,
          shutdown: () => Effect.die("it has ended"),
          extendShutdown: () => Effect.succeed(Duration.zero)
        }
        return ended
      })
  })
  return { calls, state, layer: Layer.succeed(ProcessSpawner, spawner) }
}
