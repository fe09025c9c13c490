/** Real processes: one that starts itself in the background, and what that one keeps of the first. */
import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as NodeChildProcess from "node:child_process"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { fileURLToPath } from "node:url"
import { until } from "./executable.ts"

const program = fileURLToPath(new URL("detachProgram.ts", import.meta.url))

const Left = Schema.fromJsonString(Schema.Struct({
  resolved: Schema.String,
  cwd: Schema.String,
  line: Schema.String,
  open: Schema.Array(Schema.Tuple([Schema.String, Schema.String]))
}))

/** A directory, and what the process in the background writes down there. */
class Place implements Disposable {
  readonly directory = NodeFs.realpathSync(NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "detach-")))
  private readonly file = NodePath.join(this.directory, "left.json")
  readonly env = { ...process.env, DETACHED_FILE: this.file }

  async left(): Promise<typeof Left.Type> {
    await until("what the one in the background has left", () => NodeFs.existsSync(this.file))
    return Schema.decodeUnknownSync(Left)(NodeFs.readFileSync(this.file, "utf8"))
  }

  [Symbol.dispose](): void {
    NodeFs.rmSync(this.directory, { recursive: true })
  }
}

const at = ({ open }: typeof Left.Type, fd: string): string | undefined => open.find(([one]) => one === fd)?.[1]

describe("a process in the background", () => {
  it("starts where we are, and leaves that place and our stderr when it has started, and no secret in the process table", async () => {
    using place = new Place()
    const args = [
      program,
      "run",
      "--env",
      "A=secret",
      "--env=B=secret",
      "-e",
      "C=secret",
      "-e=D=secret",
      "-qe",
      "E=secret",
      "--",
      "true"
    ]
    const { stderr, stdout } = NodeChildProcess.spawnSync(process.execPath, args, {
      cwd: place.directory,
      env: place.env,
      encoding: "utf8"
    })
    assert.deepStrictEqual({ stdout, stderr }, { stdout: `{"_tag":"Ready"}`, stderr: "before\n" })
    const left = await place.left()
    assert.strictEqual(left.resolved, NodePath.join(place.directory, "here"))
    assert.strictEqual(left.cwd, "/")
    // All that are on this host may read this.
    assert.strictEqual(left.line, "microvm run --name dev --env A=… --env=… -e C=… -e=… -qe E=… -- true")
    assert.deepStrictEqual([at(left, "0"), at(left, "1"), at(left, "2")], ["/dev/null", "/dev/null", "/dev/null"])
  })

  it("lets go of our stderr though we were killed before it had started", async () => {
    using place = new Place()
    const started = NodeChildProcess.spawn(process.execPath, [program, "run"], {
      env: { ...place.env, DETACHED_SLEEP: "1500" },
      stdio: ["ignore", "ignore", "pipe"]
    })
    const children = () => NodeFs.readFileSync(`/proc/${started.pid}/task/${started.pid}/children`, "utf8").trim()
    await until("the one in the background", () => children() !== "")
    started.kill("SIGKILL")
    const left = await place.left()
    assert.strictEqual(at(left, "2"), "/dev/null")
    assert.notInclude(String(at(left, "3")), "socket")
  })

  const noTerminal = NodeChildProcess.spawnSync("script", ["--version"]).status === 0
    ? undefined
    : "script(1) is not found"
  if (noTerminal !== undefined) console.warn(`SKIPPED a test of a terminal: ${noTerminal}`)
  it.skipIf(noTerminal !== undefined)("writes nothing more to our terminal, and does not keep it", async () => {
    using place = new Place()
    const log = NodePath.join(place.directory, "typescript")
    NodeChildProcess.spawnSync("script", ["-qec", `"${process.execPath}" "${program}" run; sleep 1`, log], {
      env: place.env,
      stdio: ["ignore", "ignore", "ignore"]
    })
    const left = await place.left()
    assert.deepStrictEqual(left.open.filter(([, path]) => /pts|tty/.test(path)), [])
    const text = NodeFs.readFileSync(log, "utf8")
    assert.include(text, "before")
    assert.notInclude(text, "after")
  })
})
