/** Start-up of the command line. */
import { execFileSync } from "node:child_process"
import { type Contestant, interleaved, ms, now, quantile, type Section, table, verdict } from "./measure.ts"

const timed = (name: string, args: ReadonlyArray<string>): Contestant<number> => ({
  name,
  run: () => {
    const start = now()
    execFileSync(process.execPath, args, { stdio: "ignore" })
    return Promise.resolve(now() - start)
  }
})

export const startup = async (rounds: number): Promise<Section> => {
  const samples = await interleaved(rounds, [
    timed("node -e 0", ["-e", "0"]),
    timed("microvm --version", ["dist/cli/bin.js", "--version"]),
    timed("microvm run --help", ["dist/cli/bin.js", "run", "--help"])
  ])
  const median = quantile(samples.get("microvm --version") ?? [], 0.5)
  return {
    title: "Start-up of the command line",
    text: "A whole process, from fork to exit.",
    tables: [table(samples)],
    verdicts: [verdict("microvm --version ≤ 150 ms", ms(median), median <= 150)]
  }
}
