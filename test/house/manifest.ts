import * as Schema from "effect/Schema"
import { readFileSync } from "node:fs"
import { join } from "node:path"

const Words = Schema.Record(Schema.String, Schema.String)

const Manifest = Schema.Struct({
  version: Schema.String,
  exports: Schema.optionalKey(Schema.Unknown),
  bin: Schema.optionalKey(Schema.Unknown),
  engines: Schema.optionalKey(Words),
  scripts: Schema.optionalKey(Words),
  dependencies: Schema.optionalKey(Words),
  peerDependencies: Schema.optionalKey(Words),
  peerDependenciesMeta: Schema.optionalKey(Schema.Unknown)
})

/** What these tests read of a package.json. */
export const readManifest = (folder: string): typeof Manifest.Type =>
  Schema.decodeUnknownSync(Manifest)(JSON.parse(readFileSync(join(folder, "package.json"), "utf8")))

export const isRecord = (u: unknown): u is Readonly<Record<string, unknown>> => typeof u === "object" && u !== null
