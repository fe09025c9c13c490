import { describe, expect, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Yaml from "effect/encoding/Yaml"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as ExitCode from "../../src/lifecycle/ExitCode.ts"
import * as ServiceConfig from "../../src/service/ServiceConfig.ts"
import * as ServicePlan from "../../src/service/ServicePlan.ts"

const part = (name: string, dependsOn: ReadonlyArray<ServicePlan.PlannedPart> = []): ServicePlan.PlannedPart => ({
  name,
  dependsOn,
  startWithin: undefined,
  stopWithin: undefined,
  stopWeight: 1
})

const service: ServicePlan.PlannedService = {
  name: "notes",
  version: "1.0.0",
  prefix: "SERVICE",
  resources: [],
  parts: [],
  startWithin: Duration.minutes(10),
  maxExtension: Duration.zero,
  exitCodes: ExitCode.service
}

const production = {
  SERVICE_ENV: "production",
  SERVICE_API: "https://api.example",
  SERVICE_PROJECT_ID: "p",
  SERVICE_HEALTHZ_PORT: "8001",
  SERVICE_DRAIN_DELAY: "5s"
}

const make = (
  overrides: Partial<ServicePlan.PlannedService> = {},
  env: Readonly<Record<string, string>> = production
): ServicePlan.ServiceOutline =>
  ServicePlan.make(
    { ...service, ...overrides },
    Result.getOrThrow(ServiceConfig.parse({ env, argv: [], defaults: service }))
  )

const told = (plan: ServicePlan.ServiceOutline, options?: ServicePlan.CheckOptions) =>
  ServicePlan.check(plan, options).map(({ severity, what }) => `${severity}: ${what}`)

describe("order", () => {
  const pool = part("pool")
  const cache = part("cache")
  const store = part("store", [pool, cache])
  const api = part("api", [store, pool])
  const sweeper = part("sweeper", [pool])

  it("starts what others depend on first, stops it last", () => {
    const { parts, startOrder, stopOrder } = make({ parts: [api, sweeper] })
    expect(parts.map(({ name }) => name).toSorted()).toEqual(["api", "cache", "pool", "store", "sweeper"])
    expect(startOrder).toEqual([["pool", "cache"], ["store", "sweeper"], ["api"]])
    expect(stopOrder).toEqual([["api", "sweeper"], ["store"], ["pool", "cache"]])
  })

  it("a diamond of many levels is walked once", () => {
    let level = [part("0a"), part("0b")]
    for (let depth = 1; depth < 200; depth++) level = [part(`${depth}a`, level), part(`${depth}b`, level)]
    const { startOrder, stopOrder } = make({ parts: level })
    expect(startOrder.length).toBe(200)
    expect(stopOrder).toEqual(startOrder.toReversed())
  })

  it.prop(
    "every part is in both orders once, after what it waits for",
    [Schema.Array(Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 30 }))))],
    ([graph]) => {
      const parts: Array<ServicePlan.PlannedPart> = []
      for (const [index, edges] of graph.entries()) {
        parts.push(part(String(index), edges.flatMap((to) => parts.slice(to, to + 1))))
      }
      const { startOrder, stopOrder } = make({ parts })
      const at = (order: ReadonlyArray<ReadonlyArray<string>>, name: string) =>
        order.findIndex((names) => names.includes(name))
      for (const order of [startOrder, stopOrder]) {
        expect(order.flat().toSorted()).toEqual(parts.map(({ name }) => name).toSorted())
      }
      for (const { dependsOn, name } of parts) {
        for (const to of dependsOn) {
          expect(at(startOrder, to.name)).toBeLessThan(at(startOrder, name))
          expect(at(stopOrder, to.name)).toBeGreaterThan(at(stopOrder, name))
        }
      }
    }
  )
})

describe("check", () => {
  it("a plan that fits is silent", () => {
    expect(told(make())).toEqual([])
    expect(told(make({}, {}))).toEqual([])
  })

  it("holds the budget against what the platforms wait", () => {
    expect(told(make({}, { ...production, SERVICE_STOP_BUDGET: "28s" }))).toEqual([])
    expect(told(make({}, { ...production, SERVICE_STOP_BUDGET: "28001ms" }))).toEqual([
      "warning: Kubernetes kills after 30s, the stop may take 31s: set terminationGracePeriodSeconds to 31, or lower " +
      "SERVICE_STOP_BUDGET"
    ])
    expect(told(make({}, { ...production, SERVICE_STOP_BUDGET: "2m" })).length).toBe(2)
    // systemd follows an extension, Kubernetes does not.
    const extended = make({ maxExtension: Duration.minutes(2) })
    expect(told(extended).length).toBe(1)
    expect(told(extended, { platforms: [ServicePlan.systemd] })).toEqual([])
    expect(ServicePlan.neededGrace(extended, ServicePlan.systemd)).toEqual(Duration.seconds(27))
    expect(ServicePlan.neededGrace(extended, ServicePlan.kubernetes)).toEqual(Duration.seconds(147))
  })

  it("holds the drain delay against the probes, in production", () => {
    const short = make({}, { ...production, SERVICE_DRAIN_DELAY: "3s" })
    expect(told(short)).toEqual([
      "warning: the drain delay of 3s is less than two probes take, so requests may still come when the service does not " +
      "listen any more: set SERVICE_DRAIN_DELAY to 4s or more"
    ])
    expect(told(short, { probePeriod: "1 second" })).toEqual([])
    expect(told(make(), { probePeriod: "10 seconds" })[0]).toContain("set SERVICE_DRAIN_DELAY to 20s or more")
  })

  it("tells all faults, before the warnings", () => {
    const { SERVICE_HEALTHZ_PORT: _, ...unprobed } = production
    const twin = part("api")
    const plan = make(
      {
        name: "my notes",
        prefix: "my-",
        resources: [{ name: "db", type: "t", kind: "custom" }, { name: "db", type: "u", kind: "custom" }],
        parts: [part("api"), twin, { ...part("slow"), stopWithin: "1 minute" }],
        exitCodes: { ...ExitCode.service, failed: 10 }
      },
      { ...unprobed, SERVICE_STOP_BUDGET: "6s" }
    )
    expect(told(plan)).toEqual([
      "fault: the service is called \"my notes\": use 1 to 63 letters, digits and \"-\", no \"-\" at the ends",
      "fault: the prefix is \"my-\": use capital letters, digits and \"_\", a letter first",
      "fault: two resources are called \"db\": rename one",
      "fault: two parts are called \"api\": rename one",
      "fault: exit codes: stopped: code 10 is already that of failed: choose another",
      "warning: part slow may stop for longer than the whole service: its limit has no effect",
      "warning: probes are not answered: set my-_HEALTHZ_PORT"
    ])
  })

  it("one port for the probes and for what may not listen at all", () => {
    const both = { SERVICE_HEALTHZ_PORT: "9000", PORT: "9000" }
    expect(told(make({}, both))).toEqual([
      "warning: port 9000 is for the probes, so the service cannot listen on it: change SERVICE_HEALTHZ_PORT or " +
      "SERVICE_RUNTIME_PORT if it does"
    ])
    expect(told(make({}, { SERVICE_HEALTHZ_PORT: "0", PORT: "0" }))).toEqual([])
  })
})

const full = make({
  resources: [
    { name: "db", type: "database::shared::postgres", kind: "provisioned" },
    { name: "storage", type: "storage", kind: "custom" }
  ],
  parts: [{ ...part("api", [part("pool")]), stopWithin: "10 seconds" }],
  maxExtension: Duration.seconds(3)
}, { ...production, SERVICE_RUNTIME_IP: "::1", SERVICE_RUNTIME_PORT: "0" })

describe("format", () => {
  it("is a page for people", () => {
    expect(ServicePlan.format(full)).toBe(
      `notes 1.0.0, production
listens on [::1]:any free port, answers probes on 0.0.0.0:8001

Resources
  db       database::shared::postgres
  storage  storage, custom

Start
  1. pool
  2. api (after pool)

Stop, within 25s, 3s more when asked for
  0. not ready, requests are still served for 5s
  1. api (7s 500ms)
  2. pool (7s 500ms)
  3. db (4s)
  4. health listener (500ms), provisioner (500ms)
  (How long each is waited for when all before it hang: what takes less leaves the rest to those after it.)

Exit codes
    0  ended by itself
    1  failed while running, or could not bind
   10  ended in order after a signal
   11  the stop budget passed, something was abandoned
   12  something failed while stopping
   70  a defect
   78  configuration invalid
  101  secrets could not be had
  111  a resource could not say what it needs
  121  the input of a resource is not valid
  131  a provisioning request failed
  132  a resource is in a bad state
  151  initialisation failed
  201  the health listener could not bind
  202  the health listener failed
  128 + n  a second signal n cut the stop short`
    )
  })

  it("ends with what check finds", () => {
    expect(ServicePlan.format(make({ name: "" }))).toMatch(/\n\nFindings\n {2}fault: the service is called "".*$/)
  })
})

describe("toJson", () => {
  it("has durations in milliseconds, and the findings", () => {
    expect(JSON.parse(ServicePlan.toJson(full))).toEqual({
      name: "notes",
      version: "1.0.0",
      prefix: "SERVICE",
      environment: "production",
      resources: full.resources,
      parts: [
        { name: "pool", dependsOn: [], stopWeight: 1, stopWithinMillis: null },
        { name: "api", dependsOn: ["pool"], stopWeight: 1, stopWithinMillis: 10_000 }
      ],
      startOrder: [["pool"], ["api"]],
      stopOrder: [["api"], ["pool"]],
      stopSteps: [
        { kind: "parts", of: [{ name: "api", withinMillis: 7500 }] },
        { kind: "parts", of: [{ name: "pool", withinMillis: 7500 }] },
        { kind: "resources", of: [{ name: "db", withinMillis: 4000 }] },
        {
          kind: "rest",
          of: [{ name: "health listener", withinMillis: 500 }, { name: "provisioner", withinMillis: 500 }]
        }
      ],
      startWithinMillis: 600_000,
      startLimitMillis: 1_890_000,
      stopBudgetMillis: 25_000,
      drainDelayMillis: 5000,
      maxExtensionMillis: 3000,
      exitCodes: ExitCode.service,
      listen: { ip: "::1", port: 0 },
      health: { ip: "0.0.0.0", port: 8001 },
      findings: []
    })
  })
})

const hostile = [process.execPath, "/opt/a b/\"quoted\" $HOME ${X} %n \\ 'x'.js", "--", "line\nbreak", ""]

describe("toSystemdUnit", () => {
  const settings = (text: string, name: string) =>
    text.split("\n").filter((line) => line.startsWith(`${name}=`)).map((line) => line.slice(name.length + 1))

  it("waits as long as a stop may take, and knows the exit codes", () => {
    const unit = ServicePlan.toSystemdUnit(make({ exitCodes: { ...ExitCode.service, stopped: 9, configInvalid: 79 } }))
    expect(settings(unit, "Type")).toEqual(["notify"])
    expect(settings(unit, "TimeoutStopSec")).toEqual(["27"])
    expect(settings(unit, "TimeoutStartSec")).toEqual(["690"])
    expect(settings(unit, "SuccessExitStatus")).toEqual(["9"])
    expect(settings(unit, "RestartPreventExitStatus")).toEqual(["79 121"])
    expect(settings(unit, "Environment")).toEqual(["\"SERVICE_ENV=production\""])
  })

  it("keeps each word of the command", () => {
    const unit = ServicePlan.toSystemdUnit(full, { command: hostile })
    expect(settings(unit, "ExecStart")).toEqual([
      `${process.execPath} "/opt/a b/\\"quoted\\" $$HOME $\${X} %%n \\\\ 'x'.js" -- "line break" ""`
    ])
  })

  const here = spawnSync("systemd-analyze", ["--version"], { timeout: 10_000 }).status === 0
  if (!here) console.log("systemd-analyze is not here: units are not verified by systemd itself")

  it.runIf(here).each([
    ["as it is", full, { command: [process.execPath, "/opt/notes/main.js"] }],
    ["with the default command", full, {}],
    ["with a hostile command", full, { command: hostile }],
    ["with a name that needs care", make({ version: "1%n\nExecStart=/bin/false" }), {}]
  ])("systemd accepts it, %s", (_, plan, options) => {
    const directory = mkdtempSync(join(tmpdir(), "unit-"))
    try {
      const file = join(directory, "notes.service")
      writeFileSync(file, ServicePlan.toSystemdUnit(plan, options))
      const { status, stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", file], {
        encoding: "utf8",
        timeout: 30_000
      })
      // The host's own units may be complained of.
      expect(stderr.split("\n").filter((line) => line.includes("notes.service"))).toEqual([])
      expect(status).toBe(0)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})

const Manifest = Schema.Struct({
  kind: Schema.Literal("Deployment"),
  metadata: Schema.Struct({ name: Schema.String }),
  spec: Schema.Struct({
    replicas: Schema.Int,
    template: Schema.Struct({
      spec: Schema.Struct({
        terminationGracePeriodSeconds: Schema.Int,
        enableServiceLinks: Schema.Boolean,
        containers: Schema.Tuple([Schema.Struct({
          image: Schema.String,
          ports: Schema.Array(Schema.Struct({ name: Schema.String, containerPort: Schema.Int })),
          env: Schema.Array(Schema.Struct({ name: Schema.String, value: Schema.String })),
          startupProbe: Schema.Struct({ failureThreshold: Schema.Int }),
          readinessProbe: Schema.Struct({
            periodSeconds: Schema.Int,
            httpGet: Schema.Struct({ path: Schema.String, port: Schema.String })
          }),
          livenessProbe: Schema.Struct({ httpGet: Schema.Struct({ path: Schema.String, port: Schema.String }) })
        })])
      })
    })
  })
})

describe("toKubernetes", () => {
  const read = (plan: ServicePlan.ServiceOutline, options?: ServicePlan.KubernetesOptions) => {
    const { metadata, spec } = Schema.decodeUnknownSync(Manifest)(Yaml.parse(ServicePlan.toKubernetes(plan, options)))
    const [container] = spec.template.spec.containers
    return {
      name: metadata.name,
      replicas: spec.replicas,
      grace: spec.template.spec.terminationGracePeriodSeconds,
      image: container.image,
      ports: Object.fromEntries(container.ports.map(({ containerPort, name }) => [name, containerPort])),
      env: Object.fromEntries(container.env.map(({ name, value }) => [name, value])),
      startup: container.startupProbe.failureThreshold,
      ready: container.readinessProbe,
      live: container.livenessProbe.httpGet
    }
  }

  it("has the probes, the ports, and a grace period as long as a stop may take", () => {
    expect(read(full)).toEqual({
      name: "notes",
      replicas: 2,
      grace: 30,
      image: "notes:1.0.0",
      ports: { main: 8000, health: 8001 },
      env: {
        SERVICE_ENV: "production",
        SERVICE_RUNTIME_IP: "0.0.0.0",
        SERVICE_RUNTIME_PORT: "8000",
        SERVICE_HEALTHZ_PORT: "8001",
        SERVICE_DRAIN_DELAY: "5s"
      },
      // Secrets, provisioning, and two groups of parts.
      startup: 90 + 3 * 600,
      ready: { periodSeconds: 2, httpGet: { path: "/readyz", port: "health" } },
      live: { path: "/livez", port: "health" }
    })
  })

  it.each<readonly [env: Readonly<Record<string, string>>, health: number, drain: string]>([
    [{}, 8081, "4s"],
    [{ PORT: "8081" }, 8082, "4s"],
    [{ PORT: "9000", SERVICE_HEALTHZ_PORT: "9000" }, 8081, "4s"],
    [{ SERVICE_DRAIN_DELAY: "4500ms" }, 8081, "4500ms"],
    // Never most of the budget.
    [{ SERVICE_STOP_BUDGET: "3s" }, 8081, "1500ms"]
  ])("says what the environment leaves open: %j", (env, health, drain) => {
    const { env: set, ports } = read(make({}, env))
    expect([ports["health"], set["SERVICE_HEALTHZ_PORT"], set["SERVICE_DRAIN_DELAY"]]).toEqual([
      health,
      String(health),
      drain
    ])
  })

  it("what it sets is a valid configuration that its own check accepts", () => {
    const { env } = read(make({}, {}))
    expect(told(make({}, { ...env, SERVICE_API: "https://a", SERVICE_PROJECT_ID: "p" }))).toEqual([])
  })

  it.prop("any name and version make a manifest that parses", [Schema.String, Schema.String], ([name, version]) => {
    const manifest = read(make({ name, version }))
    expect(manifest.name).toMatch(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/)
    expect(manifest.image).toBe(`${name.toLowerCase()}:${version}`)
  })
})

it("render prints each format", () => {
  expect(ServiceConfig.planFormats.map((format) => ServicePlan.render(full, format).split("\n")[0])).toEqual([
    "notes 1.0.0, production",
    "{",
    "[Unit]",
    "apiVersion: apps/v1"
  ])
  expect(ServiceConfig.planFormats.filter((format) => ServicePlan.render(full, format).endsWith("\n"))).toEqual([])
  expect(Option.isSome(full.health)).toBe(true)
})
