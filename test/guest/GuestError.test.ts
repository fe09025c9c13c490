import { expect, it } from "@effect/vitest"
import { GuestError } from "effect-microvm-runtime/guest"
import * as Socket from "effect/socket/Socket"

const closed = "The channel \"agent\" to the guest is closed"

it.each([
  [undefined, `${closed}, as when its machine has ended`],
  [
    new Socket.SocketError({ reason: new Socket.SocketCloseError({ code: 1000 }) }),
    `${closed}, as when its machine has ended`
  ],
  [
    new Socket.SocketError({ reason: new Socket.SocketWriteError({ cause: new Error("write EPIPE") }) }),
    `${closed} (write EPIPE), as when its machine has ended`
  ],
  [new Error("more than 4096 lines that nobody asked for"), `${closed} (more than 4096 lines that nobody asked for)`]
])("a closed channel says why, in words", (cause, message) => {
  expect(GuestError.make(new GuestError.Closed({ channel: "agent", cause })).message).toBe(message)
})
