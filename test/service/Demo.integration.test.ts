/** `npm run demo:service` for a newcomer whose machine is not the author's. */
import { assert, describe, it } from "@effect/vitest"
import { createServer } from "node:net"
import { start } from "./support/edge.ts"

const demo = (env: Readonly<Record<string, string>>) =>
  start(process.execPath, ["--conditions=@effect-microvm-runtime/source", "examples/demo-service.ts"], {
    env,
    deadlineMillis: 90_000
  })

describe("the demo of a service", () => {
  it("does not care who listens where it once did", async () => {
    const taken = [18_000, 18_001].map((port) => createServer().on("error", () => {}).listen(port, "127.0.0.1"))
    await using running = demo({})
    const { code, stderr, stdout } = await running.end
    for (const server of taken) server.close()
    assert.match(stdout, /^Requests: \d+, failed: 0\.$/m)
    assert.strictEqual(code, 0, stderr)
  })

  it("says in plain lines why the service did not start", async () => {
    await using running = demo({ SERVICE_ENV: "prod" })
    const { code, stderr } = await running.end
    assert.strictEqual(code, 1)
    assert.match(stderr, /^It did not start: exited with code 78 before it was ready/)
    assert.include(stderr, "SERVICE_ENV=\"prod\" is not known: write local or production")
    assert.notMatch(stderr, /^\s+at /m)
  })
})
