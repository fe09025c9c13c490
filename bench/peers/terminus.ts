/** @godaddy/terminus as its README shows it, the advised wait in `beforeShutdown` included. */
import { createTerminus } from "@godaddy/terminus"
import { setTimeout as sleep } from "node:timers/promises"
import { drainDelay, makeServer, port, prepare, startChild, stopBudget } from "./app.ts"

await prepare()
startChild()
createTerminus(makeServer(), {
  healthChecks: { "/readyz": () => Promise.resolve(), "/livez": () => Promise.resolve() },
  signals: ["SIGTERM", "SIGINT"],
  useExit0: true,
  timeout: stopBudget - drainDelay,
  beforeShutdown: () => sleep(drainDelay)
}).listen(port)
