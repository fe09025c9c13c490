/**
 * Snapshots as people name and see them.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as MicroVmError from "../microvm/MicroVmError.ts"
import { SnapshotStore, type Stored } from "../microvm/SnapshotStore.ts"
import { ago, table } from "./internal/tables.ts"

/** An id may be cut short, but not so much that it could be meant as something else. */
const isShortId = (text: string): boolean => /^[0-9a-f]{8,63}$/.test(text)

/**
 * The name or id that is meant: an id may be given by its first eight digits or more. Fails with `InvalidSpec` when more than
 * one id begins so. What is not there is left to whoever looks for it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const resolve: (
  nameOrId: string
) => Effect.Effect<string, MicroVmError.MicroVmError, SnapshotStore> = Effect.fnUntraced(function*(nameOrId: string) {
  if (!isShortId(nameOrId)) return nameOrId
  const { list } = yield* SnapshotStore
  const stored = yield* list
  if (stored.some(({ names }) => names.includes(nameOrId))) return nameOrId
  const [found, ...others] = stored.filter(({ id }) => id.startsWith(nameOrId))
  if (others.length > 0) {
    const remedy = `give more of it, as ${others.length + 1} ids begin so`
    const faults = [{ field: "snapshot", value: nameOrId, remedy }]
    return yield* MicroVmError.fail(new MicroVmError.InvalidSpec({ faults }))
  }
  return found?.id ?? nameOrId
})

/**
 * A line of `microvm snapshot ls`, as `--json` prints it. What only the manifest knows is absent when that cannot be read.
 * Times are in ISO 8601, UTC.
 *
 * @category models
 * @since 0.1.0
 */
export const Listed = Schema.Struct({
  id: Schema.String,
  names: Schema.Array(Schema.String),
  kind: Schema.optionalKey(Schema.Literals(["golden", "saved"])),
  madeBy: Schema.optionalKey(Schema.String),
  image: Schema.optionalKey(Schema.String),
  vcpus: Schema.optionalKey(Schema.Int),
  memoryMib: Schema.optionalKey(Schema.Int),
  /** What it takes on the disk. */
  bytes: Schema.Int,
  createdAt: Schema.optionalKey(Schema.String),
  lastUsedAt: Schema.String
})

/**
 * @category models
 * @since 0.1.0
 */
export type Listed = typeof Listed.Type

/**
 * What is listed of a stored snapshot.
 *
 * @category conversions
 * @since 0.1.0
 */
export const toListed = ({ bytes, id, lastUsed, manifest, names }: Stored): Listed => {
  const common = { id, names, bytes, lastUsedAt: new Date(lastUsed).toISOString() }
  if (manifest === undefined) return common
  const { createdAt, kind, labels, madeBy, spec: { memoryMib, vcpus } } = manifest
  const image = labels["image"]
  return { ...common, ...(image === undefined ? {} : { image }), kind, madeBy, vcpus, memoryMib, createdAt }
}

/**
 * A snapshot in a few words: its name, or else the first digits of its id.
 *
 * @category conversions
 * @since 0.1.0
 */
export const label = ({ id, names }: Pick<Stored, "id" | "names">): string => names[0] ?? id.slice(0, 12)

/**
 * The table of `microvm snapshot ls`.
 *
 * @category conversions
 * @since 0.1.0
 */
export const format = (listed: ReadonlyArray<Listed>, now: number): string => {
  const rows = listed.map((one) => [
    one.names.join(","),
    one.id.slice(0, 12),
    one.kind ?? "unreadable",
    one.madeBy ?? "",
    one.image ?? "",
    `${Math.ceil(one.bytes / (1 << 20))} MiB`,
    one.memoryMib === undefined ? "" : `${one.memoryMib} MiB`,
    one.createdAt === undefined ? "" : ago(now, Date.parse(one.createdAt)),
    ago(now, Date.parse(one.lastUsedAt))
  ])
  return table(["NAME", "ID", "KIND", "MADE BY", "IMAGE", "SIZE", "MEMORY", "AGE", "LAST USED"], rows)
}
