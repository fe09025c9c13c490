/**
 * The service manager at `NOTIFY_SOCKET`.
 *
 * Node has no unix datagram sockets, so a small program of the host sends each message: systemd-notify(1), which is there
 * wherever systemd is, else perl or python3, which are in most container images.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as NodeChildProcess from "node:child_process"
import { encode, type Notification, Notifier } from "./Notifier.ts"
import { explain } from "./ServiceError.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** Path of the socket, or its abstract name after an `@`. */
  readonly socket: string
  /** How often the manager wants a sign of life; it is sent twice as often. Default never. */
  readonly watchdog?: Duration.Input | undefined
}

interface Way {
  readonly command: string
  readonly args: (socket: string, lines: ReadonlyArray<string>) => ReadonlyArray<string>
}

const perl =
  "use Socket; my ($to, $what) = @ARGV; $to =~ s/^@/\\0/; socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die \"$!\\n\"; " +
  "send($s, $what, 0, sockaddr_un($to)) or die \"$!\\n\""

const python = "import socket, sys; to, what = sys.argv[1:]; " +
  "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(what.encode(), '\\0' + to[1:] if to[0] == '@' else to)"

/** The first is the best: it waits until the manager has read the message, and as root it speaks in our name. */
const ways: ReadonlyArray<Way> = [
  { command: "systemd-notify", args: (_, lines) => ["--", ...lines] },
  { command: "perl", args: (socket, lines) => ["-e", perl, "--", socket, lines.join("\n")] },
  { command: "python3", args: (socket, lines) => ["-c", python, socket, lines.join("\n")] }
]

/** A manager that does not read for so long is not waited for. */
const sendTime = "2 seconds"

/** So that the fault of the last message is still told. */
const flushTime = "3 seconds"

/** Nothing when it was sent, `"missing"` when there is no such program, else what went wrong. */
const run = (way: Way, socket: string, lines: ReadonlyArray<string>): Effect.Effect<string | undefined> =>
  Effect.callback<string | undefined>((resume) => {
    let child: NodeChildProcess.ChildProcess
    try {
      child = NodeChildProcess.spawn(way.command, way.args(socket, lines), {
        stdio: ["ignore", "ignore", "pipe"],
        env: { PATH: process.env["PATH"] ?? "/usr/bin:/bin", NOTIFY_SOCKET: socket }
      })
    } catch (cause) {
      resume(Effect.succeed(`${way.command}: ${explain(cause)}`))
      return
    }
    child.on(
      "error",
      (cause) => resume(Effect.succeed("code" in cause && cause.code === "ENOENT" ? "missing" : cause.message))
    )
    let complaint = ""
    // Out of descriptors, it has no pipe.
    child.stderr?.on("data", (chunk: Buffer) => {
      if (complaint.length < 500) complaint += chunk.toString()
    })
    child.on("close", (code, signal) => {
      const why = complaint.trim().split("\n").at(-1) || `it ended with ${signal ?? code}`
      resume(Effect.succeed(code === 0 ? undefined : `${way.command}: ${why}`))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  }).pipe(
    Effect.timeoutOrElse({
      duration: sendTime,
      orElse: () => Effect.succeed(`${way.command}: the manager did not take it in ${sendTime}`)
    })
  )

const make = Effect.fnUntraced(function*({ socket, watchdog }: Options) {
  let pending: Notification | undefined
  let usable = ways
  let isBroken = false
  const wake = yield* Queue.dropping<void, Cause.Done>(1)

  const complain = (why: string): Effect.Effect<void> => {
    if (isBroken) return Effect.void
    isBroken = true
    return Effect.logWarning(`The service manager at ${socket} cannot be told how things stand: ${why}`)
  }

  const send = Effect.fnUntraced(function*(lines: ReadonlyArray<string>): Effect.fn.Return<void> {
    const [way] = usable
    if (way === undefined) {
      const names = ways.map(({ command }) => command).join(", ")
      return yield* complain(`none of ${names} is on the PATH: install one, or unset NOTIFY_SOCKET`)
    }
    const fault = yield* run(way, socket, lines)
    if (fault === "missing") {
      usable = usable.slice(1)
      return yield* send(lines)
    }
    if (fault === undefined) isBroken = false
    else yield* complain(fault)
  })

  const notify = (notification: Notification): Effect.Effect<void> =>
    Effect.sync(() => {
      pending = { ...pending, ...notification }
      Queue.offerUnsafe(wake, undefined)
    })

  const sender = yield* Effect.forkScoped(
    Effect.forever(Effect.flatMap(Queue.take(wake), () =>
      Effect.suspend(() => {
        const lines = pending === undefined ? [] : encode(pending)
        pending = undefined
        return lines.length === 0 ? Effect.void : send(lines)
      })))
  )
  // The last word, most often that the service stops, is still told.
  yield* Effect.addFinalizer(() =>
    Effect.andThen(Queue.end(wake), Effect.timeoutOption(Fiber.await(sender), flushTime))
  )
  if (watchdog !== undefined) {
    const interval = Duration.millis(Duration.toMillis(Duration.fromInputUnsafe(watchdog)) / 2)
    yield* Effect.forkScoped(Effect.repeat(notify({ watchdog: true }), Schedule.spaced(interval)))
  }
  return Notifier.of({ notify })
})

/**
 * The manager at the given socket. Messages go out one after the other, in the background, and those still waiting when the
 * layer ends have 3 seconds. A manager that cannot be told costs one warning, not the service.
 *
 * **Gotchas**
 *
 * - The sender is a process of its own. Unless the service is root and systemd-notify is there, its unit needs
 *   `NotifyAccess=all`.
 * - What the service starts inherits `NOTIFY_SOCKET`, and may speak in its name then, too.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<Notifier> => Layer.effect(Notifier, make(options))

/** Microseconds of `WATCHDOG_USEC`, if the sign of life is to come from us (sd_watchdog_enabled(3)). */
const watchdogOf = (env: NodeJS.ProcessEnv): Duration.Duration | undefined => {
  const micros = Number(env["WATCHDOG_USEC"])
  const isOurs = (env["WATCHDOG_PID"] ?? "") === "" || Number(env["WATCHDOG_PID"]) === process.pid
  return isOurs && Number.isSafeInteger(micros) && micros > 0 ? Duration.micros(BigInt(micros)) : undefined
}

/**
 * The manager that the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, as they are when the layer
 * starts. Without the first, or when it is no socket of this kind, nothing is told.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Notifier> = Layer.effect(
  Notifier,
  Effect.suspend(() => {
    const socket = process.env["NOTIFY_SOCKET"] ?? ""
    return /^[/@]./.test(socket)
      ? make({ socket, watchdog: watchdogOf(process.env) })
      : Effect.succeed(Notifier.of({ notify: () => Effect.void }))
  })
)
