/** `node:http` and nothing else: signals have their default action. */
import { makeServer, port, prepare, startChild } from "./app.ts"

await prepare()
startChild()
makeServer().listen(port)
