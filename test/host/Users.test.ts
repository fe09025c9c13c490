import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Users } from "../../src/host/index.ts"
import { order } from "../../src/host/internal/slots.ts"

const ownerOf = (index: number) => ({ id: `m-${index}`, token: index.toString(16).padStart(16, "0") })

const claimOf = (directory: string, index: number) => ({
  owner: { ...ownerOf(index), bootId: "this" },
  data: { directory }
})

const inDirectory = <A, E>(test: (directory: string) => Effect.Effect<A, E, FileSystem.FileSystem>) =>
  FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped()).pipe(
    Effect.flatMap(test),
    Effect.scoped,
    Effect.provide(NodeServices.layer)
  )

const open = (options: Users.Options) => Effect.provide(Users.Users, Layer.fresh(Users.layer(options)))

describe("Users", () => {
  it.effect("no two machines have the same, by whichever supervisor they are", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const all = yield* Effect.all([1, 2, 3].map(() => open({ directory, first: 300_000, count: 60 })))
        const taken = yield* Effect.forEach(
          Array.from({ length: 60 }, (_, index) => index),
          (index) => all[index % 3]?.take(ownerOf(index)) ?? Effect.die("unreachable"),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          taken.toSorted((a, b) => a - b),
          Array.from({ length: 60 }, (_, index) => 300_000 + index)
        )
        const [users] = all
        const error = yield* Effect.flip(users?.take(ownerOf(60)) ?? Effect.die("unreachable"))
        assert.strictEqual(
          error.message,
          `all 60 users from 300000 on in ${directory} are taken: ` +
            "end machines, recover those of dead supervisors, or give a larger range"
        )
      })
    ))

  it.effect("what was given back is the owner's alone, and comes again after all others", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const users = yield* open({ directory, first: 300_000, count: 3 })
        const first = yield* users.take(ownerOf(1))
        const second = yield* users.take(ownerOf(2))
        const reclaim = (dryRun: boolean) =>
          Users.kind.reclaim([claimOf(directory, 1), claimOf(directory, 9)], { dryRun })
        for (const dryRun of [true, false]) {
          assert.deepStrictEqual((yield* reclaim(dryRun)).map(({ _tag }) => _tag), ["Released", "Absent"])
        }
        assert.deepStrictEqual((yield* reclaim(false)).map(({ _tag }) => _tag), ["Absent", "Absent"])
        const third = yield* users.take(ownerOf(3))
        assert.strictEqual(new Set([first, second, third]).size, 3)
        assert.strictEqual(yield* users.take(ownerOf(4)), first)
        assert.strictEqual((yield* Effect.flip(users.take(ownerOf(5)))).reason._tag, "Exhausted")
      })
    ))

  it.effect("ranges that cannot be are refused before anything is made", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const cases: ReadonlyArray<readonly [Partial<Users.Options>, ReadonlyArray<string>]> = [
          [{ first: 0 }, ["first"]],
          [{ first: 65_534 }, ["first"]],
          [{ first: 2 ** 32 - 1, count: 0 }, ["first", "count"]],
          [{ first: 2 ** 32 - 2, count: 2 }, ["count"]],
          [{ first: 1.5e6 + 0.5 }, ["first"]],
          [{ count: Number.NaN }, ["count"]]
        ]
        for (const [options, fields] of cases) {
          const { reason } = yield* Effect.flip(open({ directory: `${directory}/none`, ...options }))
          assert.deepStrictEqual(
            reason._tag === "InvalidArgument" ? reason.faults.map(({ field }) => field) : [reason._tag],
            [...fields],
            JSON.stringify(options)
          )
        }
        assert.isFalse(yield* Effect.orDie(FileSystem.FileSystem.use((fs) => fs.exists(`${directory}/none`))))
        const users = yield* open({ directory })
        assert.strictEqual((yield* Effect.flip(users.take({ id: "../x", token: "" }))).reason._tag, "InvalidArgument")
      })
    ))

  const numbers = (minimum: number, maximum: number) =>
    Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum, maximum })))
  it.prop(
    "the free ones come in turn from wherever it begins",
    [numbers(1, 1000), numbers(1, 40), numbers(0, 2000)],
    ([first, count, next]) => {
      const all = order({ first, count, next, taken: new Set() })
      assert.deepStrictEqual(all.toSorted((a, b) => a - b), Array.from({ length: count }, (_, index) => first + index))
      if (next >= first && next < first + count) assert.strictEqual(all[0], next)
      assert.deepStrictEqual(order({ first, count, next, taken: new Set(all.slice(1).map(String)) }), all.slice(0, 1))
    }
  )
})
