/** Pools of addresses, with the names of links in them, and of users on a file system that is full. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { execFileSync } from "node:child_process"
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Addresses from "../../src/host/Addresses.ts"
import * as HostCommands from "../../src/host/HostCommands.ts"
import * as Users from "../../src/host/Users.ts"
import type { Owner } from "../../src/journal/ResourceKind.ts"

const reason = process.getuid?.() === 0 ? undefined : "it takes root to mount"
if (reason !== undefined) console.warn(`skipped: pools on a full disk: ${reason}`)

const mount = (...args: ReadonlyArray<string>) => execFileSync("mount", args, { stdio: "pipe" })

/** Has so many files and directories at most, the first directory among them. */
const small = Effect.acquireRelease(
  Effect.sync(() => {
    const at = mkdtempSync(join(tmpdir(), "pools-"))
    mount("-t", "tmpfs", "none", at)
    return {
      directory: join(at, "state", "pool"),
      at,
      limit: (files: number) => mount("-o", `remount,nr_inodes=${files}`, at)
    }
  }),
  ({ at }) =>
    Effect.sync(() => {
      execFileSync("umount", [at])
      rmSync(at, { recursive: true })
    })
)

const noHost = HostCommands.layerScripted(() => Effect.succeed("[]"))

const pools = [
  {
    name: "addresses",
    kind: Addresses.kind,
    take: (directory: string, owner: Owner) =>
      Addresses.Addresses.use(({ allocate }) => allocate(owner)).pipe(
        Effect.map(({ index }) => String(index)),
        Effect.provide(Addresses.layer({ directory }).pipe(Layer.provide(noHost)))
      )
  },
  {
    name: "users",
    kind: Users.kind,
    take: (directory: string, owner: Owner) =>
      Users.Users.use(({ take }) => take(owner)).pipe(
        Effect.map(String),
        Effect.provide(Users.layer({ directory, first: 300_000, count: 16 }))
      )
  }
]

const ownerOf = (index: number): Owner => ({
  id: `web-${index}`,
  token: index.toString(16).padStart(16, "0"),
  bootId: "b"
})

describe.skipIf(reason !== undefined)("a full disk", () => {
  for (const { kind, name, take } of pools) {
    it.live(
      `is told by the pool of ${name}, which has given out nothing then, and does once there is room`,
      () =>
        Effect.gen(function*() {
          const outcomes = new Set<string>()
          // Of all that is made, each one is the first that there is no room for.
          for (let files = 1; files <= 9; files++) {
            yield* Effect.scoped(Effect.gen(function*() {
              const { directory, limit } = yield* small
              limit(files)
              const slots = join(directory, "slots")
              const taken = () => existsSync(slots) ? readdirSync(slots).toSorted() : []
              const had: Array<string> = []
              const owners = [1, 2, 3].map(ownerOf)
              for (const owner of owners) {
                const got = yield* Effect.result(take(directory, owner))
                outcomes.add(got._tag)
                if (Result.isSuccess(got)) had.push(got.success)
                else {
                  assert.strictEqual(got.failure.reason._tag, "NoSpace", got.failure.message)
                  assert.include(got.failure.message, "make room, or use another directory")
                }
                assert.deepStrictEqual(taken(), had.toSorted())
              }
              limit(100)
              const more = yield* take(directory, ownerOf(4))
              assert.notInclude(had, more)
              limit(readdirSync(join(directory, ".."), { recursive: true }).length + 2)
              // To give back takes no room.
              const claims = [...owners, ownerOf(4)].map((owner) => ({ owner, data: { directory } }))
              const verdicts = yield* kind.reclaim(claims, { dryRun: false })
              assert.deepStrictEqual(verdicts.filter(({ _tag }) => _tag === "Released").length, had.length + 1)
              assert.deepStrictEqual(taken(), [])
            }))
          }
          assert.deepStrictEqual([...outcomes].toSorted(), ["Failure", "Success"])
        }).pipe(Effect.provide(NodeFileSystem.layer)),
      180_000
    )
  }
})
