/** The services that are compared, with what each can be told and says of itself. */
import type * as LifecycleProbe from "../../src/testing/LifecycleProbe.ts"

/** In milliseconds, the same for all: from the signal to the end, and the part of it in which only readiness changes. */
export interface Times {
  readonly budget: number
  readonly drainDelay: number
}

const endpoints: LifecycleProbe.Subject["endpoints"] = {
  fast: "/fast",
  slow: (millis) => `/slow?ms=${millis}`,
  hang: "/hang",
  block: "/block",
  fail: "/fail",
  websocket: "/websocket"
}

const subject = (
  name: string,
  file: string,
  { drains = false, env = {}, ...rest }: Pick<LifecycleProbe.Subject, "probes" | "expect"> & {
    /** Has a drain delay. */
    readonly drains?: boolean
    /** More environment. */
    readonly env?: Readonly<Record<string, string>>
  } = {}
) =>
({ budget, drainDelay }: Times): LifecycleProbe.Subject => ({
  name,
  command: process.execPath,
  args: [new URL(file, import.meta.url).pathname],
  env: ({ probes, service }) => ({
    PORT: String(service),
    PROBES_PORT: String(probes),
    STOP_BUDGET: String(budget),
    DRAIN_DELAY: String(drainDelay),
    SERVICE_RUNTIME_PORT: String(service),
    SERVICE_HEALTHZ_PORT: String(probes),
    SERVICE_STOP_BUDGET: `${budget}ms`,
    SERVICE_DRAIN_DELAY: `${drainDelay}ms`,
    ...env
  }),
  endpoints,
  budget,
  drainDelay: drains ? drainDelay : 0,
  slowStart: (millis) => ({ START_DELAY: String(millis) }),
  ...rest
})

export const raw = subject("node:http", "raw.ts", { expect: { stopped: "SIGTERM" } })
export const bare = subject("runMain + Layer.launch", "effect.ts", { expect: { stopped: 130 } })
export const terminus = subject("terminus", "terminus.ts", {
  drains: true,
  probes: { ready: "/readyz", live: "/livez", on: "service" }
})
export const lightship = subject("lightship", "lightship.ts", {
  drains: true,
  probes: { ready: "/ready", live: "/live", startup: "/health" }
})
export const closeWithGrace = subject("close-with-grace", "close-with-grace.ts")

export const ours = subject("this library", "ours.ts", {
  drains: true,
  env: { CHILD: "1" },
  probes: { ready: "/readyz", live: "/livez", startup: "/startupz" },
  expect: { stopped: 10, forced: 11, portTaken: 1, probePortTaken: 201, failed: 1 }
})

export const subjects = (times: Times): ReadonlyArray<LifecycleProbe.Subject> =>
  [raw, bare, terminus, lightship, closeWithGrace, ours].map((make) => make(times))
