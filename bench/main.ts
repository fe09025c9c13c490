/**
 * `npm run bench [-- NAME…]`: runs all benchmarks, or those named, and writes the results of a full run, with the machine
 * they were taken on, to docs/benchmarks.md.
 */
import { readFileSync, writeFileSync } from "node:fs"
import { availableParallelism, cpus, release, totalmem } from "node:os"
import { boot } from "./boot.ts"
import { runtime } from "./contestants.ts"
import { diskClones } from "./disks.ts"
import { calls, crowd, listing, supervised } from "./firecracker.ts"
import { packets, ruleChanges } from "./firewall.ts"
import { ladders } from "./ladders.ts"
import { links } from "./links.ts"
import { render, type Section } from "./measure.ts"
import { pageFaults } from "./pages.ts"
import { killLatency, massStop, overshoot, treeKill } from "./processes.ts"
import { manyParts, rollingRestart, serviceStartup, stopLatency } from "./service.ts"
import { startup } from "./startup.ts"
import { clones, disposeWarm, handOut, restore, savePause, warmRun } from "./warm.ts"

const benchmarks: Readonly<Record<string, () => Promise<Section>>> = {
  kill: () => killLatency(300),
  escalation: () => overshoot(26),
  tree: () => treeKill([[10, 40], [100, 30], [500, 7]]),
  mass: () => massStop(7),
  ladders: () => ladders(7),
  boot: () => boot(9),
  restore: () => restore(15),
  warm: () => warmRun(15),
  clones: () => clones(3, 32),
  pool: () => handOut(20),
  save: () => savePause(9),
  calls: () => calls(200),
  crowd: () => crowd(10, 100),
  supervised: () => supervised(1, 200),
  listing: () => listing(1000, 50),
  pages: () => pageFaults(9),
  links: () => links(15),
  packets: () => packets(7),
  rules: () => ruleChanges(7),
  disks: () => diskClones(9),
  startup: () => startup(15),
  stop: () => stopLatency(7),
  rolling: () => rollingRestart(20),
  service: () => serviceStartup(9),
  parts: () => manyParts(15)
}

const asked = process.argv.slice(2)
const unknown = asked.filter((name) => !Object.hasOwn(benchmarks, name))
if (unknown.length > 0) {
  console.error(`No benchmark ${unknown.join(", ")}: choose from ${Object.keys(benchmarks).join(", ")}`)
  process.exitCode = 64
} else {
  const sections: Array<string> = []
  for (const [name, run] of Object.entries(benchmarks)) {
    if (asked.length > 0 && !asked.includes(name)) continue
    console.error(`bench: ${name} …`)
    const section = render(await run())
    console.log(`${section}\n`)
    sections.push(section)
  }
  if (asked.length === 0) {
    const mem = Math.round(totalmem() / 2 ** 30)
    const os = /PRETTY_NAME="(.*)"/.exec(readFileSync("/etc/os-release", "utf8"))?.[1] ?? "Linux"
    writeFileSync(
      "docs/benchmarks.md",
      [
        "# Benchmarks",
        "Written by `npm run bench`. All contestants of a table ran in the same run, interleaved; compare the ratios, not the times.",
        `Machine: ${availableParallelism()} × ${
          cpus()[0]?.model ?? "unknown"
        }, ${mem} GiB, ${os}, kernel ${release()}, Node ${process.version}.`,
        ...sections
      ].join("\n\n") + "\n"
    )
  }
}
await Promise.all([runtime.dispose(), disposeWarm()])
