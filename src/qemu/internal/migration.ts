import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { HostFailed, QemuHost, Ram, User } from "../QemuHost.ts"
import type { Qmp } from "../Qmp.ts"
import { MigrationFailed, QmpError } from "../QmpError.ts"
import * as QmpSchema from "../QmpSchema.ts"

/** How long a machine may take to be written; its guest stands still for so long. */
const savingWithin = Duration.minutes(5)

/** QEMU is back within milliseconds when it is told to give up. */
const cancellingWithin = "5 seconds"

/** What is waited for here mostly takes a few milliseconds. */
const polling = Schedule.min([Schedule.exponential("1 millis", 1.5), Schedule.spaced("100 millis")])

const failed = (direction: "out" | "in", why: string): Effect.Effect<never, QmpError> =>
  Effect.fail(new QmpError({ reason: new MigrationFailed({ direction, why }) }))

interface Saving {
  readonly qmp: Qmp
  readonly host: QemuHost["Service"]
  readonly user: User
  /** What the machine does now. */
  readonly status: string
  /** The file that gets the devices' state, and with it the memory that is no file. */
  readonly state: string
  /** The memory of a template, and the file that it is to be copied into. */
  readonly memory: { readonly ram: Ram; readonly file: string; readonly mode: number } | undefined
}

/**
 * Writes a machine whose guest stands still. After a failure or an interruption it stands as before: the one thing that
 * would be in its way is a sending that goes on.
 */
export const save = Effect.fnUntraced(
  function*({ host, memory, qmp, state, status, user }: Saving): Effect.fn.Return<void, QmpError | HostFailed> {
    if (status === "postmigrate") {
      // QEMU does not send a machine a second time before it has run; this is for a moment only.
      yield* Effect.all([qmp.execute(QmpSchema.cont), qmp.execute(QmpSchema.stop)], { concurrency: "unbounded" })
    }
    yield* qmp.execute(QmpSchema.ignoreSharedMemory(memory !== undefined))
    yield* qmp.execute(QmpSchema.unlimitBandwidth)
    yield* Effect.scoped(Effect.gen(function*() {
      const { path, received } = yield* host.receive(state, user)
      // What hinders the receiver is why QEMU fails, and not the other way round.
      const sent = Effect.andThen(qmp.execute(QmpSchema.migrate(`unix:${path}`)), untilSent(qmp))
      yield* Effect.all([received, sent], { concurrency: "unbounded", discard: true }).pipe(
        Effect.onError(() => cancel(qmp))
      )
    }))
    if (memory !== undefined) yield* memory.ram.copyTo(memory.file, memory.mode)
  },
  Effect.timeoutOrElse({
    duration: savingWithin,
    orElse: () => failed("out", `it took longer than ${Duration.format(savingWithin)}`)
  })
)

const progress = (qmp: Qmp) => (isOver: (status: string | undefined) => boolean) =>
  Effect.repeat(qmp.execute(QmpSchema.queryMigrate), { schedule: polling, until: ({ status }) => isOver(status) })

const untilSent = Effect.fnUntraced(function*(qmp: Qmp) {
  const end = yield* progress(qmp)((status) => status === "completed" || status === "failed" || status === "cancelled")
  if (end.status !== "completed") return yield* failed("out", end["error-desc"] ?? `the end is "${end.status}"`)
})

/** Waits until QEMU has really stopped: only then can the guest go on. Where nothing is sent, nothing changes. */
export const cancel = (qmp: Qmp): Effect.Effect<void> =>
  qmp.execute(QmpSchema.migrateCancel).pipe(
    Effect.andThen(
      progress(qmp)((status) => status === undefined || ["none", "completed", "failed", "cancelled"].includes(status))
    ),
    Effect.timeout(cancellingWithin),
    // A QEMU that is gone, or hangs, is told by others.
    Effect.ignore
  )

interface Loading {
  /** The descriptor of the state. */
  readonly fd: number
  readonly sharedMemory: boolean
  readonly within: Duration.Input
}

/** Loads a machine into a QEMU that waits for one; its guest stands still. */
export const load = Effect.fnUntraced(
  function*(qmp: Qmp, { fd, sharedMemory }: Loading): Effect.fn.Return<void, QmpError> {
    // In this order, but without a wait in between: this is what a user waits for.
    yield* Effect.all(
      [qmp.execute(QmpSchema.ignoreSharedMemory(sharedMemory)), qmp.execute(QmpSchema.migrateIncoming(`fd:${fd}`))],
      { concurrency: "unbounded", discard: true }
    )
    const { status } = yield* Effect.repeat(qmp.execute(QmpSchema.queryStatus), {
      schedule: polling,
      until: (now) => now.status !== "inmigrate"
    })
    if (status !== "paused") return yield* failed("in", `it is "${status}", not paused`)
  },
  (loading, _, { within }) =>
    Effect.timeoutOrElse(loading, {
      duration: within,
      orElse: () => failed("in", `it took longer than ${Duration.format(Duration.fromInputUnsafe(within))}`)
    })
)
