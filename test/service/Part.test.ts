import { describe, expect, expectTypeOf, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Fatal } from "../../src/service/Fatal.ts"
import * as Part from "../../src/service/Part.ts"
import * as Parts from "../../src/service/Parts.ts"
import type { ServiceEvents } from "../../src/service/Phase.ts"
import type { Provisioned } from "../../src/service/Resource.ts"
import type { ServiceError } from "../../src/service/ServiceError.ts"
import * as Task from "../../src/service/Task.ts"

class Sql extends Context.Service<Sql, string>()("test/Sql") {}
class Cache extends Context.Service<Cache, number>()("test/Cache") {}
class Mailer extends Context.Service<Mailer, boolean>()("test/Mailer") {}

const Database = Context.Service<Provisioned<"db">, string>("test/db")

const sql = Part.make("sql", Layer.effect(Sql, Effect.map(Database, (url) => `sql over ${url}`)))
const cache = Part.make("cache", Layer.succeed(Cache, 1))
const uses = Effect.gen(function*() {
  yield* Sql
  yield* Cache
  yield* Mailer
  yield* Part.PartControl
  yield* Effect.addFinalizer(() => Effect.void)
  return true
})

describe("Part", () => {
  it("takes what its dependencies provide from its requirements, and hands theirs on", () => {
    const both = Part.make("both", Layer.effectDiscard(uses), { dependsOn: [sql, cache] })
    expectTypeOf(sql).toEqualTypeOf<Part.Part<Sql, never, Provisioned<"db">>>()
    expectTypeOf(both).toEqualTypeOf<Part.Part<never, never, Mailer | Provisioned<"db">>>()
    const one = Part.make("one", Layer.effectDiscard(uses), { dependsOn: [cache] })
    expectTypeOf<Part.Services<typeof one>>().toEqualTypeOf<Mailer | Sql>()
    const none = Part.make("none", Layer.effectDiscard(uses))
    expectTypeOf<Part.Services<typeof none>>().toEqualTypeOf<Mailer | Sql | Cache>()
    expect(both.dependsOn).toEqual([sql, cache])
    expect(none.dependsOn).toEqual([])
  })

  it("does not provide what only a dependency of a dependency provides", () => {
    const api = Part.make("api", Layer.succeed(Mailer, true), { dependsOn: [sql] })
    const edge = Part.make("edge", Layer.effectDiscard(uses), { dependsOn: [api] })
    expectTypeOf<Part.Services<typeof edge>>().toEqualTypeOf<Sql | Cache | Provisioned<"db">>()
    expect(edge.name).toBe("edge")
  })

  it("keeps its types in a list, and is any part", () => {
    const started = Parts.start([sql, cache])
    expectTypeOf<Effect.Services<typeof started>>().toEqualTypeOf<Provisioned<"db">>()
    expectTypeOf<Effect.Success<typeof started>>().toEqualTypeOf<Parts.Started<Sql | Cache>>()
    expectTypeOf<Effect.Error<typeof started>>().toEqualTypeOf<ServiceError>()
    const list: ReadonlyArray<Part.Any> = [sql, cache]
    expect(list.map((part) => part.name)).toEqual(["sql", "cache"])
  })

  it("of a task", () => {
    const task = Task.make("task", Effect.andThen(Effect.addFinalizer(() => Effect.void), Effect.asVoid(Sql)), {
      dependsOn: [sql]
    })
    expectTypeOf<Part.Services<typeof task>>().toEqualTypeOf<Fatal | ServiceEvents | Provisioned<"db">>()
    expectTypeOf<Extract<Part.Services<typeof task>, Scope.Scope>>().toEqualTypeOf<never>()
    expect(task.dependsOn).toEqual([sql])
  })

  it("has defaults", () => {
    const { failure, faults, startWithin, stopWeight, stopWithin } = Part.make("plain", Layer.empty)
    expect({ failure, faults, startWithin, stopWeight, stopWithin }).toEqual({
      failure: "init",
      faults: [],
      startWithin: undefined,
      stopWeight: 1,
      stopWithin: undefined
    })
  })
})
