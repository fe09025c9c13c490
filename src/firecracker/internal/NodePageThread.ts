import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"
import { Worker } from "node:worker_threads"
import type * as FirecrackerError from "../FirecrackerError.ts"
import { faultLoop, type FaultTask, type Kernel } from "./faultLoop.ts"
import { attempt, epollEvent, failure, type Libc, nameOf, opened, textOf } from "./NodeLibc.ts"

export interface Machine {
  /** Its userfaultfd. */
  readonly faults: number
  /** A descriptor that is readable once it is gone. */
  readonly gone: number
  /** Where a page of zeros is in our address space. */
  readonly zeros: number
}

/** What the thread is asked for: to wait until there is something to read, or to serve. `events` is what epoll watches. */
type Request =
  | { readonly _tag: "Wait"; readonly events: number }
  | { readonly _tag: "Serve"; readonly events: number; readonly machine: Machine; readonly task: FaultTask }

const Answer = Schema.Union([
  Schema.TaggedStruct("Readable", {}),
  Schema.TaggedStruct("Stopped", {}),
  Schema.TaggedStruct("Gone", {}),
  Schema.TaggedStruct("Failed", { what: Schema.String, errno: Schema.optionalKey(Schema.Int) })
])

type Answer = typeof Answer.Type

interface Library {
  readonly func: (declaration: string) => (...args: ReadonlyArray<number>) => number
}

/** What is used of koffi in the thread. */
interface Koffi {
  readonly load: (library: null) => Library
  readonly errno: () => number
  readonly address: (buffer: ArrayBuffer) => bigint
}

interface Calls {
  readonly untilReadable: (events: number) => Answer
  readonly kernel: (events: number, machine: Machine) => Kernel
}

/**
 * The system calls of the thread, from linux/userfaultfd.h and epoll_wait(2) as they are on 64 bits. Like `faultLoop` it is
 * only its text.
 */
function bind(koffi: Koffi, eventLayout: typeof epollEvent): Calls {
  const libc = koffi.load(null)
  const ioctl = libc.func("int ioctl(int fd, ulong request, uintptr_t argument)")
  const epoll = libc.func("int epoll_wait(int events, uintptr_t found, int most, int millis)")
  const read = libc.func("long read(int fd, uintptr_t buffer, size_t length)")
  // Firecracker has the same open file, and can make it wait again (fcntl(2)): then a read would, and nobody could stop this thread. A
  // userfaultfd that waits is an error to epoll.
  let readNow: typeof read | undefined
  try {
    readNow = libc.func("long preadv2(int fd, uintptr_t vector, int count, long offset, int flags)")
  } catch {
    // Not every C library has it.
  }
  const [EINTR, EAGAIN, EINVAL, ENOSYS, EOPNOTSUPP] = [4, 11, 22, 38, 95] as const
  const [RWF_NOWAIT, EPOLLERR] = [8, 8] as const
  const [UFFDIO_COPY, UFFDIO_ZEROPAGE] = [0xc028aa03, 0xc020aa04] as const
  const [mostEvents, smallPage] = [3, 4096] as const

  const allocate = (bytes: number) => {
    const view = new DataView(new ArrayBuffer(bytes))
    return { view, address: Number(koffi.address(view.buffer)) }
  }

  /** Answers with the bits of all that have something to read, or something wrong; `strict` ones may have nothing wrong. */
  const waiter = (events: number, strict = 0) => {
    const { address, view } = allocate(mostEvents * eventLayout.size)
    return (millis: number): number => {
      const found = epoll(events, address, mostEvents, millis)
      if (found < 0) return koffi.errno() === EINTR ? 0 : -koffi.errno()
      let [bits, broken] = [0, 0]
      for (let index = 0; index < found; index++) {
        const bit = view.getUint32(index * eventLayout.size + eventLayout.data, true)
        bits |= bit
        if ((view.getUint32(index * eventLayout.size, true) & EPOLLERR) !== 0) broken |= bit & strict
      }
      return broken !== 0 && bits === broken ? -EINVAL : bits
    }
  }

  return {
    untilReadable: (events) => {
      const wait = waiter(events)
      for (;;) {
        const bits = wait(-1)
        if (bits < 0) return { _tag: "Failed", what: "its socket could not be waited for", errno: -bits }
        if (bits > 0) return { _tag: (bits & 2) === 0 ? "Readable" : "Stopped" }
      }
    },
    kernel: (events, { faults, zeros }) => {
      const messages = allocate(64 * 32)
      const vector = allocate(16)
      vector.view.setBigUint64(0, BigInt(messages.address), true)
      vector.view.setBigUint64(8, BigInt(messages.view.byteLength), true)
      const argument = allocate(40)
      const put = (at: number, value: number): void => {
        const high = Math.floor(value / 2 ** 32)
        argument.view.setUint32(at, value - high * 2 ** 32, true)
        argument.view.setUint32(at + 4, high, true)
      }
      /** The last field of the argument tells how far it came, or why not at all. */
      const fill = (request: number, length: number, result: number): number => {
        put(result, 0)
        if (ioctl(faults, request, argument.address) === 0) return length
        const errno = koffi.errno()
        const done = argument.view.getInt32(result, true)
        return errno === EAGAIN && done > 0 ? done : -errno
      }
      const copy = (to: number, from: number, length: number): number => {
        put(0, to)
        put(8, from)
        put(16, length)
        put(24, 0)
        return fill(UFFDIO_COPY, length, 32)
      }
      const wait = waiter(events, 1)
      return {
        messages: messages.view,
        wait,
        read: () => {
          if (readNow !== undefined) {
            const bytes = readNow(faults, vector.address, 1, -1, RWF_NOWAIT)
            if (bytes >= 0) return bytes
            const errno = koffi.errno()
            if (errno !== ENOSYS && errno !== EOPNOTSUPP) return -errno
            readNow = undefined
          }
          const ready = wait(0)
          if (ready < 0 || (ready & 1) === 0) return ready < 0 ? ready : -EAGAIN
          const bytes = read(faults, messages.address, messages.view.byteLength)
          return bytes < 0 ? -koffi.errno() : bytes
        },
        copy,
        zero: (to, length) => {
          // There is no page of zeros of another size to share.
          if (length !== smallPage) return copy(to, zeros, length)
          put(0, to)
          put(8, length)
          put(16, 0)
          return fill(UFFDIO_ZEROPAGE, length, 24)
        },
        now: () => performance.now()
      }
    }
  }
}

/** It is text, so that it is there wherever this module is: in the sources, in the built package, in a bundle. */
const program = `
"use strict"
const { parentPort, workerData: { koffi, eventLayout } } = require("node:worker_threads")
// What esbuild leaves in functions that are to keep their names.
const __name = (target) => target
const faultLoop = ${String(faultLoop)}
const calls = (${String(bind)})(require(koffi), eventLayout)
parentPort.on("message", (request) => parentPort.postMessage(
  request._tag === "Wait"
    ? calls.untilReadable(request.events)
    : faultLoop(calls.kernel(request.events, request.machine), request.task)
))
`

export interface PageThread {
  readonly untilReadable: (descriptor: number) => Effect.Effect<void, FirecrackerError.FirecrackerError>
  /** Says when it begins. From then on our own event loop is not needed. */
  readonly serve: (
    machine: Machine,
    task: FaultTask,
    begins: () => void
  ) => Effect.Effect<"Gone" | "Stopped", FirecrackerError.FirecrackerError>
}

const isAnswer = Schema.is(Answer)

/** Node waits for its threads before it exits, and one in a system call does not come back by itself. */
const signals = new Set<() => void>()
const signalAll = () => signals.forEach((signal) => signal())

/**
 * A thread for what waits in system calls. It does one thing at a time. If that is interrupted the thread is ended and waited
 * for: then nothing that it was given is used any more.
 */
export const make = Effect.fnUntraced(function*(
  libc: Libc
): Effect.fn.Return<PageThread, FirecrackerError.FirecrackerError, Scope.Scope> {
  const stop = yield* opened("its thread cannot be started", libc.eventfd)
  const lost = yield* Deferred.make<never, FirecrackerError.FirecrackerError>()
  const lose = (why: string, cause?: unknown) => Deferred.doneUnsafe(lost, Effect.fail(failure(why, cause)))
  let hear: (answer: unknown) => void = () => {}
  const { end, post } = yield* Effect.acquireRelease(
    attempt("its thread cannot be started", () => {
      const thread = new Worker(program, {
        eval: true,
        name: "pages",
        workerData: { koffi: libc.koffi, eventLayout: epollEvent },
        // Nothing of what the program was told to load or to use is for it.
        env: {},
        execArgv: [],
        resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 4 }
      })
      thread.on("message", (answer) => hear(answer))
      thread.on("error", (cause) => lose(`its thread broke: ${textOf(cause)}`, cause))
      thread.on("exit", () => lose("its thread ended"))
      const signal = () => NodeFs.writeSync(stop, BigUint64Array.of(1n))
      if (signals.size === 0) process.on("exit", signalAll)
      signals.add(signal)
      return {
        post: (request: Request) => thread.postMessage(request, []),
        end: Effect.promise(async () => {
          signal()
          await thread.terminate()
          signals.delete(signal)
          if (signals.size === 0) process.off("exit", signalAll)
        })
      }
    }),
    (thread) => thread.end
  )
  const ask = (request: Request, begins?: () => void): Effect.Effect<Answer, FirecrackerError.FirecrackerError> =>
    Effect.callback<unknown>((resume) => {
      hear = (answer) => resume(Effect.succeed(answer))
      post(request)
      begins?.()
      return end
    }).pipe(
      Effect.raceFirst(Deferred.await(lost)),
      Effect.flatMap((answer) =>
        !isAnswer(answer)
          ? Effect.fail(failure("its thread does not answer as it should"))
          : answer._tag === "Failed"
          ? Effect.fail(failure(answer.errno === undefined ? answer.what : `${answer.what}: ${nameOf(answer.errno)}`))
          : Effect.succeed(answer)
      )
    )
  const watching = <A, E>(
    descriptors: ReadonlyArray<number>,
    use: (events: number) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | FirecrackerError.FirecrackerError> =>
    Effect.scoped(Effect.flatMap(opened("its thread has nothing to wait with", () => libc.epoll(descriptors)), use))
  return {
    untilReadable: (descriptor) =>
      watching([descriptor, stop], (events) => Effect.asVoid(ask({ _tag: "Wait", events }))),
    serve: (machine, task, begins) =>
      watching([machine.faults, stop, machine.gone], (events) =>
        Effect.map(
          ask({ _tag: "Serve", events, machine, task }, begins),
          ({ _tag }) => _tag === "Gone" ? "Gone" : "Stopped"
        ))
  }
})
