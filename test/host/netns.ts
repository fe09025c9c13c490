/** A network namespace of a test's own: nothing of this is seen by the host, and all of it goes with it. */
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as NodeFs from "node:fs"

const mayMakeNetns = (): string | undefined => {
  if (process.getuid?.() !== 0) return "network namespaces take root"
  if (!NodeFs.existsSync("/dev/net/tun")) return "there is no /dev/net/tun"
  try {
    execFileSync("ip", ["-V"], { stdio: "ignore" })
    return undefined
  } catch {
    return "there is no ip(8): install iproute2"
  }
}

/** Why these tests cannot run here. Printed, so that nobody takes them for run. */
export const skipReason = mayMakeNetns()
if (skipReason !== undefined) console.warn(`skipped: ${skipReason}`)

export interface Netns {
  readonly name: string
  readonly path: string
  readonly ip: (...args: ReadonlyArray<string>) => string
  /** Lines of one `ip -batch`. */
  readonly batch: (lines: ReadonlyArray<string>) => void
  /** The names of its interfaces, but for `lo`. */
  readonly links: () => ReadonlyArray<string>
  readonly exec: (file: string, ...args: ReadonlyArray<string>) => string
}

export const namespaces = (): ReadonlyArray<string> =>
  NodeFs.existsSync("/run/netns") ? NodeFs.readdirSync("/run/netns") : []

const make = (): Netns => {
  const name = `test-${randomBytes(4).toString("hex")}`
  execFileSync("ip", ["netns", "add", name])
  const ip = (...args: ReadonlyArray<string>) =>
    execFileSync("ip", ["-n", name, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })
  const linkNames = (): ReadonlyArray<string> => {
    const found: unknown = JSON.parse(ip("-j", "link", "show") || "[]")
    const names = Array.isArray(found) ? found.map((link: { readonly ifname: string }) => link.ifname) : []
    return names.filter((one) => one !== "lo")
  }
  ip("link", "set", "lo", "up")
  return {
    name,
    path: `/run/netns/${name}`,
    ip,
    batch: (lines) =>
      void execFileSync("nsenter", [`--net=/run/netns/${name}`, "--", "ip", "-batch", "-"], {
        input: lines.map((line) => `${line}\n`).join(""),
        stdio: ["pipe", "ignore", "pipe"]
      }),
    links: linkNames,
    exec: (file, ...args) =>
      execFileSync("nsenter", [`--net=/run/netns/${name}`, "--", file, ...args], {
        encoding: "utf8",
        stdio: ["ignore", "pipe", "pipe"]
      })
  }
}

export const scoped = Effect.acquireRelease(
  Effect.sync(make),
  ({ name }) => Effect.sync(() => void execFileSync("ip", ["netns", "del", name]))
)

export const newToken = (): string => randomBytes(8).toString("hex")
