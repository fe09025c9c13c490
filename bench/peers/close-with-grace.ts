/** close-with-grace as its README shows it: the server is closed in the handler. */
import closeWithGrace from "close-with-grace"
import { makeServer, port, prepare, startChild, stopBudget } from "./app.ts"

await prepare()
startChild()
const server = makeServer().listen(port)
closeWithGrace({ delay: stopBudget }, ({ err }) => {
  if (err) console.error(err)
  return new Promise<void>((resolve) => void server.close(() => resolve()))
})
