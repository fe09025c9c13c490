/** lightship as its README shows it: the server is closed in a shutdown handler. */
import { createLightship } from "lightship"
import { drainDelay, makeServer, port, prepare, probesPort, startChild, stopBudget } from "./app.ts"

const lightship = await createLightship({
  port: probesPort,
  detectKubernetes: false,
  shutdownDelay: drainDelay,
  gracefulShutdownTimeout: stopBudget - drainDelay,
  shutdownHandlerTimeout: stopBudget - drainDelay
})
await prepare()
startChild()
const server = makeServer().listen(port, () => lightship.signalReady())
lightship.registerShutdownHandler(() => new Promise((resolve) => server.close(() => resolve())))
