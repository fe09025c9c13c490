/** Shell scripts that stand for the programs of a host. */
import * as Effect from "effect/Effect"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import * as CommandRunner from "../../src/host/internal/commandRunner.ts"
import { ProcessHost } from "../../src/process/index.ts"

/** Programs of the test's own stand for those of the host: what they are named does not matter to the runner. */
export const runWith = (scripts: Readonly<Record<string, string>>, variables: Readonly<Record<string, string>> = {}) =>
  Effect.gen(function*() {
    const directory = yield* Effect.acquireRelease(
      Effect.sync(() => NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "commands-"))),
      (path) => Effect.sync(() => NodeFs.rmSync(path, { recursive: true }))
    )
    for (const [name, script] of Object.entries(scripts)) {
      NodeFs.writeFileSync(NodePath.join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    }
    const host = yield* ProcessHost.ProcessHost
    const env = Effect.map(
      host.env,
      (inherited) => ({ ...inherited, ...variables, PATH: `${directory}:${inherited["PATH"]}` })
    )
    const { run, start } = CommandRunner.make({ ...host, env }, [])
    return { directory, run, start }
  })

/** One that has ended stays a zombie for good where process 1 reaps nobody, as in many a container. */
export const isAlive = (pid: number): boolean => {
  try {
    return !/\) [ZX] [^)]*$/.test(NodeFs.readFileSync(`/proc/${pid}/stat`, "latin1"))
  } catch {
    return false
  }
}
