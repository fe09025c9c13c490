/**
 * A host, an internet and guests as network namespaces, and an agent in each that sends and answers packets.
 *
 * Links are pairs of virtual cards with the names that TAPs have on a host: to nftables both are cards by which Ethernet frames
 * arrive.
 */
import * as Schema from "effect/Schema"
import { execFileSync, spawn } from "node:child_process"
import { once } from "node:events"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import type { Command } from "./fixtures/packetAgent.ts"

/** Why packets cannot be sent here; absent when they can. */
export const missing = (): string | undefined => {
  if (process.geteuid?.() !== 0) return "it needs root"
  const probe = `packets-probe-${process.pid}`
  try {
    execFileSync("nft", ["--version"], { stdio: "pipe" })
    execFileSync("ip", ["netns", "add", probe], { stdio: "pipe" })
    execFileSync("ip", ["netns", "exec", probe, "nft", "list", "ruleset"], { stdio: "pipe" })
    return undefined
  } catch (error) {
    return `ip netns and nft are needed: ${String(error)}`
  } finally {
    try {
      execFileSync("ip", ["netns", "del", probe], { stdio: "pipe" })
    } catch {
      // It was never there.
    }
  }
}

const decode = Schema.decodeUnknownSync(
  Schema.fromJsonString(Schema.Struct({ id: Schema.Int, answer: Schema.Unknown }))
)

export class Agent {
  readonly #child
  readonly #waiting = new Map<number, (answer: unknown) => void>()
  #last = 0

  constructor(netns: string) {
    const program = fileURLToPath(new URL("./fixtures/packetAgent.ts", import.meta.url))
    this.#child = spawn("ip", ["netns", "exec", netns, process.execPath, program], {
      stdio: ["pipe", "pipe", "inherit"]
    })
    createInterface({ input: this.#child.stdout }).on("line", (line) => {
      const { answer, id } = decode(line)
      this.#waiting.get(id)?.(answer)
      this.#waiting.delete(id)
    })
    this.ready = new Promise((resolve) => this.#waiting.set(0, resolve))
    this.#child.on("exit", () => {
      for (const resolve of this.#waiting.values()) resolve("the agent has ended")
    })
  }

  readonly ready: Promise<unknown>

  async ask(command: Command): Promise<unknown> {
    await this.ready
    const id = ++this.#last
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve)
      this.#child.stdin.write(`${JSON.stringify({ id, command })}\n`)
    })
  }

  async end(): Promise<void> {
    if (this.#child.exitCode !== null) return
    const ended = once(this.#child, "exit")
    this.#child.stdin.end()
    await ended
  }
}

/** The parts of guest `i`. */
export const guest = (i: number) => ({
  link: `mvt-${i}`,
  mac: `02:00:00:00:${(i >> 8).toString(16).padStart(2, "0")}:${(i & 255).toString(16).padStart(2, "0")}`,
  v4: `172.30.${i >> 7}.${(i * 2 + 1) & 255}`,
  gateway4: `172.30.${i >> 7}.${(i * 2) & 255}`,
  v6: `fd30::${(i * 2 + 1).toString(16)}`,
  gateway6: `fd30::${(i * 2).toString(16)}`
})

export const hostSide = { v4: "10.99.0.1", v6: "2001:db8:99::1", mac: "02:00:00:00:99:01" } as const
export const farSide = { v4: "10.99.0.2", v6: "2001:db8:99::2", mac: "02:00:00:00:99:02" } as const

export interface World {
  readonly host: string
  readonly internet: string
  readonly guests: ReadonlyArray<string>
  readonly agents: { readonly host: Agent; readonly internet: Agent; readonly guests: ReadonlyArray<Agent> }
  readonly run: (netns: string, ...args: ReadonlyArray<string>) => string
  readonly end: () => Promise<void>
}

const batch = (netns: string, lines: ReadonlyArray<string>): void => {
  execFileSync("ip", ["-netns", netns, "-batch", "-"], { input: lines.join("\n"), stdio: ["pipe", "pipe", "inherit"] })
}

const enter = (netns: string, ...args: ReadonlyArray<string>): string =>
  execFileSync("ip", ["netns", "exec", netns, ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })

const connectAll = (
  host: string,
  internet: string,
  guests: ReadonlyArray<{ readonly i: number; readonly netns: string }>,
  far: ReadonlyArray<string>
): void => {
  enter(
    host,
    "sh",
    "-c",
    "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; " +
      "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter"
  )
  batch(host, [
    "link set lo up",
    `link add up0 address ${hostSide.mac} type veth peer name net0 address ${farSide.mac} netns ${internet}`,
    `addr add ${hostSide.v4}/24 dev up0`,
    `addr add ${hostSide.v6}/64 dev up0 nodad`,
    "link set up0 up",
    ...guests.flatMap(({ i, netns }) => {
      const { gateway4, gateway6, link, mac } = guest(i)
      return [
        `link add ${link} type veth peer name eth0 address ${mac} netns ${netns}`,
        `addr add ${gateway4}/31 dev ${link}`,
        `addr add ${gateway6}/127 dev ${link} nodad`,
        `link set ${link} up`
      ]
    })
  ])
  batch(internet, [
    "link set lo up",
    "link set net0 up",
    `addr add ${farSide.v4}/24 dev net0`,
    `addr add ${farSide.v6}/64 dev net0 nodad`,
    ...far.map((address) => `addr add ${address}/${address.includes(":") ? 128 : 32} dev lo`),
    `route add 172.30.0.0/16 via ${hostSide.v4}`,
    `route add fd30::/64 via ${hostSide.v6}`
  ])
  for (const { i, netns } of guests) {
    const { gateway4, gateway6, v4, v6 } = guest(i)
    batch(netns, [
      "link set lo up",
      "link set eth0 up",
      `addr add ${v4}/31 dev eth0`,
      `addr add ${v6}/127 dev eth0 nodad`,
      `route add default via ${gateway4}`,
      `route add ::/0 via ${gateway6}`
    ])
  }
  batch(host, [`route add default via ${farSide.v4}`, `route add ::/0 via ${farSide.v6}`])
}

/** Guests are numbered from 1 on. The internet has `far` as addresses of its own, and knows a way to the guests.
 * `mark` tells the worlds of one process apart.
 */
export const make = async (count: number, far: ReadonlyArray<string>, mark = "test"): Promise<World> => {
  const name = (part: string): string => `packets-${process.pid}-${mark}-${part}`
  const [host, internet] = [name("host"), name("internet")]
  const numbers = Array.from({ length: count }, (_, index) => index + 1)
  const guests = numbers.map((i) => name(`guest-${i}`))
  const all = [host, internet, ...guests]
  const everybody: Array<Agent> = []
  const end = async (): Promise<void> => {
    await Promise.all(everybody.map((agent) => agent.end()))
    for (const one of all) execFileSync("ip", ["netns", "del", one])
  }
  try {
    for (const one of all) execFileSync("ip", ["netns", "add", one])
    connectAll(host, internet, numbers.map((i) => ({ i, netns: name(`guest-${i}`) })), far)
    everybody.push(...all.map((one) => new Agent(one)))
    await Promise.all(everybody.map((agent) => agent.ready))
    const [ofHost, ofInternet, ...ofGuests] = everybody
    if (ofHost === undefined || ofInternet === undefined) throw new Error("nobody is there")
    return { host, internet, guests, agents: { host: ofHost, internet: ofInternet, guests: ofGuests }, run: enter, end }
  } catch (error) {
    await end()
    throw error
  }
}
