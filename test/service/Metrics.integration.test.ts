/** What a service without any metric of its user's tells Prometheus. */
import { assert, it } from "@effect/vitest"
import { createServer, type Server } from "node:net"
import { fixture, start } from "./support/edge.ts"

const listening = async (): Promise<Server> => {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return server
}
const portOf = (server: Server): string => {
  const address = server.address()
  return typeof address === "object" && address !== null ? String(address.port) : ""
}

it("a plain service tells of itself, its requests, tasks and process", async () => {
  const servers = await Promise.all([listening(), listening()])
  const [port = "", health = ""] = servers.map(portOf)
  for (const server of servers) server.close()
  await using running = start(process.execPath, [fixture("metrics.ts")], {
    env: {
      SERVICE_RUNTIME_PORT: port,
      SERVICE_HEALTHZ_IP: "127.0.0.1",
      SERVICE_HEALTHZ_PORT: health,
      SERVICE_DRAIN_DELAY: "10s"
    },
    deadlineMillis: 30_000
  })
  await running.said("ready")
  const get = async (at: string, path: string) => {
    const response = await fetch(`http://127.0.0.1:${at}${path}`)
    return { status: response.status, text: await response.text() }
  }
  await get(port, "/hello")
  await get(port, "/hello")
  await get(port, "/missing")
  const slow = fetch(`http://127.0.0.1:${port}/slow`)
  await running.said("slow")
  await running.said("failed")
  /** Asks until a line is there: what is counted when an answer is sent may be counted after it has come. */
  const metrics = async (awaited: string): Promise<string> => {
    for (const until = performance.now() + 5_000;;) {
      const { text } = await get(health, "/metrics")
      if (text.includes(`\n${awaited}\n`) || performance.now() > until) return text
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
  const text = await metrics("service_task_restarts_total{task=\"flaky\"} 1")
  for (
    const line of [
      "service_info{name=\"metered\",version=\"1.2.3\",environment=\"local\"} 1",
      "service_ready 1",
      "service_draining 0",
      "http_requests_total{server=\"api\",method=\"GET\",code=\"200\"} 2",
      "http_requests_total{server=\"api\",method=\"GET\",code=\"404\"} 1",
      "http_requests_in_flight{server=\"api\"} 1",
      "service_task_restarts_total{task=\"flaky\"} 1",
      "# TYPE process_resident_memory_bytes gauge",
      "# TYPE process_cpu_seconds_total counter"
    ]
  ) assert.include(text.split("\n"), line)
  const number = (name: string): number => Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1])
  assert.isAbove(number("service_phase_duration_seconds{phase=\"init\"}"), 0)
  assert.isAbove(number("process_resident_memory_bytes"), 10_000_000)
  assert.isAbove(number("process_cpu_seconds_total"), 0)
  const age = Date.now() / 1000 - number("process_start_time_seconds")
  assert.isTrue(age > 0 && age < 60, `${age} s old`)

  running.kill("SIGTERM")
  assert.include(await metrics("service_draining 1"), "\nservice_ready 0\n")
  assert.strictEqual((await slow).status, 200)
  running.kill("SIGTERM")
  assert.strictEqual((await running.end).code, 10)
})
