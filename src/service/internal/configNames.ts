/** The names of the variables of a service: what they are, what they are for, and how they are misspelt. */

/** The variables of a service, by what they say. */
export const variables = (prefix: string) => ({
  environment: `${prefix}_ENV`,
  projectId: `${prefix}_PROJECT_ID`,
  projectName: `${prefix}_PROJECT_NAME`,
  ip: `${prefix}_RUNTIME_IP`,
  port: `${prefix}_RUNTIME_PORT`,
  healthIp: `${prefix}_HEALTHZ_IP`,
  healthPort: `${prefix}_HEALTHZ_PORT`,
  api: `${prefix}_API`,
  apiKey: `${prefix}_API_KEY`,
  sidecar: prefix === "SHUTTLE" ? "SHUTTLE" : `${prefix}_SIDECAR`,
  stateDirectory: `${prefix}_STATE_DIR`,
  stopBudget: `${prefix}_STOP_BUDGET`,
  drainDelay: `${prefix}_DRAIN_DELAY`,
  logFormat: `${prefix}_LOG_FORMAT`,
  logLevel: `${prefix}_LOG_LEVEL`
})

export const describe = (prefix: string): ReadonlyArray<readonly [name: string, what: string]> => {
  const names = variables(prefix)
  return [
    [names.environment, "local (default) or production"],
    [names.projectId, "id of the project at the API"],
    [names.projectName, "its name (default: that of the service)"],
    [names.ip, "address to listen on (default 127.0.0.1; 0.0.0.0 in production)"],
    [names.port, "port to listen on, then PORT (default 8000)"],
    [names.healthIp, "address for probes (default 0.0.0.0)"],
    [names.healthPort, "port for probes (default: none)"],
    [names.api, "URL of the API that provisions resources (default: this machine)"],
    [names.apiKey, "key for it"],
    [
      names.sidecar,
      prefix === "SHUTTLE"
        ? "if set, the sidecar at the API is told to stop"
        : "URL of the sidecar, which is told to stop"
    ],
    [names.stateDirectory, "directory that outlives the service (default .service/<name>)"],
    [names.stopBudget, "from the signal to the exit, as in 25s"],
    [names.drainDelay, "of it, served while not ready, as in 5s"],
    [names.logFormat, "pretty or json (default: pretty on a terminal)"],
    [names.logLevel, "Trace, Debug, Info (default), Warn, Error"],
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "URL of an OpenTelemetry collector (default: none)"]
  ]
}

/** How many letters must be put in, left out or changed to make `b` of `a` (Levenshtein). */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1]
    for (let j = 0; j < b.length; j++) {
      const [diagonal = 0, above = 0] = row.slice(j, j + 2)
      next.push(Math.min(diagonal + (a[i] === b[j] ? 0 : 1), above + 1, (next[j] ?? 0) + 1))
    }
    row = next
  }
  return row.at(-1) ?? 0
}

/** A name longer than all of ours is none of them. */
const longest = 64

export const nearMisses = (
  present: ReadonlyArray<string>,
  prefix: string,
  known: ReadonlyArray<string>
): Array<string> =>
  present
    .filter((name) => name.startsWith(`${prefix}_`) && name.length <= longest && !known.includes(name))
    .flatMap((name) => {
      const meant = known.find((one) => distance(name, one) <= 2)
      return meant === undefined ? [] : [`${name} is not known: did you mean ${meant}?`]
    })
