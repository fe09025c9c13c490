import { connect } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"

/** Waits until one can connect to the socket. */
export const listens = async (path: string): Promise<void> => {
  const deadline = performance.now() + 5000
  for (;;) {
    const socket = connect({ path })
    const isOpen = await new Promise<boolean>((resolve) => {
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false))
    })
    socket.destroy()
    if (isOpen) return
    if (performance.now() > deadline) throw new Error(`nobody listens on ${path}`)
    await sleep(1)
  }
}
