/**
 * The program that owns a process so that we need not: `node NodeHolderProgram.ts`, with an `Order` on its stdin. It has one
 * child, keeps the last of its output and both ends' bytes of its descriptors while nobody is there, and ends after it.
 *
 * It is plain Node, and small: one runs for each process that is held.
 */
import * as NodeChildProcess from "node:child_process"
import * as NodeFs from "node:fs"
import * as NodeNet from "node:net"
import { Duplex, type Readable } from "node:stream"
import * as ByteTail from "./byteTail.ts"
import { commandLine } from "./commandLine.ts"
import * as Protocol from "./holderProtocol.ts"
import * as CGroupKill from "./NodeCGroupKill.ts"
import { errnoName } from "./NodeErrno.ts"
import * as ProcStat from "./procStat.ts"

/** Of a channel while nobody takes them; then its writer has to wait. */
const mostPending = 256 * 1024

/** Of a channel, for the next client once more. */
const replayedBytes = 16 * 1024

/** Connections at a time; more than that are closed. */
const mostConnections = 64

/** That are written to the log. */
const mostFaults = 16

/** Milliseconds. How long the pipes of a child that has ended are still read, when others hold them open. */
const lastWords = 100

/** Milliseconds. How long clients may take to hear of the end. */
const farewell = 2000

/** Milliseconds between attempts to write down how it ended, and until a client has said what it wants. */
const patience = 1000

/** Of them, where there is room, and it is something else that is wrong. */
const mostAttempts = 10

/** Milliseconds. How often is it looked whether anybody can still come. */
const lookEvery = 2000

const parse = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** It comes from the process that has started us, whole or cut off. */
const isOrder = (value: unknown): value is Protocol.Order =>
  typeof value === "object" && value !== null && "version" in value && value.version === Protocol.version

const requestOf = (text: string): Protocol.Request | undefined => {
  const value = parse(text)
  if (typeof value !== "object" || value === null || !("version" in value) || !("op" in value)) return undefined
  const { version } = Protocol
  if (value.version !== version) return undefined
  if (value.op === "hold") return { version, op: "hold" }
  if (value.op === "output") {
    const stream = "stream" in value && value.stream === "stderr" ? "stderr" : "stdout"
    const from = "from" in value && typeof value.from === "number" && Number.isSafeInteger(value.from) ? value.from : 0
    return {
      version,
      op: "output",
      stream,
      from: Math.max(0, from),
      follow: "follow" in value && value.follow === true
    }
  }
  return value.op === "channel" && "fd" in value && typeof value.fd === "number" &&
      "hand" in value && typeof value.hand === "string"
    ? { version, op: "channel", fd: value.fd, hand: value.hand }
    : undefined
}

const identify = (bootId: string, pid: number) => {
  const startTime = ProcStat.parse(NodeFs.readFileSync(`/proc/${pid}/stat`, "utf8"))?.startTime
  if (startTime === undefined) throw new Error(`/proc/${pid}/stat cannot be read`)
  return { bootId, pid, startTime }
}

/** There with all its bytes, or not at all; `place` gives it its name. */
const writeDurably = (name: string, bytes: string | Uint8Array, place = NodeFs.renameSync): void => {
  const fresh = `${name}.new`
  const fd = NodeFs.openSync(fresh, "w", 0o600)
  try {
    NodeFs.writeFileSync(fd, bytes)
    NodeFs.fsyncSync(fd)
  } finally {
    NodeFs.closeSync(fd)
  }
  place(fresh, name)
  NodeFs.rmSync(fresh, { force: true })
}

/** Was it removed? Whatever else is wrong with it may pass. */
const isRemoved = (name: string): boolean => {
  try {
    NodeFs.lstatSync(name)
    return false
  } catch (cause) {
    return errnoName(cause) === "ENOENT"
  }
}

const syncDirectory = (): void => {
  const fd = NodeFs.openSync(".", "r")
  try {
    NodeFs.fsyncSync(fd)
  } finally {
    NodeFs.closeSync(fd)
  }
}

const line = (value: unknown): string => `${JSON.stringify(value)}\n`

interface Output {
  readonly tail: ByteTail.ByteTail
  readonly serve: (client: NodeNet.Socket, from: number, follow: boolean) => void
  readonly end: () => void
}

const makeOutput = (readable: Readable | null, limit: number): Output => {
  const tail = ByteTail.make(limit)
  const followers = new Set<() => void>()
  let hasEnded = readable === null
  const wake = (): void => followers.forEach((pump) => pump())
  const end = (): void => {
    hasEnded = true
    wake()
  }
  readable?.on("error", () => {}).on("close", end).on("data", (bytes: Buffer) => {
    tail.push(bytes)
    wake()
  })
  return {
    tail,
    end,
    serve: (client, from, follow) => {
      let position = from
      let isFull = false
      /** Is there room for more? */
      const frame = (bytes: Uint8Array): boolean => {
        const header = Buffer.alloc(Protocol.frameHeader)
        header.writeBigUInt64BE(BigInt(position))
        header.writeUInt32BE(bytes.length, 8)
        const hasRoom = client.write(bytes.length === 0 ? header : Buffer.concat([header, bytes]))
        position += bytes.length
        return hasRoom
      }
      const pump = (): void => {
        while (!isFull && position < tail.total()) {
          // What has been overwritten is passed over, and the position says so.
          position = Math.max(position, tail.total() - tail.held())
          if (tail.held() === 0) break
          isFull = !frame(tail.since(position))
        }
        if (isFull || (follow && !hasEnded)) return
        followers.delete(pump)
        position = tail.total()
        frame(new Uint8Array(0))
        client.end()
      }
      followers.add(pump)
      client.on("drain", () => {
        isFull = false
        pump()
      }).on("close", () => followers.delete(pump)).resume()
      pump()
    }
  }
}

interface Channel {
  readonly serve: (client: NodeNet.Socket, hand: string, rest: Buffer) => "busy" | undefined
  readonly letGo: (hand: string) => void
  /** What nobody has taken, after what is replayed in any case. */
  readonly rest: () => Uint8Array
}

interface Client {
  readonly socket: NodeNet.Socket
  readonly hand: string
  isHalfClosed: boolean
}

const makeChannel = (duplex: Duplex, isReplayed: boolean): Channel => {
  const history = ByteTail.make(isReplayed ? replayedBytes : 0)
  const pending: Array<Buffer> = []
  let size = 0
  let client: Client | undefined
  let writing: Client | undefined
  let hasEnded = false

  const flush = (): void => {
    const to = client
    const [chunk] = pending
    if (to === undefined || writing === to) return
    if (chunk === undefined) {
      if (hasEnded) to.socket.end()
      return
    }
    writing = to
    to.socket.write(chunk, (failure) => {
      if (writing === to) writing = undefined
      // What was not taken is the next client's.
      if (client !== to || failure) return
      pending.shift()
      size -= chunk.length
      if (size < mostPending) duplex.resume()
      flush()
    })
  }
  const end = (): void => {
    hasEnded = true
    flush()
  }
  duplex.allowHalfOpen = true
  duplex.on("error", () => {}).on("end", end).on("close", end).on("data", (bytes: Buffer) => {
    history.push(bytes)
    pending.push(bytes)
    size += bytes.length
    if (size >= mostPending) duplex.pause()
    flush()
  })

  /** The last of what was sent already: `history` goes on into `pending`. */
  const sent = (): Uint8Array => {
    const bytes = history.since(0)
    return bytes.subarray(0, Math.max(0, bytes.length - size))
  }
  return {
    serve: (socket, hand, rest) => {
      if (client !== undefined && client.hand === hand && !client.isHalfClosed) return "busy"
      client?.socket.destroy()
      const own: Client = { socket, hand, isHalfClosed: false }
      client = own
      const replay = sent()
      socket.write(line({ _tag: "Channel", replayed: replay.length } satisfies Protocol.Answer))
      if (replay.length > 0) socket.write(replay)
      const forward = (bytes: Buffer): void => {
        if (duplex.writable && !duplex.write(bytes)) {
          socket.pause()
          duplex.once("drain", () => socket.resume())
        }
      }
      if (rest.length > 0) forward(rest)
      socket.on("data", forward).on("end", () => {
        own.isHalfClosed = true
      }).on("close", () => {
        if (client === own) client = undefined
      })
      flush()
      return undefined
    },
    letGo: (hand) => {
      if (client?.hand === hand) client.socket.destroy()
    },
    rest: () => Buffer.concat([sent(), ...pending])
  }
}

interface Keeping {
  readonly order: Protocol.Order
  readonly child: NodeChildProcess.ChildProcess
  readonly server: NodeNet.Server
  readonly clients: Set<NodeNet.Socket>
}

/** From here on there is a child, and it is looked after to its end. Gives what each new client is served by. */
const keep = ({ child, clients, order, server }: Keeping) => {
  const outputs = {
    stdout: makeOutput(child.stdout, order.tailBytes),
    stderr: makeOutput(child.stderr, order.tailBytes)
  }
  const channels = new Map<number, Channel>()
  child.stdio.forEach((stream, fd) => {
    if (fd >= 3 && stream instanceof Duplex) channels.set(fd, makeChannel(stream, order.replayed.includes(fd)))
  })
  let hand: { readonly name: string; readonly socket: NodeNet.Socket } | undefined
  let end: Protocol.End | undefined

  const writeDown = ({ code, signal }: Protocol.End): void => {
    writeDurably(Protocol.files.stdout, outputs.stdout.tail.since(0))
    writeDurably(Protocol.files.stderr, outputs.stderr.tail.since(0))
    channels.forEach((channel, fd) => writeDurably(Protocol.channelFile(fd), channel.rest()))
    const stdout = outputs.stdout.tail.total()
    const stderr = outputs.stderr.tail.total()
    const ended: Protocol.Ended = { version: Protocol.version, code, signal, stdout, stderr }
    writeDurably(Protocol.files.ended, JSON.stringify(ended))
    syncDirectory()
  }
  const leave = (how: Protocol.End, others = 1): void => {
    try {
      writeDown(how)
    } catch (cause) {
      const code = errnoName(cause)
      // A full disk may have room again. A directory that was removed is not missed by anybody, and one that is read-only, or broken,
      // mostly stays so.
      const isFull = code === "ENOSPC" || code === "EDQUOT"
      if (isFull || (code !== "ENOENT" && others < mostAttempts)) {
        setTimeout(leave, patience, how, isFull ? others : others + 1)
        return
      }
    }
    server.close()
    outputs.stdout.end()
    outputs.stderr.end()
    hand?.socket.end()
    setTimeout(() => clients.forEach((client) => client.destroy()), farewell).unref()
    // Descendants of the child may hold them open for ever.
    child.stdio.forEach((stream) => stream?.destroy())
  }
  const killAll = (): void => {
    const cgroup = order.launch.cgroup?.path
    try {
      if (cgroup !== undefined) CGroupKill.kill(cgroup)
    } catch {
      // What the group has is killed all the same.
    }
    try {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL")
    } catch {
      // It has just ended.
    }
  }
  // Without its directory nobody will ever come again, and the process would be nobody's for ever.
  const lookOut = setInterval(() => hand === undefined && isRemoved(Protocol.files.held) && killAll(), lookEvery)
  child.on("error", () => {}).once("exit", (code, signal) => {
    clearInterval(lookOut)
    // It hears nothing any more, and a socket closes when both sides have ended.
    child.stdio.forEach((stream) => stream instanceof Duplex && stream.end())
    let isOver = false
    const over = (): void => {
      if (isOver) return
      isOver = true
      clearTimeout(timer)
      end = { code, signal }
      hand?.socket.write(line(end))
      leave(end)
    }
    const timer = setTimeout(over, lastWords)
    child.once("close", over)
  })

  const hold = (socket: NodeNet.Socket): void => {
    // It may have gone again meanwhile.
    if (socket.readableEnded || socket.destroyed) {
      socket.destroy()
      return
    }
    if (hand !== undefined) {
      socket.end(line({ _tag: "Refused", why: "held" } satisfies Protocol.Answer))
      return
    }
    const name = `${process.pid}.${process.hrtime.bigint()}`
    hand = { name, socket }
    socket.once("close", () => {
      hand = undefined
      channels.forEach((channel) => channel.letGo(name))
    }).once("end", () => socket.destroy()).resume()
    const answer: Protocol.Answer = {
      _tag: "Hand",
      hand: name,
      stdout: outputs.stdout.tail.total(),
      stderr: outputs.stderr.tail.total()
    }
    socket.write(line(answer))
    if (end !== undefined) socket.end(line(end))
  }

  return (socket: NodeNet.Socket, text: string, rest: Buffer): void => {
    const refuse = (why: "busy" | "unknown"): void => {
      socket.end(line({ _tag: "Refused", why } satisfies Protocol.Answer))
    }
    const request = requestOf(text)
    if (request === undefined) return refuse("unknown")
    if (request.op === "hold") {
      // One who has just been killed may come after the one who comes because of that: its end is there already.
      setImmediate(() => setImmediate(hold, socket))
    } else if (request.op === "output") {
      socket.write(line({ _tag: "Output" } satisfies Protocol.Answer))
      outputs[request.stream].serve(socket, request.from, request.follow)
    } else {
      const channel = channels.get(request.fd)
      if (channel === undefined || hand === undefined || hand.name !== request.hand) return refuse("unknown")
      if (channel.serve(socket, hand.name, rest) === "busy") refuse("busy")
    }
  }
}

/** Reads the first line of a client, and hands over the rest. */
const welcome = (
  socket: NodeNet.Socket,
  serve: (socket: NodeNet.Socket, text: string, rest: Buffer) => void
): void => {
  let head = Buffer.alloc(0)
  const timer = setTimeout(() => socket.destroy(), patience)
  const listen = (bytes: Buffer): void => {
    head = Buffer.concat([head, bytes])
    const at = head.indexOf(0x0a)
    if (at < 0 && head.length <= Protocol.longestLine) return
    socket.off("data", listen).off("end", leave).pause()
    clearTimeout(timer)
    if (at < 0) socket.destroy()
    else {
      serve(socket, head.toString("utf8", 0, at), head.subarray(at + 1))
      socket.resume()
    }
  }
  const leave = (): void => {
    socket.destroy()
  }
  socket.on("error", () => {}).on("data", listen).on("end", leave).on("close", () => clearTimeout(timer))
}

const answer = (started: Protocol.Started): void => {
  try {
    NodeFs.writeSync(1, line(started))
  } catch {
    // Whoever has started us is gone; the child is there all the same.
  }
}

const main = (): void => {
  const order = parse(NodeFs.readFileSync(0, "utf8"))
  // Whoever began it was killed.
  if (!isOrder(order)) return
  // What goes wrong with one connection is not to cost the process its life.
  let faults = 0
  process.on("uncaughtException", (cause) => {
    if (++faults > mostFaults) return
    try {
      NodeFs.writeSync(2, `${String(cause.stack)}\n`)
    } catch {
      // On a full disk there is no room for it.
    }
  })
  const { bootId, launch, mark, setpriv } = order
  // What ends a whole session or a service is for the child, and we end after it.
  for (const signal of ["SIGHUP", "SIGINT", "SIGTERM", "SIGPIPE"]) process.on(signal, () => {})
  let isClaimed = false
  const refuse = (cause: unknown): void => {
    if (isClaimed) {
      for (const name of [Protocol.files.held, Protocol.files.socket]) NodeFs.rmSync(name, { force: true })
    }
    answer({ _tag: "Refused", code: errnoName(cause), step: isClaimed ? "start" : "claim" })
  }

  const clients = new Set<NodeNet.Socket>()
  let child: NodeChildProcess.ChildProcess | undefined
  let serve: ReturnType<typeof keep> | undefined
  const server = NodeNet.createServer({ allowHalfOpen: true }, (socket) => {
    clients.add(socket)
    socket.once("close", () => clients.delete(socket))
    welcome(socket, (client, text, rest) => serve === undefined ? client.destroy() : serve(client, text, rest))
  })
  server.maxConnections = mostConnections
  server.on("error", () => {})

  try {
    process.chdir(order.directory)
    const holder = identify(bootId, process.pid)
    const claim: Protocol.Claim = { version: Protocol.version, holder, mark }
    writeDurably(Protocol.files.held, JSON.stringify(claim), NodeFs.linkSync)
    isClaimed = true
    const mask = process.umask(0o177)
    // Relative, and so short enough for any directory (unix(7)). It is bound before this returns.
    server.listen(Protocol.files.socket)
    process.umask(mask)
    if (!server.listening) throw new Error(`${Protocol.files.socket} cannot be listened on`)
    const [file, args] = commandLine(launch, { setpriv, parent: process.pid, isUnguarded: true })
    const { env, stdio } = launch
    child = NodeChildProcess.spawn(file, args, { env, cwd: launch.cwd ?? "/", stdio: [...stdio], detached: true })
    if (child.pid === undefined) {
      server.close()
      child.once("error", (cause) => refuse(cause))
      return
    }
    const identity = identify(bootId, child.pid)
    serve = keep({ order, child, server, clients })
    const held: Protocol.Held = {
      ...claim,
      holder,
      child: identity,
      cgroup: launch.cgroup?.path ?? null,
      executable: launch.executable,
      channels: stdio.flatMap((kind, fd) => fd >= 3 && kind === "pipe" ? [fd] : []),
      note: order.note
    }
    writeDurably(Protocol.files.held, JSON.stringify(held))
    syncDirectory()
    answer({ _tag: "Started" })
  } catch (cause) {
    child?.kill("SIGKILL")
    server.close()
    refuse(cause)
  }
}

main()
