import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Kept from "../../src/firecracker/internal/kept.ts"

const name = Schema.NonEmptyString
/** No JSON tells -0 from 0. */
const number = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4_294_967_295 }))

describe("what is written down of a machine that is kept", () => {
  it.prop("is read as it was", {
    id: name,
    version: Schema.Struct({ major: number, minor: number, patch: number }),
    pci: Schema.Boolean,
    channels: Schema.Array(Schema.Tuple([name, number])),
    boots: Schema.Array(Schema.Struct({ name, path: name })),
    noCtrlAltDel: Schema.Array(Schema.String),
    restartIsOff: Schema.Boolean,
    metrics: Schema.Boolean,
    tracks: Schema.Boolean,
    platform: Schema.Record(Schema.String, Schema.String)
  }, ({ boots, channels, id, metrics, noCtrlAltDel, pci, platform, restartIsOff, tracks, version }) => {
    // What is generated has no prototypes.
    const lasting: Kept.Lasting = {
      id,
      target: { version, architecture: "aarch64", pci },
      channels: new Map(channels),
      boots,
      facts: { noCtrlAltDel, restartIsOff },
      metrics,
      tracks,
      platform
    }
    const { format: _, ...read } = { format: 1, ...Kept.read(Kept.write(lasting)) }
    assert.deepStrictEqual(read, lasting)
  })

  it.each([undefined, "", "{}", "null", `{"format":1}`, "\0"])("is nothing where it is %o", (text) => {
    assert.isUndefined(Kept.read(text))
  })

  it("is nothing to another version", () => {
    const text = Kept.write({
      id: "a",
      target: { version: { major: 1, minor: 16, patch: 1 }, architecture: "x86_64", pci: false },
      channels: new Map([["agent", 1024]]),
      boots: [],
      facts: { noCtrlAltDel: [], restartIsOff: true },
      metrics: false,
      tracks: false,
      platform: {}
    })
    assert.strictEqual(Kept.read(text)?.channels.get("agent"), 1024)
    assert.isUndefined(Kept.read(text.replace(`"format":1`, `"format":2`)))
    // One that was launched before there was a word of it.
    assert.isFalse(Kept.read(text.replace(`"tracks":false,`, ""))?.tracks)
  })
})
