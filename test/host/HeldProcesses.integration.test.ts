import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import * as HeldProcesses from "../../src/host/HeldProcesses.ts"
import * as MachineDirectories from "../../src/host/MachineDirectories.ts"
import * as NodeProcessHolder from "../../src/process/NodeProcessHolder.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"
import { ProcessHolder } from "../../src/process/ProcessHolder.ts"
import * as ProcessIdentity from "../../src/process/ProcessIdentity.ts"

const services = NodeProcessHolder.layer.pipe(
  Layer.provideMerge(NodeProcessHost.layer),
  Layer.provideMerge(NodeServices.layer)
)

const owner = { id: "web-1", token: "0123456789abcdef", bootId: "this one" }

const held = (directory: string) => ({ owner, data: { directory } })
const place = (path: string) => ({ owner, data: { path } })
const tags = (verdicts: ReadonlyArray<{ readonly _tag: string }>) => verdicts.map(({ _tag }) => _tag)
const times = (count: number, tag: string): ReadonlyArray<string> => Array.from({ length: count }, () => tag)
const make = { dryRun: false }

const temporary = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())

layer(services, { excludeTestServices: true })("processes and directories of a machine", (it) => {
  it.effect("are reclaimed together, by whoever comes, and only what is theirs", () =>
    Effect.gen(function*() {
      const base = yield* temporary
      const holder = yield* ProcessHolder
      const directories = Array.from({ length: 10 }, (_, n) => `${base}/held/web-1-${owner.token}-${n}`)
      yield* Effect.forEach(directories, (path) => MachineDirectories.make(path, owner))
      const identities = yield* Effect.forEach(directories.slice(0, 8), (directory) =>
        Effect.scoped(Effect.map(
          holder.spawn(ChildProcess.make("sleep", ["1000"]), { directory }),
          ({ identity }) => identity
        )), { concurrency: 2 })
      const foreign = `${base}/held/web-2-fedcba9876543210`
      mkdirSync(foreign, { mode: 0o700 })
      const other = yield* Effect.scoped(holder.spawn(ChildProcess.make("sleep", ["1000"]), { directory: foreign }))

      const claims = [...directories, foreign].map(held)
      const would = tags(yield* HeldProcesses.kind.reclaim(claims, { dryRun: true }))
      assert.deepStrictEqual(would, [...times(8, "Released"), "Absent", "Absent", "Foreign"])
      assert.isTrue(yield* ProcessIdentity.isAlive(identities[0] ?? other.identity))
      assert.deepStrictEqual(tags(yield* HeldProcesses.kind.reclaim(claims, make)), would)
      const alive = yield* Effect.filter(identities, ProcessIdentity.isAlive)
      assert.deepStrictEqual(alive, [])
      assert.isTrue(yield* ProcessIdentity.isAlive(other.identity))
      assert.deepStrictEqual(
        tags(yield* HeldProcesses.kind.reclaim(claims, make)),
        [...times(10, "Absent"), "Foreign"]
      )
      assert.deepStrictEqual(
        tags(yield* MachineDirectories.kind.reclaim([...directories, foreign].map(place), make)),
        [...times(10, "Released"), "Foreign"]
      )
      assert.isFalse(existsSync(directories[0] ?? ""))
      assert.isTrue(existsSync(foreign))
      yield* holder.destroy({ directory: foreign })
    }))

  it.effect("are not removed through links, nor where something is mounted", () =>
    Effect.gen(function*() {
      const base = yield* temporary
      const precious = `${base}/precious-${owner.token}`
      mkdirSync(precious)
      writeFileSync(`${precious}/file`, "")
      const link = `${base}/link-${owner.token}`
      symlinkSync(precious, link)
      const file = `${base}/file-${owner.token}`
      writeFileSync(file, "")
      const full = `${base}/full-${owner.token}`
      yield* MachineDirectories.make(full, owner)
      symlinkSync(precious, `${full}/link`)
      const paths = [link, file, `${base}/none-${owner.token}`, `${base}/${owner.token}/../precious`, full, "/"]
      const expected = ["Foreign", "Foreign", "Absent", "Foreign", "Released", "Foreign"]
      assert.deepStrictEqual(tags(yield* MachineDirectories.kind.reclaim(paths.map(place), { dryRun: true })), expected)
      assert.isTrue(existsSync(full))
      assert.deepStrictEqual(tags(yield* MachineDirectories.kind.reclaim(paths.map(place), make)), expected)
      assert.isFalse(existsSync(full))
      assert.isTrue(existsSync(`${precious}/file`) && existsSync(link) && existsSync(file))

      const mounted = `${base}/mounted-${owner.token}`
      yield* MachineDirectories.make(mounted, owner)
      mkdirSync(`${mounted}/in it`)
      if (spawnSync("mount", ["-t", "tmpfs", "-o", "size=64k", "none", `${mounted}/in it`]).status !== 0) {
        yield* Effect.logWarning("skipped: a mount in a directory, for we may not mount")
        return
      }
      yield* Effect.addFinalizer(() => Effect.sync(() => spawnSync("umount", [`${mounted}/in it`])))
      const [stuck] = yield* MachineDirectories.kind.reclaim([place(mounted)], make)
      assert.deepStrictEqual(stuck, {
        _tag: "Stuck",
        why: `something is mounted at ${mounted}/in it`,
        remedy: `umount ${mounted}/in it`
      })
    }))

  it.effect("are made once, under a name with the machine's token", () =>
    Effect.gen(function*() {
      const base = yield* temporary
      const path = `${base}/a/b/${owner.token}`
      yield* MachineDirectories.make(path, owner)
      const again = yield* Effect.flip(MachineDirectories.make(path, owner))
      assert.strictEqual(again.reason._tag, "IoFailed")
      for (const wrong of [`${base}/web-1`, owner.token, `${base}/${owner.token}/x`, `/tmp/../${owner.token}`]) {
        const error = yield* Effect.flip(MachineDirectories.make(wrong, owner))
        assert.strictEqual(error.reason._tag, "InvalidArgument", wrong)
      }
    }))
})
