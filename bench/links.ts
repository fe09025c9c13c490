/** What a machine needs of its host's network, made and removed: against a process for each command. */
import * as Schema from "effect/Schema"
import { execFile, execFileSync } from "node:child_process"
import { join } from "node:path"
import { promisify } from "node:util"
import { median, ms, type Section, table, times, verdict } from "./measure.ts"

const Samples = Schema.Record(
  Schema.String,
  Schema.Struct({ create: Schema.Array(Schema.Finite), destroy: Schema.Array(Schema.Finite) })
)

const decode = Schema.decodeUnknownSync(Schema.fromJsonString(Samples))

const iptablesVersion = (): string | undefined => {
  try {
    return execFileSync("iptables", ["-V"], { encoding: "utf8" }).trim()
  } catch {
    console.error("bench: no iptables, so without the commands of the crate: apt-get install iptables")
    return undefined
  }
}

export const links = async (rounds: number): Promise<Section> => {
  const iptables = iptablesVersion()
  const program = join(import.meta.dirname, "linksProgram.ts")
  const flags = process.execArgv
  const { stdout } = await promisify(execFile)("unshare", [
    "--net",
    process.execPath,
    ...flags,
    program,
    String(rounds),
    ...(iptables === undefined ? [] : [iptables])
  ], { maxBuffer: 2 ** 26 })
  const samples = new Map(Object.entries(decode(stdout)))
  const of = (name: string, part: "create" | "destroy" | "both", share = 1) => {
    const { create = [], destroy = [] } = samples.get(name) ?? {}
    return create.map((sample, at) =>
      (part === "create" ? sample : part === "destroy" ? destroy[at] ?? 0 : sample + (destroy[at] ?? 0)) / share
    )
  }
  const crate = `crate's commands, one machine`
  const parts = (["create", "destroy", "both"] as const).map((part) => ({
    part,
    samples: new Map([
      ...(iptables === undefined ? [] : [[crate, of("crate", part)] as const]),
      ["this library, one machine", of("one", part)] as const,
      ["this library, each of 100 machines", of("hundred", part, 100)] as const
    ])
  }))
  const bare = new Map([
    ["100 links made", of("hundred links", "create")],
    ["100 links removed", of("hundred links", "destroy")],
    ["1 link made", of("one link", "create")],
    ["1 link removed", of("one link", "destroy")]
  ])
  const both = parts[2]?.samples ?? new Map()
  const ratio = (name: string) => median(both, crate) / median(both, name)
  return {
    title: "Host network of a machine",
    text:
      "A TAP with addresses, and the rules that close it but for its own addresses. The crate runs 16 commands to make " +
      `that (IPv4 only, ${iptables ?? "not run here: there is no iptables"}), and 8 to remove it. For one link more, ` +
      "most of the time is that of a fork beside a heap as large as Node's. What the kernel does after a link is gone is not " +
      "waited for.",
    tables: [
      ...parts.map(({ part, samples: each }) =>
        `${part === "both" ? "Created and destroyed" : part}:\n\n${table(each)}`
      ),
      `Links alone:\n\n${table(bare)}`
    ],
    verdicts: [
      ...(iptables === undefined ? [] : [
        verdict(
          "one machine, created and destroyed, ≥ 5 × the crate",
          times(ratio("this library, one machine")),
          ratio("this library, one machine") >= 5
        ),
        verdict(
          "each of 100, created and destroyed, ≥ 5 × the crate",
          times(ratio("this library, each of 100 machines")),
          ratio("this library, each of 100 machines") >= 5
        )
      ]),
      verdict("100 links made in ≤ 50 ms", ms(median(bare, "100 links made")), median(bare, "100 links made") <= 50),
      verdict(
        "100 links removed in ≤ 100 ms",
        ms(median(bare, "100 links removed")),
        median(bare, "100 links removed") <= 100
      )
    ]
  }
}
