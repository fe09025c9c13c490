/** A plan for people, and for programs. */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type { ServiceReason } from "../../lifecycle/ExitCode.ts"
import type { Address, Finding, ServiceOutline, StopStep } from "./planModel.ts"

const meaning: { readonly [Reason in ServiceReason]: string } = {
  ended: "ended by itself",
  failed: "failed while running, or could not bind",
  stopped: "ended in order after a signal",
  budgetPassed: "the stop budget passed, something was abandoned",
  finalizerFailed: "something failed while stopping",
  defect: "a defect",
  configInvalid: "configuration invalid",
  secrets: "secrets could not be had",
  loading: "a resource could not say what it needs",
  resourceInput: "the input of a resource is not valid",
  provisionRequest: "a provisioning request failed",
  resourceState: "a resource is in a bad state",
  initialisation: "initialisation failed",
  healthBind: "the health listener could not bind",
  healthFailed: "the health listener failed"
}

const codes = (outline: ServiceOutline): ReadonlyArray<readonly [code: number, what: string]> => {
  const rows: Array<readonly [number, string]> = []
  let reason: ServiceReason
  for (reason in meaning) rows.push([outline.exitCodes[reason], meaning[reason]])
  return rows.toSorted(([a], [b]) => a - b)
}

const at = ({ ip, port }: Address): string =>
  `${ip.includes(":") ? `[${ip}]` : ip}:${port === 0 ? "any free port" : String(port)}`

const section = (title: string, lines: ReadonlyArray<string>): ReadonlyArray<string> =>
  lines.length === 0 ? [] : ["", title, ...lines.map((line) => `  ${line}`)]

const numbered = <A>(
  groups: ReadonlyArray<ReadonlyArray<A>>,
  show: (one: A) => string
): ReadonlyArray<string> => groups.map((group, index) => `${index + 1}. ${group.map(show).join(", ")}`)

export const format = (outline: ServiceOutline, findings: ReadonlyArray<Finding>): string => {
  const parts = new Map(outline.parts.map((part) => [part.name, part]))
  const after = (name: string): string => {
    const before = parts.get(name)?.dependsOn ?? []
    return before.length === 0 ? name : `${name} (after ${before.join(", ")})`
  }
  const within = (one: StopStep["of"][number]): string =>
    `${one.name} (${Duration.format(Duration.millis(Math.floor(Duration.toMillis(one.within))))})`
  const { drainDelay, maxExtension, stopBudget } = outline
  const width = Math.max(0, ...outline.resources.map(({ name }) => name.length))
  return [
    `${outline.name} ${outline.version}, ${outline.environment}`,
    `listens on ${at(outline.listen)}, answers ${
      Option.match(outline.health, { onNone: () => "no probes", onSome: (address) => `probes on ${at(address)}` })
    }`,
    ...section(
      "Resources",
      outline.resources.map(({ kind, name, type }) =>
        `${name.padEnd(width)}  ${type}${kind === "custom" ? ", custom" : ""}`
      )
    ),
    ...section("Start", numbered(outline.startOrder, after)),
    ...section(
      `Stop, within ${Duration.format(stopBudget)}` +
        (Duration.isPositive(maxExtension) ? `, ${Duration.format(maxExtension)} more when asked for` : ""),
      [
        ...(Duration.isPositive(drainDelay)
          ? [`0. not ready, requests are still served for ${Duration.format(drainDelay)}`]
          : []),
        ...numbered(outline.stopSteps.map((step) => step.of), within),
        "(How long each is waited for when all before it hang: what takes less leaves the rest to those after it.)"
      ]
    ),
    ...section("Exit codes", [
      ...codes(outline).map(([code, what]) => `${String(code).padStart(3)}  ${what}`),
      "128 + n  a second signal n cut the stop short"
    ]),
    ...section("Findings", findings.map(({ severity, what }) => `${severity}: ${what}`))
  ].join("\n")
}

export const toJson = (outline: ServiceOutline, findings: ReadonlyArray<Finding>): string => {
  const { drainDelay, health, maxExtension, parts, startLimit, startWithin, stopBudget, stopSteps, ...rest } = outline
  return JSON.stringify(
    {
      ...rest,
      health: Option.getOrNull(health),
      parts: parts.map(({ dependsOn, name, stopWeight, stopWithin }) => ({
        name,
        dependsOn,
        stopWeight,
        stopWithinMillis: Option.getOrNull(Option.map(stopWithin, Duration.toMillis))
      })),
      stopSteps: stopSteps.map(({ kind, of }) => ({
        kind,
        of: of.map(({ name, within }) => ({ name, withinMillis: Math.floor(Duration.toMillis(within)) }))
      })),
      startWithinMillis: Duration.toMillis(startWithin),
      startLimitMillis: Duration.toMillis(startLimit),
      stopBudgetMillis: Duration.toMillis(stopBudget),
      drainDelayMillis: Duration.toMillis(drainDelay),
      maxExtensionMillis: Duration.toMillis(maxExtension),
      findings
    },
    null,
    2
  )
}
