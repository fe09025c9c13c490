/** Services as processes: from SIGTERM to their end, rolling restarts, start-up; and the parts of one. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Agent, createServer, get, type RequestListener } from "node:http"
import * as Part from "../src/service/Part.ts"
import * as Parts from "../src/service/Parts.ts"
import * as Probe from "../src/testing/LifecycleProbe.ts"
import {
  type Contestant,
  interleaved,
  median,
  ms,
  now,
  quantile,
  type Section,
  table,
  times,
  type Verdict,
  verdict
} from "./measure.ts"
import { bare, ours, subjects } from "./peers/subjects.ts"

const own = ours({ budget: 1, drainDelay: 0 }).name

const isOk = (answer: Probe.Answer | Probe.NoAnswer | undefined): boolean =>
  answer !== undefined && "status" in answer && Probe.isOk(answer)

/** Started and answering, all with a child process and a task or all without; gives the milliseconds that it took. */
const serving = Effect.fnUntraced(function*(subject: Probe.Subject, hasChild = false) {
  const begun = now()
  const service = yield* Probe.start(subject, { env: { CHILD: hasChild ? "1" : "" } })
  const { ready } = subject.probes ?? {}
  const port = ready === undefined || subject.probes?.on === "service" ? service.ports.service : service.ports.probes
  const answer = yield* Effect.raceFirst(
    Probe.until(Probe.request(port, ready ?? subject.endpoints.fast), isOk, "20 seconds"),
    Effect.as(service.exit, undefined)
  )
  if (answer === undefined) {
    return yield* Effect.die(new Error(`${subject.name} does not start: ${yield* service.output}`))
  }
  return { service, took: now() - begun, probe: { port, path: ready ?? subject.endpoints.fast } }
})

const budget = 1500
/** How long an end is waited for. */
const patience = 5000

type Ask = (service: Probe.Service) => Effect.Effect<Probe.Answer | Probe.NoAnswer, never, Scope.Scope>

/** From SIGTERM to the end, with what a client does meanwhile. */
const stop = (
  subject: Probe.Subject,
  ask: Ask,
  told: (answered: boolean, late: number) => void
): Contestant<number> => ({
  name: subject.name,
  run: () =>
    Effect.runPromise(Effect.scoped(Effect.gen(function*() {
      const { service } = yield* serving(subject)
      let answered = Number.NaN
      const asking = yield* Effect.forkScoped(
        Effect.tap(ask(service), () => Effect.sync(() => void (answered = now()))),
        { startImmediately: true }
      )
      yield* Effect.sleep(150)
      const at = now()
      yield* service.signal("SIGTERM")
      const ended = Option.getOrUndefined(yield* Effect.timeoutOption(service.exit, patience))
      const took = (ended?.at ?? now()) - at
      const answer = Number.isNaN(answered) ? undefined : yield* Fiber.join(asking)
      const good = isOk(answer)
      told(good, (ended?.at ?? now()) - (good ? Math.max(at, answered) : at))
      return took
    })))
})

const settled = (ask: Effect.Effect<Probe.Answer, Probe.NoAnswer>) =>
  Effect.catch(ask, (error) => Effect.succeed(error))

const nothing: Ask = () => Effect.succeed({ status: 200, body: "", closes: false })
const kept = (path: string): Ask => (service) =>
  Effect.flatMap(
    Probe.keepAlive(1),
    (agent) => settled(Probe.request(service.ports.service, path, { agent, within: "1 hour" }))
  )
const webSocket: Ask = (service) =>
  Effect.matchEffect(Probe.openWebSocket(service.ports.service, "/websocket"), {
    onFailure: (error) => Effect.succeed(error),
    // Cut without a word is no good answer.
    onSuccess: ({ closed }) =>
      Effect.map(closed, (code) => ({ status: code === 1006 ? 0 : 200, body: "", closes: true }))
  })

export const stopLatency = async (rounds: number): Promise<Section> => {
  const cases: ReadonlyArray<{ readonly name: string; readonly ask: Ask; readonly goal: number | undefined }> = [
    { name: "idle", ask: nothing, goal: 0 },
    { name: "an idle keep-alive connection", ask: kept("/fast"), goal: 0 },
    { name: "a request of 600 ms in flight, on a keep-alive connection", ask: kept("/slow?ms=600"), goal: 0 },
    { name: `a request that hangs, budget ${budget} ms`, ask: kept("/hang"), goal: budget },
    { name: "an open WebSocket", ask: webSocket, goal: undefined }
  ]
  const tables: Array<string> = []
  const verdicts: Array<Verdict> = []
  for (const { ask, goal, name } of cases) {
    const answers = new Map<string, { good: number; all: number; late: Array<number> }>()
    const samples = await interleaved(
      rounds,
      subjects({ budget, drainDelay: 0 }).map((subject) => {
        const seen = { good: 0, all: 0, late: new Array<number>() }
        answers.set(subject.name, seen)
        return stop(subject, ask, (answered, late) => {
          seen.all++
          if (answered) seen.good++
          seen.late.push(late)
        })
      })
    )
    const good = [...answers].map(([who, of]) => `${who} ${of.good} of ${of.all}`).join(", ")
    tables.push(`With ${name}:\n\n${table(samples)}${ask === nothing ? "" : `\n\nWell answered: ${good}.`}`)
    const seen = answers.get(own)
    if (seen === undefined) continue
    // Without those that warmed up.
    const late = quantile(seen.late.slice(-rounds), 0.5)
    if (goal !== budget && ask !== nothing) {
      verdicts.push(verdict(`${name}: all well answered`, `${seen.good} of ${seen.all}`, seen.good === seen.all))
    }
    if (goal !== undefined) {
      verdicts.push(
        verdict(`${name}: p50 ≤ ${goal === 0 ? "the last answer" : ms(goal)} + 50 ms`, ms(late), late <= goal + 50)
      )
    }
  }
  return {
    title: "SIGTERM → exit of a service",
    text: `Until its end is known, with no drain delay. ${patience} ms: it was still running.`,
    tables,
    verdicts
  }
}

interface Backend {
  readonly service: Probe.Service
  readonly agent: Agent
  up: boolean
}

/** Spreads requests over the backends that say that they are ready, asked every so often, and never tries twice. */
const makeBalancer = (backends: Set<Backend>): RequestListener => {
  let turn = 0
  return (request, response) => {
    const ready = [...backends].filter(({ up }) => up)
    const backend = ready[turn++ % ready.length]
    if (backend === undefined) return void response.writeHead(503).end()
    const onward = get(
      { host: "127.0.0.1", port: backend.service.ports.service, path: request.url, agent: backend.agent },
      (answer) => {
        response.writeHead(answer.statusCode ?? 502)
        answer.pipe(response)
        answer.on("error", () => response.destroy())
      }
    )
    onward.on("error", () => response.headersSent ? response.destroy() : response.writeHead(502).end())
  }
}

const probePeriod = 50
const rate = 200

const rolling = (subject: Probe.Subject, restarts: number) =>
  Effect.scoped(Effect.gen(function*() {
    const backends = new Set<Backend>()
    const server = yield* Effect.acquireRelease(
      Effect.callback<ReturnType<typeof createServer>>((resume) => {
        const listener = createServer(makeBalancer(backends))
        listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
      }),
      (listener) =>
        Effect.callback<void>((resume) => {
          listener.close(() => resume(Effect.void))
          listener.closeAllConnections()
        })
    )
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0

    const add = Effect.gen(function*() {
      const { probe, service } = yield* serving(subject)
      const backend: Backend = { service, agent: new Agent({ keepAlive: true }), up: true }
      yield* Effect.addFinalizer(() => Effect.sync(() => backend.agent.destroy()))
      backends.add(backend)
      const poll = Effect.gen(function*() {
        backend.up = isOk(yield* settled(Probe.request(probe.port, probe.path, { within: "1 second" })))
        yield* Effect.sleep(probePeriod)
      })
      yield* Effect.forkScoped(Effect.repeat(poll, { while: () => backends.has(backend) }))
      return backend
    })

    const failures = new Map<string, number>()
    const took: Array<number> = []
    const client = yield* Probe.keepAlive(256)
    const one = (path: string) =>
      Effect.suspend(() => {
        const at = now()
        return Effect.tap(settled(Probe.request(port, path, { agent: client })), (answer) =>
          Effect.sync(() => {
            took.push(now() - at)
            if (isOk(answer)) return
            const why = "status" in answer ? String(answer.status) : answer.code
            failures.set(why, (failures.get(why) ?? 0) + 1)
          }))
      })
    let sending = true
    const isSending = (): boolean => sending
    const load = Effect.gen(function*() {
      const begun = now()
      const requests: Array<Fiber.Fiber<unknown>> = []
      for (let count = 0; isSending(); count++) {
        requests.push(yield* Effect.forkScoped(one(count % 10 === 0 ? "/slow?ms=100" : "/fast")))
        yield* Effect.sleep(Math.max(0, begun + (count + 1) * 1000 / rate - now()))
      }
      yield* Effect.forEach(requests, (request) => Fiber.await(request), { discard: true })
    })

    yield* add
    yield* add
    const loading = yield* Effect.forkScoped(load)
    for (let count = 0; count < restarts; count++) {
      const [oldest] = backends
      yield* add
      yield* Effect.sleep(2 * probePeriod)
      if (oldest === undefined) continue
      yield* oldest.service.signal("SIGTERM")
      yield* Effect.timeoutOption(oldest.service.exit, patience)
      backends.delete(oldest)
    }
    sending = false
    yield* Fiber.join(loading)
    return { failures, failed: [...failures.values()].reduce((sum, count) => sum + count, 0), took }
  }))

export const rollingRestart = async (restarts: number): Promise<Section> => {
  const rows = ["| | requests | failed | p99 ms | how |", "| --- | --- | --- | --- | --- |"]
  const verdicts: Array<Verdict> = []
  for (const subject of subjects({ budget, drainDelay: 3 * probePeriod })) {
    const { failed, failures, took } = await Effect.runPromise(rolling(subject, restarts))
    const how = [...failures].map(([why, count]) => `${why} × ${count}`).join(", ")
    rows.push(`| ${subject.name} | ${took.length} | ${failed} | ${ms(quantile(took, 0.99))} | ${how} |`)
    if (subject.name === own) verdicts.push(verdict("no request fails", `${failed} of ${took.length}`, failed === 0))
  }
  return {
    title: `${restarts} rolling restarts behind a balancer`,
    text:
      `Two instances behind a balancer that asks each for its readiness every ${probePeriod} ms and never tries a request twice; ${rate} requests a second, each tenth of 100 ms. A new instance is ready before the oldest gets SIGTERM, with a drain delay of ${
        3 * probePeriod
      } ms for those that have one. Those without a readiness probe are asked for a request. One service after the other.`,
    tables: [rows.join("\n")],
    verdicts
  }
}

/** Up to the first request that is answered. */
export const serviceStartup = async (rounds: number): Promise<Section> => {
  const startsOf = (hasChild: boolean) =>
    interleaved(
      rounds,
      subjects({ budget, drainDelay: 0 }).map((subject) => ({
        name: subject.name,
        run: () => Effect.runPromise(Effect.scoped(Effect.map(serving(subject, hasChild), ({ took }) => took)))
      }))
    )
  const empty = await startsOf(false)
  const withChild = await startsOf(true)
  const ratio = median(empty, own) / median(empty, bare({ budget, drainDelay: 0 }).name)
  return {
    title: "Start-up of a service",
    text: "From fork to the first good answer of its readiness probe, or of a request if it has none.",
    tables: [
      table(empty),
      `Each starts a child process by its usual means, too, and a task in the background. This library's child has a guard that clears up when we are killed, and the first one waits until it is known what this host lets us do.\n\n${
        table(withChild)
      }`
    ],
    verdicts: [verdict("≤ 1.2 × runMain + Layer.launch", times(ratio), ratio <= 1.2)]
  }
}

const stopTime = 20
/** How many are started before any is measured. */
const warmUp = 50_000

/** `depth` parts depend on one another in a chain; chains are independent. */
const shapes = [{ name: "independent parts", depth: 1 }, { name: "parts in chains of ten", depth: 10 }]

const resource = (takes: number): Layer.Layer<never> =>
  Layer.effectDiscard(Effect.acquireRelease(Effect.void, () => takes === 0 ? Effect.void : Effect.sleep(takes)))

type Start = Effect.Effect<{ readonly stop: Effect.Effect<unknown> }>

const layers = (count: number, depth: number, takes: number): Start =>
  Effect.gen(function*() {
    const whole = Layer.mergeAll(
      Layer.empty,
      ...Array.from({ length: count / depth }, () => {
        let chain = resource(takes)
        for (let level = 1; level < depth; level++) chain = Layer.provide(resource(takes), chain)
        return chain
      })
    )
    const scope = yield* Scope.make()
    yield* Layer.buildWithScope(whole, scope)
    return { stop: Scope.close(scope, Exit.void) }
  })

const parts = (count: number, depth: number, takes: number): Start =>
  Effect.gen(function*() {
    const made = yield* Parts.make(Array.from({ length: count / depth }, (_, tower) => {
      let part: Part.Part<never> = Part.make(`part-${tower}-0`, resource(takes))
      for (let level = 1; level < depth; level++) {
        part = Part.make(`part-${tower}-${level}`, resource(takes), { dependsOn: [part] })
      }
      return part
    }))
    yield* made.start()
    return { stop: made.stop({ budget: "1 minute" }) }
  }).pipe(Effect.orDie)

/** What the parts, or layers, do while they stop, and nothing else. */
const sleeps = (count: number, depth: number, takes: number): Start => {
  const chain = Effect.repeat(Effect.sleep(takes), { times: depth - 1 })
  const chains = Array.from({ length: count / depth }, () => chain)
  return Effect.succeed({ stop: Effect.all(chains, { concurrency: "unbounded", discard: true }) })
}

const timed = (name: string, start: Start, which: "start" | "stop"): Contestant<number> => ({
  name,
  run: () =>
    Effect.runPromise(Effect.gen(function*() {
      const begun = now()
      const running = yield* start
      const started = now()
      yield* running.stop
      return which === "start" ? started - begun : now() - started
    }))
})

export const manyParts = async (rounds: number): Promise<Section> => {
  const tables: Array<string> = []
  const verdicts: Array<Verdict> = []
  for (const { depth, name } of shapes) {
    for (const count of [10, 100, 500]) {
      // Until the code is compiled, its compiler is what is measured.
      const starts = await interleaved(10 * rounds, [
        timed("bare layers", layers(count, depth, 0), "start"),
        timed(own, parts(count, depth, 0), "start")
      ], warmUp / count)
      const stops = await interleaved(Math.ceil(rounds / 3), [
        timed("bare layers", layers(count, depth, stopTime), "stop"),
        timed("only the sleeps", sleeps(count, depth, stopTime), "stop"),
        timed(own, parts(count, depth, stopTime), "stop")
      ])
      tables.push(
        `Start of ${count} ${name}:\n\n${table(starts)}`,
        `Stop of them, ${stopTime} ms each:\n\n${table(stops)}`
      )
      const ratio = median(starts, own) / median(starts, "bare layers")
      const each = (median(starts, own) - median(starts, "bare layers")) / count * 1000
      const late = median(stops, own) - depth * stopTime
      const asleep = median(stops, "only the sleeps") - depth * stopTime
      verdicts.push(
        verdict(
          `start of ${count} ${name} ≤ 1.3 × bare layers`,
          `${times(ratio)}, ${each.toFixed(1)} µs more for each`,
          ratio <= 1.3
        ),
        verdict(
          `stop of ${count} ${name} ≤ the critical path + 10 ms`,
          `${ms(late)} late; the sleeps alone: ${ms(asleep)}`,
          late <= 10
        )
      )
    }
  }
  return {
    title: "Start and stop of many parts",
    text:
      `Layers that do nothing to start, as bare layers and as parts of a service, when ${warmUp} have been started before. A stop ends when the timers of the parts have fired one after the other, so the sleeps alone are late, too.`,
    tables,
    verdicts
  }
}
