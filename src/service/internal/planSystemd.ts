/** A unit file, as systemd.service(5), systemd.exec(5) and systemd.syntax(7) want it. */
import * as Duration from "effect/Duration"
import type { ServiceOutline } from "./planModel.ts"

/** A value is one line, and `%` starts a specifier. */
const line = (text: string): string => text.replace(/\p{Cc}+/gu, " ").replaceAll("%", "%%")

/** A word in quotes; in a command line `$` would start a variable. */
const word = (text: string): string => `"${line(text).replaceAll("\\", "\\\\").replaceAll("\"", "\\\"")}"`

const commandWord = (text: string): string => /^[\w@/.,:=+-]+$/.test(text) ? text : word(text).replaceAll("$", "$$$$")

export interface UnitOptions {
  readonly command: ReadonlyArray<string>
  readonly stopSeconds: number
}

export const unit = (outline: ServiceOutline, { command, stopSeconds }: UnitOptions): string => {
  const { exitCodes, name, prefix, startLimit, version } = outline
  const startSeconds = Math.ceil(Duration.toSeconds(startLimit))
  return `[Unit]
Description=${line(name)} ${line(version)}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
# What tells systemd that the service is ready may be a child process of it.
NotifyAccess=all
ExecStart=${command.map(commandWord).join(" ")}
Environment=${word(`${prefix}_ENV=production`)}
# ${prefix}_API, ${prefix}_PROJECT_ID and ${prefix}_API_KEY: readable for root only.
EnvironmentFile=-/etc/${line(name)}.env
# STATE_DIRECTORY tells the service where it is.
StateDirectory=${line(name)}
DynamicUser=yes

TimeoutStartSec=${startSeconds}
# The stop budget, and time to say what hangs. The service asks for more when it needs more.
TimeoutStopSec=${stopSeconds}
# The service ends its own children in order; what is left when the time is up is killed.
KillMode=mixed
WatchdogSec=30

# ${exitCodes.stopped}: ended in order after a signal.
SuccessExitStatus=${exitCodes.stopped}
Restart=on-failure
RestartSec=1
# Invalid configuration does not get better by another try.
RestartPreventExitStatus=${exitCodes.configInvalid} ${exitCodes.resourceInput}

[Install]
WantedBy=multi-user.target
`
}
