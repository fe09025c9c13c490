/** `node:http` and nothing else: signals have their default action. */
import { makeServer, port, prepare } from "./app.ts"

await prepare()
makeServer().listen(port)
