/** As much of ip(8) as `Links` uses, over links in memory. */
import * as Effect from "effect/Effect"
import { type HostCommands, HostError } from "../../src/host/index.ts"

interface FakeLink {
  alias?: string
  group: string
  kind: "tap" | "veth" | "bridge"
  /** Has it packet information and the header? */
  marked?: boolean
  up?: boolean
}

export interface FakeHost {
  readonly links: Map<string, FakeLink>
  readonly netns: Set<string>
  /** Stops a batch before this line, counted over all batches, as SIGKILL would. */
  stopAt: number
  readonly lines: Array<string>
}

export const make = (): FakeHost => ({ links: new Map(), netns: new Set(), stopAt: Infinity, lines: [] })

/** Why a line fails, if it does. */
const apply = (host: FakeHost, line: string): string | undefined => {
  const { links, netns } = host
  const words: ReadonlyArray<string> = line.match(/"[^"]*"|\S+/g) ?? []
  const after = (word: string) => words[words.indexOf(word) + 1] ?? ""
  const name = after("dev")
  switch (`${words[0]} ${words[1]}`) {
    case "tuntap add":
    case "link add": {
      if (links.has(name)) return "File exists"
      const marked = words.includes("pi") && words.includes("vnet_hdr")
      links.set(name, { group: "default", kind: words[0] === "tuntap" ? "tap" : "veth", marked })
      return undefined
    }
    case "link set": {
      const link = links.get(name)
      if (link === undefined) return "Cannot find device"
      if (words.includes("up")) link.up = true
      if (words.includes("group")) link.group = after("group")
      if (words.includes("name")) {
        if (links.has(after("name"))) return "File exists"
        links.delete(name)
        links.set(after("name"), link)
      }
      if (words.includes("alias")) link.alias = after("alias").replaceAll("\"", "")
      return undefined
    }
    case "link del": {
      if (words[2] !== "group") return links.delete(name) ? undefined : "Cannot find device"
      for (const [one, { group }] of links) if (group === words[3]) links.delete(one)
      return undefined
    }
    case "netns add": {
      if (netns.has(words[2] ?? "")) return "File exists"
      netns.add(words[2] ?? "")
      return undefined
    }
    case "netns del":
      return netns.delete(words[2] ?? "") ? undefined : "No such file or directory"
    case "addr add":
      return links.has(name) ? undefined : "Cannot find device"
    default:
      throw new Error(`not known: ${line}`)
  }
}

export const run = (host: FakeHost) => (command: HostCommands.HostCommand) =>
  Effect.suspend(() => {
    const args = command.args.join(" ")
    const show = [...host.links].map(([ifname, { alias, group, kind }]) => ({
      ifname,
      group,
      ifalias: alias,
      kind
    }))
    if (args === "-j -d link show") {
      const details = [...host.links].map(([ifname, { alias, kind, marked: pi = false, up = false }]) => ({
        ifname,
        ifalias: alias,
        flags: up ? ["UP"] : [],
        linkinfo: { info_data: kind === "tap" ? { type: kind, pi, vnet_hdr: pi } : {} }
      }))
      return Effect.succeed(JSON.stringify(details))
    }
    if (args === "-j link show") return Effect.succeed(JSON.stringify(show))
    if (args === "-j link show type bridge") {
      return Effect.succeed(JSON.stringify(show.filter((one) => one.kind === "bridge")))
    }
    if (args === "-j netns list") return Effect.succeed(JSON.stringify([...host.netns].map((name) => ({ name }))))
    const failed = (stderr: string, line?: string) =>
      HostError.fail(
        new HostError.CommandFailed({
          program: "ip",
          what: command.what,
          status: "exited with code 1",
          stderr,
          ...(line === undefined ? {} : { line })
        })
      )
    // Inside of a network namespace nothing is kept: it goes with it.
    if (args.startsWith("-netns ")) return Effect.succeed("")
    let why: string | undefined
    for (const line of (command.input ?? "").split("\n").filter((one) => one !== "")) {
      if (host.lines.length >= host.stopAt) return failed("killed")
      host.lines.push(line)
      const complaint = apply(host, line)
      if (complaint === undefined) continue
      why ??= complaint
      if (!args.includes("-force")) return failed(complaint, line)
    }
    return why === undefined ? Effect.succeed("") : failed(why)
  })
