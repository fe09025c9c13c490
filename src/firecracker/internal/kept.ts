/**
 * What is written down beside a machine that is kept: what those have to know who attach to it. It is there once the machine is
 * all that it was to be, so one whose launch was broken off has none.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { MachineSpec } from "../../microvm/MachineSpec.ts"
import { Platform } from "../../microvm/Snapshot.ts"
import type { Facts } from "../BootArgs.ts"
import type { Target } from "../Capabilities.ts"
import type { Setup } from "../FirecrackerHost.ts"
import type { LaunchPlan } from "../LaunchPlan.ts"

/** Where a machine is in the directory that it is kept in, beside what its holder has there. */
export const directoryIn = (directory: string): string => `${directory}/machine`

/** In the directory of the machine. */
export const fileName = "kept.json"

const Text = Schema.fromJsonString(Schema.Struct({
  format: Schema.Literal(1),
  id: Schema.String,
  target: Schema.Struct({
    version: Schema.Struct({ major: Schema.Int, minor: Schema.Int, patch: Schema.Int }),
    architecture: Schema.Literals(["x86_64", "aarch64"]),
    pci: Schema.Boolean
  }),
  channels: Schema.Array(Schema.Tuple([Schema.String, Schema.Int])),
  boots: Schema.Array(Schema.Struct({ name: Schema.String, path: Schema.String })),
  facts: Schema.Struct({ noCtrlAltDel: Schema.Array(Schema.String), restartIsOff: Schema.Boolean }),
  metrics: Schema.Boolean,
  tracks: Schema.Boolean.pipe(Schema.withDecodingDefaultKey(Effect.succeed(false))),
  platform: Platform
}))

/** What of a machine has to be known for as long as there is one. */
export interface Lasting {
  readonly id: string
  readonly target: Target & { readonly pci: boolean }
  /** The vsock port of each channel. */
  readonly channels: ReadonlyMap<string, number>
  /** The files that it boots, by their names in a snapshot. */
  readonly boots: ReadonlyArray<{ readonly name: string; readonly path: string }>
  readonly facts: Pick<Facts, "noCtrlAltDel" | "restartIsOff">
  readonly metrics: boolean
  /** Is it known which pages it writes? */
  readonly tracks: boolean
  /** What a snapshot of it counts on. */
  readonly platform: Platform
}

export const lastingOf = (
  { id }: MachineSpec,
  { argv, channels, config, entries, facts, tracks }: LaunchPlan,
  { architecture, version }: Setup,
  platform: Platform
): Lasting => ({
  id,
  target: { version, architecture, pci: argv.includes("--enable-pci") },
  channels,
  boots: entries.filter(({ field }) => field === "kernel" || field === "initramfs"),
  facts,
  metrics: config.metrics !== undefined,
  tracks,
  platform
})

export const write = ({ channels, ...lasting }: Lasting): string =>
  Schema.encodeSync(Text)({ format: 1, ...lasting, channels: [...channels] })

const decode = Schema.decodeUnknownOption(Text)

/** Nothing when it is none, or one of another version. */
export const read = (text: string | undefined): Lasting | undefined => {
  const kept = decode(text)
  return kept._tag === "None" ? undefined : { ...kept.value, channels: new Map(kept.value.channels) }
}
