/** Boots an image under QEMU with nothing of ours in between: pipes for the monitor, the agent and the command's ports. */
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { Socket } from "node:net"

type Json = Readonly<Record<string, unknown>>

const isJson = (value: unknown): value is Json => typeof value === "object" && value !== null

/** Lines of JSON, one answer per request, in order; what `isEvent` holds for is told apart. */
const jsonLines = (socket: Socket, isEvent: (message: Json) => boolean) => {
  const events: Array<Json> = []
  const waiting: Array<(message: Json) => void> = []
  let text = ""
  socket.setEncoding("utf8").on("data", (part: string) => {
    const lines = (text + part).split("\n")
    text = lines.pop() ?? ""
    for (const line of lines.filter((one) => one.trim() !== "")) {
      const message: unknown = JSON.parse(line)
      if (!isJson(message)) continue
      if (isEvent(message)) events.push(message)
      else waiting.shift()?.(message)
    }
  })
  const send = (execute: string, args: Json = {}) => socket.write(`${JSON.stringify({ execute, arguments: args })}\n`)
  return {
    events,
    send,
    ask: (execute: string, args: Json = {}) =>
      new Promise<unknown>((resolve, reject) => {
        waiting.push((message) =>
          "error" in message ? reject(new Error(JSON.stringify(message["error"]))) : resolve(message["return"])
        )
        send(execute, args)
      })
  }
}

const field = (value: unknown, name: string): unknown => isJson(value) ? value[name] : undefined

const text = (value: unknown): string => typeof value === "string" ? Buffer.from(value, "base64").toString() : ""

export interface Run {
  readonly stdin?: Buffer
  readonly directory?: string
  readonly env?: ReadonlyArray<string>
}

export const boot = async (
  image: { readonly kernel: string; readonly initramfs: string },
  ...more: ReadonlyArray<string>
) => {
  const names = ["org.qemu.guest_agent.0", "microvm.0.stdin", "microvm.0.stdout", "microvm.0.stderr"]
  const machine = "-M q35,hpet=off,sata=off,smbus=off,usb=off,i8042=off -accel tcg -cpu max -m 128 -nodefaults " +
    "-no-user-config -display none -no-reboot -serial stdio -device pvpanic -device virtio-serial-pci " +
    "-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control"
  const ports = names.map((name, index) =>
    `-chardev socket,id=c${index},fd=${4 + index} -device virtserialport,chardev=c${index},name=${name},id=p${index}`
  )
  const args = "console=ttyS0 panic=-1 reboot=t quiet cryptomgr.notests microvm.hostname=testguest"
  const qemu = spawn(
    "qemu-system-x86_64",
    [machine, ...ports].join(" ").split(" ").concat(
      "-kernel",
      image.kernel,
      "-initrd",
      image.initramfs,
      "-append",
      [args, ...more].join(" ")
    ),
    { stdio: ["ignore", "pipe", "pipe", "pipe", "pipe", "pipe", "pipe", "pipe"] }
  )
  const exited = once(qemu, "exit")
  let console = ""
  for (const stream of [qemu.stdout, qemu.stderr]) stream?.on("data", (part) => void (console += String(part)))
  const sockets = qemu.stdio.slice(3).flatMap((stream) => stream instanceof Socket ? [stream] : [])
  for (const socket of sockets) socket.on("error", () => {})
  const [monitor, agentPort, stdin, stdout, stderr] = sockets
  if (!(monitor && agentPort && stdin && stdout && stderr)) throw new Error("QEMU has not the pipes it was given")
  const qmp = jsonLines(monitor, (message) => "QMP" in message || "event" in message)
  // No other answer is a number of this size.
  const firstGreeting = 1_000_000
  const agent = jsonLines(agentPort, (message) => Number(message["return"]) >= firstGreeting)
  await qmp.ask("qmp_capabilities")
  const silent = (why: string) => new Error(`the guest does not answer: ${why}. Its console:\n${console.slice(-4096)}`)
  let late: NodeJS.Timeout | undefined
  // Waits in the socket until the agent opens its port; it has been seen to be lost on the way.
  const greeted = async () => {
    for (let turn = 0; agent.events.length === 0 && qemu.exitCode === null && qemu.signalCode === null; turn++) {
      if (turn % 250 === 0) agent.send("guest-sync", { id: firstGreeting + turn })
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
  await Promise.race([
    greeted(),
    exited.then((status) => Promise.reject(silent(`QEMU ended with ${status.join(" ")}`))),
    new Promise((_, reject) => {
      late = setTimeout(() => {
        qemu.kill("SIGKILL")
        reject(silent("a minute and a half has passed"))
      }, 90_000)
    })
  ]).finally(() => clearTimeout(late))

  /** All bytes of an output port between the marks of this run. */
  const receive = (port: Socket, nonce: string, onReady?: () => void) => {
    const ready = onReady === undefined ? "" : `READY ${nonce}\n`
    const trailer = Buffer.from(`\0${nonce}\n`)
    const parts: Array<Buffer> = []
    let length = 0
    let tail = Buffer.alloc(0)
    return new Promise<Buffer>((resolve) => {
      const take = (part: Buffer) => {
        parts.push(part)
        if (length < ready.length && length + part.length >= ready.length) onReady?.()
        length += part.length
        tail = Buffer.concat([tail, part]).subarray(-trailer.length)
        if (!tail.equals(trailer)) return
        port.off("data", take)
        resolve(Buffer.concat(parts).subarray(ready.length, -trailer.length))
      }
      port.on("data", take)
    })
  }

  return {
    qmp,
    agent,
    exited,
    console: () => console,
    kill: async () => {
      if (qemu.exitCode === null && qemu.signalCode === null) qemu.kill("SIGKILL")
      await exited
    },
    /** A command as the library runs it; `faults` is what microvm-exec itself had to say, and then no stream is read. */
    run: async (command: ReadonlyArray<string>, { directory, env, stdin: input = Buffer.alloc(0) }: Run = {}) => {
      const nonce = randomBytes(16).toString("hex")
      const send = () => {
        stdin.write(`BEGIN ${nonce}\n`)
        for (let at = 0; at < input.length; at += 262144) {
          const frame = input.subarray(at, at + 262144)
          stdin.write(`${frame.length}\n`)
          stdin.write(frame)
        }
        stdin.write("0\n")
      }
      const outputs = Promise.all([receive(stdout, nonce, send), receive(stderr, nonce)])
      const started = await agent.ask("guest-exec", {
        path: "/sbin/microvm-exec",
        arg: [...(directory === undefined ? [] : ["-C", directory]), "0", nonce, "--", ...command],
        env: env ?? ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "capture-output": true
      })
      for (;;) {
        const status = await agent.ask("guest-exec-status", { pid: field(started, "pid") })
        if (field(status, "exited") === true) {
          const faults = text(field(status, "err-data"))
          const [out, err] = faults === "" ? await outputs : [Buffer.alloc(0), Buffer.alloc(0)]
          return { code: field(status, "exitcode"), signal: field(status, "signal"), out, err: err.toString(), faults }
        }
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    },
    /** Starts a command and gives what its stdout says, as it comes. */
    start: async (command: ReadonlyArray<string>) => {
      let said = ""
      stdout.on("data", (part: Buffer) => void (said += part.toString()))
      const nonce = randomBytes(16).toString("hex")
      await agent.ask("guest-exec", {
        path: "/sbin/microvm-exec",
        arg: ["0", nonce, "--", ...command],
        "capture-output": true
      })
      return { said: () => said }
    }
  }
}
