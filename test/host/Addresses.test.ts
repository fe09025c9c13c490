import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { Addresses, Cidr, HostCommands } from "../../src/host/index.ts"
import * as Plan from "../../src/host/internal/addressPlan.ts"

const tokenOf = (index: number): string => index.toString(16).padStart(16, "0")

const ownerOf = (index: number) => ({ id: `m-${index}`, token: tokenOf(index) })

const claimOf = (directory: string, index: number) => ({
  owner: { ...ownerOf(index), bootId: "this" },
  data: { directory }
})

/** What `ip -j` says of the host: its routes, and its addresses. */
const hostWith = (routes: ReadonlyArray<unknown> = [], addresses: ReadonlyArray<unknown> = []) =>
  HostCommands.layerScripted(({ args }) => Effect.succeed(JSON.stringify(args.includes("route") ? routes : addresses)))

const temporary = FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped())

const inDirectory = <A, E>(
  test: (directory: string) => Effect.Effect<A, E, FileSystem.FileSystem | HostCommands.HostCommands>
) =>
  Effect.flatMap(temporary, test).pipe(
    Effect.scoped,
    Effect.provide(Layer.merge(hostWith(), NodeServices.layer))
  )

const open = (options: Addresses.Options) => Effect.provide(Addresses.Addresses, Layer.fresh(Addresses.layer(options)))

const text = ({ guest, host, prefix }: Addresses.Pair) =>
  `${Cidr.formatAddress(host)} ${Cidr.formatAddress(guest)} /${prefix}`

describe("Addresses", () => {
  it.effect("a place is a pair of addresses of each family, a MAC and a name", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { allocate, allocations, pool } = yield* open({
          directory,
          ipv4: "172.30.0.0/16",
          ipv6: "fd12:3456:789a::/64"
        })
        expect(pool.size).toBe(32_767)
        expect(pool.id).toMatch(/^[0-9a-f]{4}$/)
        const first = yield* allocate(ownerOf(1))
        expect(first).toMatchObject({ index: 1, tap: `mv${pool.id}-1` })
        expect(text(first.v4)).toBe("172.30.0.2 172.30.0.3 /31")
        expect(text(first.v6)).toBe("fd12:3456:789a::2 fd12:3456:789a::3 /127")
        expect(first.mac).toBe(`02:${pool.id.slice(0, 2)}:${pool.id.slice(2)}:00:00:01`)
        expect(Addresses.toNetwork(first)).toEqual({
          tap: first.tap,
          mac: first.mac,
          address: "172.30.0.3/31",
          gateway: "172.30.0.2",
          address6: "fd12:3456:789a::3/127",
          gateway6: "fd12:3456:789a::2",
          nameserver: "172.30.0.2"
        })
        expect((yield* allocate(ownerOf(1))).index).toBe(2)
        expect((yield* allocations).map(({ allocation, owner }) => [owner.id, allocation.index])).toEqual([
          ["m-1", 1],
          ["m-1", 2]
        ])
      })
    ))

  it.effect("a pool stays what it is, whoever opens it", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { pool } = yield* open({ directory })
        expect(Cidr.format(pool.ipv4)).toBe("172.30.0.0/16")
        expect(Cidr.format(pool.ipv6)).toMatch(/^fd[0-9a-f:]+::\/64$/)
        expect((yield* open({ directory })).pool).toEqual(pool)
        const error = yield* Effect.flip(open({ directory, ipv4: "10.0.0.0/16", ipv6: "fd00::/64" }))
        expect(error.message).toBe([
          `ipv4: "10.0.0.0/16" cannot be: the pool in ${directory} has 172.30.0.0/16 already: unset MICROVM_NETWORK_IPV4`,
          `ipv6: "fd00::/64" cannot be: the pool in ${directory} has ${
            Cidr.format(pool.ipv6)
          } already: unset MICROVM_NETWORK_IPV6`
        ].join("\n"))
      })
    ))

  it.effect("a place that was freed comes again after all the others", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { allocate } = yield* open({ directory, ipv4: "10.0.0.0/28" })
        const free = (index: number) =>
          Effect.map(
            Addresses.kind.reclaim([claimOf(directory, index)], { dryRun: false }),
            ([verdict]) => verdict?._tag
          )
        const places: Array<number> = []
        for (let index = 1; index <= 20; index++) {
          places.push((yield* allocate(ownerOf(index))).index)
          expect(yield* free(index)).toBe("Released")
          expect(yield* free(index)).toBe("Absent")
        }
        expect(places).toEqual([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6])
      })
    ))

  it.effect("a pool that is exhausted says so, and has room again when a place was freed", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { allocate } = yield* open({ directory, ipv4: "10.0.0.0/29" })
        for (const index of [1, 2, 3]) yield* allocate(ownerOf(index))
        const { message } = yield* Effect.flip(allocate(ownerOf(4)))
        expect(message).toBe(
          `all 3 places of the address pool 10.0.0.0/29 in ${directory} are taken: end machines, recover those of dead ` +
            "supervisors, or give a larger network in another directory"
        )
        yield* Addresses.kind.reclaim([claimOf(directory, 2)], { dryRun: false })
        expect((yield* allocate(ownerOf(4))).index).toBe(2)
      })
    ))

  it.effect("what is reclaimed is what names the owner, and nothing else", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const { allocate, allocations } = yield* open({ directory })
        for (const index of [1, 2, 1, 3]) yield* allocate(ownerOf(index))
        yield* fs.writeFileString(`${directory}/slots/9`, "no symbolic link")
        yield* fs.symlink("somebody else's", `${directory}/slots/10`)
        const claims = [claimOf(directory, 1), claimOf(directory, 4), claimOf(`${directory}/no-such`, 1)]
        const tags = (dryRun: boolean) =>
          Effect.map(Addresses.kind.reclaim(claims, { dryRun }), (all) => all.map(({ _tag }) => _tag))
        expect(yield* tags(true)).toEqual(["Released", "Absent", "Absent"])
        expect(yield* allocations).toHaveLength(4)
        expect(yield* tags(false)).toEqual(["Released", "Absent", "Absent"])
        expect(yield* tags(false)).toEqual(["Absent", "Absent", "Absent"])
        expect((yield* allocations).map(({ owner }) => owner.id)).toEqual(["m-2", "m-3"])
        expect(yield* fs.readDirectory(`${directory}/slots`)).toEqual(expect.arrayContaining(["9", "10"]))
      })
    ))

  it.effect("owners that are none are refused with all that is wrong with them", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { allocate, allocations } = yield* open({ directory })
        const { message } = yield* Effect.flip(allocate({ id: "a b", token: "../../etc" }))
        expect(message.split("\n").map((line) => line.split(":")[0])).toEqual(["id", "token"])
        expect(yield* allocations).toEqual([])
      })
    ))

  it.effect.each([
    ["ipv4", "10.0.0.1/8", "give the network, 10.0.0.0/8, or the address, 10.0.0.1/32"],
    ["ipv4", "fd00::/64", "give a network of IPv4"],
    ["ipv4", "10.0.0.0/31", "give a network of length 8 to 30: a machine takes two addresses"],
    ["ipv4", "0.0.0.0/0", "give a network of length 8 to 30: a machine takes two addresses"],
    ["ipv4", "127.0.0.0/16", "give a network of unicast addresses that are routed, such as 172.30.0.0/16"],
    ["ipv4", "169.254.0.0/16", "give a network of unicast addresses that are routed, such as 172.30.0.0/16"],
    ["ipv4", "224.0.0.0/8", "give a network of unicast addresses that are routed, such as 172.30.0.0/16"],
    ["ipv6", "10.0.0.0/8", "give a network of IPv6"],
    ["ipv6", "fd00::/127", "give a network of length 32 to 126: a machine takes two addresses"],
    ["ipv6", "fe80::/64", "give a network of unicast addresses that are routed, such as fd12:3456:789a::/64"],
    ["ipv6", "::ffff:10.0.0.0/104", "give the IPv4 network: 10.0.0.0/8"]
  ])("refuses the %s network %s", ([field, value, remedy]) =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(
          open({ directory: `${directory}/pool`, ...(field === "ipv4" ? { ipv4: value } : { ipv6: value }) })
        )
        expect(error.reason).toMatchObject({ faults: [{ field, value, remedy }] })
        expect(NodeFs.readdirSync(directory)).toEqual([])
      })
    ))

  it.effect.each([
    {
      name: "a route",
      routes: [{ dst: "172.30.4.0/24", dev: "docker0" }],
      what: "the route to 172.30.4.0/24 by docker0 of this host"
    },
    {
      name: "a wide route",
      routes: [{ dst: "172.16.0.0/12", dev: "tun0" }],
      what: "the route to 172.16.0.0/12 by tun0 of this host"
    },
    {
      name: "a route to nowhere",
      routes: [{ dst: "172.30.0.0/16", type: "blackhole" }],
      what: "the route to 172.30.0.0/16 of this host"
    },
    {
      name: "an address of an interface that is down",
      routes: [],
      addresses: [{ ifname: "eth1", addr_info: [{ local: "172.30.9.9", prefixlen: 24 }] }],
      what: "the address 172.30.9.9 of eth1 of this host"
    },
    {
      name: "a route of IPv6",
      routes: [{ dst: "fd00:0:0:1::/64", dev: "wg0" }],
      what: "the route to fd00:0:0:1::/64 by wg0 of this host"
    }
  ])(
    "a pool that collides with $name is refused",
    ({ addresses, routes, what }) =>
      inDirectory((directory) =>
        open({ directory, ipv4: "172.30.0.0/16", ipv6: "fd00::/48" }).pipe(
          Effect.flip,
          Effect.provide(hostWith(routes, addresses)),
          Effect.map(({ reason }) => {
            expect(reason).toMatchObject({ _tag: "Conflict", with: what })
            expect(NodeFs.existsSync(`${directory}/pool`)).toBe(false)
          })
        )
      )
  )

  it.effect("what helps against an obstacle can be typed", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const taken = ["172.30.0.0/16", "10.172.0.0/15", "198.18.0.0/15"]
        const busy = hostWith(taken.map((dst) => ({ dst, type: "blackhole" })))
        const remedyOf = (options: Partial<Addresses.Options>) =>
          open({ directory, ...options }).pipe(
            Effect.flip,
            Effect.provide(busy),
            Effect.map(({ reason }) => reason._tag === "Conflict" ? reason.remedy : reason._tag)
          )
        expect(yield* remedyOf({})).toBe("export MICROVM_NETWORK_IPV4=10.174.0.0/16")
        expect(yield* remedyOf({ ipv4: "10.172.0.0/16" })).toBe("export MICROVM_NETWORK_IPV4=10.174.0.0/16")

        const { allocate } = yield* open({ directory, ipv4: "172.30.0.0/16" })
        yield* allocate(ownerOf(1))
        const again = `rm ${directory}/pool, and the next machine makes a new pool`
        expect(yield* remedyOf({})).toBe(`end m-1 first, then ${again}`)
        yield* Addresses.kind.reclaim([claimOf(directory, 1)], { dryRun: false })
        expect(yield* remedyOf({})).toBe(again)
        NodeFs.rmSync(`${directory}/pool`)
        const { pool } = yield* open({ directory, ipv4: "10.174.0.0/16" }).pipe(Effect.provide(busy))
        expect(Cidr.format(pool.ipv4)).toBe("10.174.0.0/16")
      })
    ))

  it.effect("a look changes nothing, and says what would be had", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const { ipv4, isKept } = yield* Addresses.inspect({ directory: `${directory}/pool` })
        expect([Cidr.format(ipv4), isKept]).toEqual(["172.30.0.0/16", false])
        expect(NodeFs.readdirSync(directory)).toEqual([])
        yield* open({ directory, ipv4: "10.0.0.0/16" })
        const kept = yield* Addresses.inspect({ directory })
        expect([Cidr.format(kept.ipv4), kept.isKept]).toEqual(["10.0.0.0/16", true])
        expect((yield* Effect.flip(Addresses.inspect({ directory, ipv4: "10.1.0.0/16" }))).reason._tag).toBe(
          "InvalidArgument"
        )
      }).pipe(Effect.provide(hostWith([])))
    ))

  it.effect("without a wish, the first network that is free is taken, and then it stays", () =>
    inDirectory((directory) =>
      Effect.gen(function*() {
        const busy = hostWith([{ dst: "default", dev: "eth0" }, { dst: "172.30.0.0/16", dev: "br0" }])
        const { pool } = yield* Effect.provide(open({ directory }), busy)
        expect(Cidr.format(pool.ipv4)).toBe("10.172.0.0/16")
        // Our own links are no obstacle, those of another pool are.
        const own = hostWith([{ dst: "10.172.0.2/31", dev: `mv${pool.id}-1` }])
        expect((yield* Effect.provide(open({ directory }), own)).pool).toEqual(pool)
        const other = hostWith([{ dst: "10.172.0.2/31", dev: "mvzzzz-1" }])
        expect((yield* Effect.flip(Effect.provide(open({ directory }), other))).reason._tag).toBe("Conflict")
      })
    ))

  it.effect.each([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])(
    "killed before file operation %i, what was taken is found by its token",
    (dieAt) =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          let operations = 0
          const died = PlatformError.systemError({ _tag: "Unknown", module: "FileSystem", method: "killed" })
          const mortal = <A extends ReadonlyArray<unknown>, B>(
            operation: (...args: A) => Effect.Effect<B, PlatformError.PlatformError>
          ) =>
          (...args: A) => Effect.suspend(() => operations++ >= dieAt ? Effect.fail(died) : operation(...args))
          const dying = FileSystem.FileSystem.of({
            ...fs,
            symlink: mortal(fs.symlink),
            readLink: mortal(fs.readLink),
            readDirectory: mortal(fs.readDirectory),
            remove: mortal(fs.remove),
            makeDirectory: mortal(fs.makeDirectory)
          })
          const taken = yield* open({ directory }).pipe(
            Effect.flatMap(({ allocate }) => allocate(ownerOf(7))),
            Effect.provideService(FileSystem.FileSystem, dying),
            Effect.result
          )
          yield* Addresses.kind.reclaim([claimOf(directory, 7)], { dryRun: false })
          const { allocate, allocations } = yield* open({ directory })
          expect(yield* allocations).toEqual([])
          expect(NodeFs.readdirSync(directory).toSorted().filter((name) => name !== "next")).toEqual(["pool", "slots"])
          expect((yield* allocate(ownerOf(8))).index).toBeGreaterThan(0)
          // At the end of the list, all of it has worked.
          if (dieAt === 12) expect(Result.isSuccess(taken)).toBe(true)
          if (dieAt === 0) expect(Result.isSuccess(taken)).toBe(false)
        })
      )
  )

  it.live(
    "processes that take places at the same time never get the same, and the dead are found",
    () =>
      inDirectory((directory) =>
        Effect.gen(function*() {
          const start = (prefix: string) => {
            const program = NodePath.join(import.meta.dirname, "allocateProgram.ts")
            const args = ["--conditions=@effect-microvm-runtime/source", program, directory, "60", prefix]
            const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] })
            let said = ""
            child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
              said += chunk
              // One of them does not live to the end.
              if (prefix === "dd" && said.split("\n").length > 20) child.kill("SIGKILL")
            })
            return Effect.promise(() => once(child, "close").then(() => said.trim().split("\n")))
          }
          const said = yield* Effect.all([start("aa"), start("bb"), start("cc"), start("dd")], { concurrency: 4 })
          const told = said.flat().map((line) => Number(line.split(" ")[1]))
          expect(told.length).toBeGreaterThanOrEqual(200)
          expect(new Set(told).size).toBe(told.length)
          const { allocations } = yield* open({ directory })
          const kept = yield* allocations
          expect(kept.length).toBeGreaterThanOrEqual(told.length)
          expect(new Set(kept.map(({ allocation }) => allocation.index)).size).toBe(kept.length)
          const verdicts = yield* Addresses.kind.reclaim(
            kept.map(({ owner }) => ({ owner: { ...owner, bootId: "this" }, data: { directory } })),
            { dryRun: false }
          )
          expect(new Set(verdicts.map(({ _tag }) => _tag))).toEqual(new Set(["Released"]))
          expect(yield* allocations).toEqual([])
        })
      ),
    180_000
  )
})

describe("addressPlan", () => {
  const indices = Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 32_767 })))
  const pool = { id: "3fa2", ipv4: Plan.CANDIDATES[0], ipv6: Plan.uniqueLocal(0x12_3456_789an) }

  it.prop("no two places share anything", [indices, indices], ([one, other]) => {
    const facts = (index: number) => {
      const { mac, tap, v4, v6 } = Plan.allocation(pool, index)
      return [mac, tap, ...[v4.host, v4.guest, v6.host, v6.guest].map(Cidr.formatAddress)]
    }
    const all = [...facts(one), ...facts(other)]
    expect(new Set(all).size).toBe(one === other ? all.length / 2 : all.length)
  })

  it.prop("all of it is in the pool, and as the standards want it", [indices], ([index]) => {
    const { mac, tap, v4, v6 } = Plan.allocation(pool, index)
    expect(new TextEncoder().encode(tap).length).toBeLessThanOrEqual(15)
    expect(mac).toMatch(/^02(:[0-9a-f]{2}){5}$/)
    for (const [cidr, { guest, host, prefix }] of [[pool.ipv4, v4], [pool.ipv6, v6]] as const) {
      expect([guest, host].every((one) => Cidr.contains(cidr, one))).toBe(true)
      expect(Cidr.contains(Cidr.network(host, prefix), guest)).toBe(true)
      expect(host.value % 2n).toBe(0n)
    }
  })

  it("the largest pool has names of 15 bytes at most", () => {
    const wide = { ...pool, ipv4: Result.getOrThrow(Cidr.parse("10.0.0.0/8")) }
    const { mac, tap } = Plan.allocation(wide, Plan.sizeOf(wide))
    expect([tap, mac]).toEqual(["mv3fa2-8388607", "02:3f:a2:7f:ff:ff"])
  })

  it("a pool that was edited by hand is none", () => {
    expect(Plan.read(Plan.write(pool))).toEqual(pool)
    for (
      const line of [
        "",
        "3fa2",
        "3fa2 10.0.0.1/8 fd00::/64",
        "3FA2 10.0.0.0/8 fd00::/64",
        "3fa2 10.0.0.0/8 fd00::/64 x"
      ]
    ) {
      expect(Plan.read(line)).toBeUndefined()
    }
  })
})
