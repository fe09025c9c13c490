/** The client that is written by hand. */
import { Agent } from "node:http"
import { bringUp } from "./http.ts"
import { answerRounds } from "./rounds.ts"

await answerRounds(async (directory, goal) => {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  await bringUp(agent, directory, goal)
  return () => agent.destroy()
})
