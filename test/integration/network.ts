/** A network namespace for a test, with TAP devices for machines; all of it ends with the scope. */
import * as Effect from "effect/Effect"
import { execFile, spawn } from "node:child_process"
import * as Fs from "node:fs"
import { promisify } from "node:util"

const run = promisify(execFile)

/** Why there can be none here. */
export const noNetns: string | undefined = process.geteuid?.() !== 0
  ? "it makes network namespaces, which only root may"
  : Fs.existsSync("/dev/net/tun")
  ? undefined
  : "there is no /dev/net/tun"

export interface Netns {
  readonly path: string
  readonly ip: (...batch: ReadonlyArray<string>) => Effect.Effect<string>
  /** Has it pass on packets of IPv4. */
  readonly forward: Effect.Effect<void>
  /** A server that answers each connection with the address of the peer. */
  readonly serve: Effect.Effect<void>
}

let made = 0

export const makeNetns = Effect.gen(function*() {
  const name = `microvm-test-${process.pid}-${made++}`
  const path = `/run/netns/${name}`
  const ip: Netns["ip"] = (...batch) =>
    Effect.promise(async () => {
      let out = ""
      for (const line of batch) out += (await run("ip", ["-n", name, ...line.split(" ")])).stdout
      return out
    })
  const servers: Array<ReturnType<typeof spawn>> = []
  yield* Effect.acquireRelease(
    Effect.promise(() => run("ip", ["netns", "add", name])),
    () =>
      Effect.promise(async () => {
        for (const server of servers) server.kill("SIGKILL")
        await run("ip", ["netns", "del", name])
      })
  )
  yield* ip("link set lo up")
  const forward = Effect.promise(async () => {
    await run("ip", ["netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
  })
  const serve = Effect.callback<void>((resume) => {
    const program = `require("net").createServer((s) => { s.on("error", () => {}); s.end(s.remoteAddress) })` +
      `.listen(7, "::", () => console.log("up"))`
    const server = spawn("nsenter", [`--net=${path}`, process.execPath, "-e", program], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    servers.push(server)
    server.stdout.once("data", () => resume(Effect.void))
    server.once("exit", (code) => resume(Effect.die(new Error(`the server ended with ${code}`))))
  })
  return { path, ip, forward, serve } satisfies Netns
})

/** A TAP device as a host makes it for a machine: routed, with an address of its own and none in between. */
export const tap = (name: string, nth: number, mtu = 1500): ReadonlyArray<string> => [
  `tuntap add dev ${name} mode tap user 65534`,
  `addr add 10.77.0.${2 * nth}/31 dev ${name}`,
  `addr add fd77::${(2 * nth).toString(16)}/127 dev ${name} nodad`,
  `link set dev ${name} mtu ${mtu} up`
]

/** The guest's side of it. */
export const network = (name: string, nth: number, mtu?: number) => ({
  tap: name,
  mac: `02:77:00:00:00:${nth.toString(16).padStart(2, "0")}`,
  address: `10.77.0.${2 * nth + 1}/31`,
  gateway: `10.77.0.${2 * nth}`,
  address6: `fd77::${(2 * nth + 1).toString(16)}/127`,
  gateway6: `fd77::${(2 * nth).toString(16)}`,
  ...(mtu === undefined ? {} : { mtu })
})
