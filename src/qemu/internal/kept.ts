import * as Schema from "effect/Schema"
import type { LaunchPlan } from "../LaunchPlan.ts"
import type { Setup } from "../QemuHost.ts"
import { Version } from "../QmpSchema.ts"

const Kept = Schema.Struct({
  format: Schema.Literal(1),
  id: Schema.String,
  qmp: Schema.Int,
  channels: Schema.Array(Schema.Tuple([Schema.String, Schema.Int])),
  files: Schema.Array(Schema.Struct({
    field: Schema.Literals(["state", "memory", "kernel", "initramfs"]),
    path: Schema.String
  })),
  setup: Schema.Struct({
    binary: Schema.String,
    version: Version,
    digest: Schema.optionalKey(Schema.String),
    architecture: Schema.Literals(["x86_64", "aarch64"]),
    accelerator: Schema.Literals(["kvm", "tcg"]),
    because: Schema.String,
    cpu: Schema.String,
    user: Schema.TaggedUnion({
      Own: { why: Schema.String },
      Unprivileged: { uid: Schema.Int, gid: Schema.Int, groups: Schema.Array(Schema.Int) }
    }),
    path: Schema.String
  })
})

const Note = Schema.fromJsonString(Kept)

/** What of a plan has to be known of its machine later. */
export type Lasting = Pick<LaunchPlan, "fds" | "files">

/** What those have to know who attach to a machine: how it was started, which need not be how they would start it. */
export const write = (id: string, { fds, files }: Lasting, setup: Setup): string =>
  Schema.encodeSync(Note)({ format: 1, id, qmp: fds.qmp, channels: [...fds.channels], files, setup })

export const read = (
  note: string
): { readonly id: string; readonly plan: Lasting; readonly setup: Setup } | undefined => {
  const kept = Schema.decodeOption(Note)(note)
  if (kept._tag === "None") return undefined
  const { channels, files, id, qmp, setup } = kept.value
  return { id, plan: { fds: { qmp, channels: new Map(channels) }, files }, setup }
}
