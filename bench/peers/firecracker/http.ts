/** The calls of a start as one writes them by hand. */
import { type Agent, request } from "node:http"
import { bodies, type Goal } from "./rounds.ts"

const put = (agent: Agent, socketPath: string, path: string, body: object): Promise<void> =>
  new Promise((resolve, reject) => {
    const text = JSON.stringify(body)
    const headers = { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) }
    const call = request({ agent, socketPath, method: "PUT", path, headers }, (answer) => {
      let said = ""
      answer.setEncoding("utf8")
      answer.on("data", (piece: string) => {
        said += piece
      })
      answer.on("end", () => {
        if (answer.statusCode === 204) resolve()
        else reject(new Error(`${path}: ${answer.statusCode} ${said}`))
      })
    })
    call.on("error", reject)
    call.end(text)
  })

export const bringUp = async (agent: Agent, directory: string, goal: Goal): Promise<void> => {
  const socketPath = `${directory}/api.sock`
  const { bootSource, drive, machine, start, vsock } = bodies(directory)
  await put(agent, socketPath, "/machine-config", machine)
  await put(agent, socketPath, "/boot-source", bootSource)
  await put(agent, socketPath, "/drives/rootfs", drive)
  await put(agent, socketPath, "/vsock", vsock)
  if (goal === "start") await put(agent, socketPath, "/actions", start)
}
