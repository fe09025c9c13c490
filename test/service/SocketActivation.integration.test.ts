import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { once } from "node:events"
import { createServer } from "node:net"
import * as NodeSocketActivation from "../../src/service/NodeSocketActivation.ts"
import { fixture, start } from "./support/edge.ts"

/** A port that was free a moment ago. */
const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  await once(server, "close")
  return typeof address === "object" && address !== null ? address.port : 0
}

/** Opens `count` listening sockets, from descriptor 3 on, and becomes the fixture, as systemd does. */
const manager = [
  "import os, socket, sys",
  "ports = [int(port) for port in sys.argv[2].split(',')]",
  "for index, port in enumerate(ports):",
  "    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
  "    s.bind(('127.0.0.1', port)); s.listen(16)",
  "    os.dup2(s.fileno(), 10 + index)",
  "for index in range(len(ports)): os.dup2(10 + index, 3 + index); os.close(10 + index)",
  "os.closerange(3 + len(ports), 10)",
  "os.environ.update(LISTEN_FDS=sys.argv[1], LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='web:admin')",
  "os.execv(sys.argv[3], sys.argv[3:])"
].join("\n")

const startPassed = (claimed: number, ports: ReadonlyArray<number>) =>
  start("python3", ["-c", manager, String(claimed), ports.join(","), process.execPath, fixture("edgeSockets.ts")])

describe("sockets of the service manager", () => {
  it("are served, by their names, and are not passed on to children", async () => {
    const ports = [await freePort(), await freePort()]
    await using run = startPassed(2, ports)
    await run.said("ready")
    await run.said(`sockets [{"fd":3,"name":"web"},{"fd":4,"name":"admin"}]`)
    await run.said("child sees none")
    const answers = await Promise.all(ports.map(async (port) => (await fetch(`http://127.0.0.1:${port}/`)).text()))
    assert.deepStrictEqual(answers, ["web", "admin"])
  })

  it("that are not there are an error with a remedy", async () => {
    await using run = startPassed(1000, [await freePort()])
    const { stdout } = await run.end
    assert.match(stdout, /LISTEN_FDS: 1000, but descriptor \d+ is no socket: let the service manager pass it/)
  })

  it("are not ours when they were passed to another process", async () => {
    const passed = { count: 2, pid: process.pid + 1, names: [] }
    assert.deepStrictEqual(await Effect.runPromise(NodeSocketActivation.open(passed)), [])
  })
})
