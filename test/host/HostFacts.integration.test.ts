import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import { HostChecks, HostFacts, NodeHostCommands, NodeHostFacts } from "effect-microvm-runtime/host"
import { NodeProcessHost, ProcessHost } from "effect-microvm-runtime/process"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { execFileSync } from "node:child_process"
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const run = (program: string, args: ReadonlyArray<string>, input = "") =>
  execFileSync(program, args, {
    env: { ...process.env, LC_ALL: "C", PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin` },
    encoding: "utf8",
    input,
    stdio: ["pipe", "pipe", "pipe"]
  })

const why = process.getuid?.() === 0 ? undefined : "it takes root to make network namespaces"
if (why !== undefined) console.warn(`skipped: facts of a network namespace: ${why}`)

/** Why there can be no firewall as Docker makes it. */
const noIptables = why ?? (() => {
  try {
    run("iptables", ["--version"])
    run("iptables-legacy", ["--version"])
    return undefined
  } catch {
    return "there is no iptables of both kinds"
  }
})()
if (noIptables !== undefined) console.warn(`skipped: what Docker closes: ${noIptables}`)

const withDirectory = <A, E>(use: (directory: string) => Effect.Effect<A, E>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "host-facts-"))),
    use,
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  )

const host = <A, E>(use: (host: HostFacts.HostFacts["Service"]) => Effect.Effect<A, E>, netns?: string) =>
  HostFacts.HostFacts.use(use).pipe(
    Effect.provide(
      NodeHostFacts.layer.pipe(
        Layer.provide([
          netns === undefined ? NodeHostCommands.layer : NodeHostCommands.layerIn(`/run/netns/${netns}`),
          NodeFileSystem.layer,
          NodeProcessHost.layer
        ])
      )
    )
  )

describe("facts of this host", () => {
  it.live("are those that the system tells", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const facts = yield* host(({ observe }) => observe({ stateDirectory: directory }))
        assert.strictEqual(facts.uid, process.getuid?.())
        assert.strictEqual(facts.programs.includes("cp"), true)
        assert.strictEqual(facts.tun === "Missing", !existsSync("/dev/net/tun"))
        assert.match(facts.settings["net/ipv4/ip_forward"] ?? "", /^[01]$/)
        assert.isAbove(Number(facts.settings["kernel/pid_max"]), 300)
        assert.strictEqual(String(facts.openFiles), run("sh", ["-c", "ulimit -Hn"]).trim())
        assert.strictEqual(facts.state._tag, "There")
        assert.strictEqual(facts.state._tag === "There" && facts.state.fault, undefined)
        assert.strictEqual(
          facts.state._tag === "There" && facts.state.fileSystem,
          run("stat", ["-f", "-c", "%T", directory]).trim().replace("ext2/ext3", "ext4")
        )
        // Nothing is left of having tried.
        assert.deepStrictEqual(readdirSync(directory), [])
        for (const check of HostChecks.evaluate(facts, { network: true, stateDirectory: directory })) {
          assert.notStrictEqual(check.found, "")
        }
      })
    ))

  it.live("have the programs that a machine would be given, and no others", () => {
    const programsIn = (env: Readonly<Record<string, string>>) => {
      const processes = Layer.effect(
        ProcessHost.ProcessHost,
        Effect.map(ProcessHost.ProcessHost, (real) => ({ ...real, env: Effect.succeed(env) }))
      ).pipe(Layer.provide(NodeProcessHost.layer))
      return HostFacts.HostFacts.use(({ observe }) => observe({ stateDirectory: "/nonexistent/state" })).pipe(
        Effect.map(({ programs }) => programs),
        Effect.provide(
          NodeHostFacts.layer.pipe(Layer.provide([NodeHostCommands.layer, NodeFileSystem.layer, processes]))
        )
      )
    }
    return Effect.gen(function*() {
      assert.include(yield* programsIn({}), "cp")
      assert.notInclude(yield* programsIn({ MICROVM_RESIZE2FS_BIN: "/nonexistent/resize2fs" }), "resize2fs")
    })
  })

  it.live("tell of a state directory that is missing, is a file, or is open to others", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const observe = (stateDirectory: string) =>
          host((one) => Effect.map(one.observe({ stateDirectory }), (facts) => facts.state))
        const missing = yield* observe(join(directory, "a/b"))
        assert.deepInclude(missing, { _tag: "Absent", parent: directory, isWritable: true })
        const file = join(directory, "file")
        writeFileSync(file, "")
        assert.deepInclude(yield* observe(file), { _tag: "There", isDirectory: false })
        assert.deepInclude(yield* observe(join(file, "below")), { _tag: "Absent", parent: file, isWritable: false })
        chmodSync(directory, 0o777)
        assert.deepInclude(yield* observe(directory), { _tag: "There", mode: 0o777 })
      })
    ))

  it.live("make a directory for this user alone", () =>
    withDirectory((directory) =>
      Effect.gen(function*() {
        const path = join(directory, "above/state")
        const said = yield* host(({ apply }) => apply(HostFacts.Fix.MakeDirectory({ path })))
        assert.include(said, path)
        assert.strictEqual(statSync(path).mode & 0o777, 0o700)
        assert.notStrictEqual(statSync(join(directory, "above")).mode & 0o055, 0)
        const again = yield* Effect.flip(
          host(({ apply }) => apply(HostFacts.Fix.MakeDirectory({ path: "/proc/none/x" })))
        )
        assert.strictEqual(again.reason._tag, "IoFailed")
      })
    ))

  it.live.skipIf(why !== undefined)(
    "are those of the network namespace, and what is put in order is there alone",
    () => {
      const netns = `hf${process.pid}`
      const inside = (program: string, args: ReadonlyArray<string>, input?: string) =>
        run("ip", ["netns", "exec", netns, program, ...args], input)
      return Effect.acquireUseRelease(
        Effect.sync(() => run("ip", ["netns", "add", netns])),
        () =>
          Effect.gen(function*() {
            const before = run("cat", ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"])
            const observe = host((one) => one.observe({ stateDirectory: "/nonexistent/state" }), netns)
            const empty = yield* observe
            assert.deepStrictEqual(empty.egress, { ipv4: undefined, ipv6: undefined })
            assert.deepStrictEqual(empty.forwardDrops, [])

            inside(
              "ip",
              ["-batch", "-"],
              [
                "link add out0 type veth peer name far0",
                "link set out0 up",
                "link set far0 up",
                "addr add 172.30.0.1/24 dev out0",
                "addr add fd00::1/64 dev out0 nodad",
                "route add default via 172.30.0.2 dev out0",
                "route add ::/0 via fd00::2 dev out0",
                ""
              ].join("\n")
            )
            inside(
              "nft",
              ["-f", "-"],
              [
                "table ip filter {",
                "chain FORWARD { type filter hook forward priority 0; policy drop; }",
                "chain INPUT { type filter hook input priority 0; policy drop; }",
                "}",
                "table inet fine {",
                "chain forward { type filter hook forward priority 0; policy accept; }",
                "}"
              ].join("\n")
            )
            const facts = yield* observe
            assert.deepStrictEqual(facts.egress, { ipv4: "out0", ipv6: "out0" })
            assert.strictEqual(facts.settings["net/ipv6/conf/out0/accept_ra"], "1")
            assert.deepStrictEqual(facts.forwardDrops, [{ family: "ip", table: "filter", chain: "FORWARD" }])
            const failed = HostChecks.evaluate(facts, { network: true, stateDirectory: "/" })
            const addresses = failed.find(({ name }) => name === "addresses")
            assert.strictEqual(addresses?.found, "10.172.0.0/16 is free for machines")

            // The remedy is a command, and it helps.
            const remedy = failed.find(({ name }) => name === "other firewalls")?.remedy ?? assert.fail("no remedy")
            inside("sh", ["-c", remedy])
            assert.include(inside("nft", ["list", "ruleset"]), "iifname \"mv*\" accept")
            assert.deepStrictEqual((yield* observe).forwardDrops, [])

            for (const family of ["ipv4", "ipv6"] as const) {
              yield* host(({ apply }) => apply(HostFacts.Fix.Forward({ family, egress: "out0" })), netns)
            }
            const after = yield* observe
            assert.strictEqual(after.settings["net/ipv4/ip_forward"], "1")
            assert.strictEqual(after.settings["net/ipv6/conf/all/forwarding"], "1")
            assert.strictEqual(inside("cat", ["/proc/sys/net/ipv6/conf/out0/accept_ra"]).trim(), "2")
            assert.strictEqual(
              run("cat", ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]),
              before
            )
          }),
        () => Effect.sync(() => run("ip", ["netns", "del", netns]))
      )
    }
  )
})

const decodeShown = Schema.decodeUnknownSync(
  Schema.fromJsonString(Schema.Struct({ ok: Schema.Boolean, remedy: Schema.String, refusal: Schema.String }))
)

const factsProgram = [process.execPath, join(import.meta.dirname, "factsProgram.ts")]

describe.skipIf(why !== undefined)("facts of a container", () => {
  it("tell that its settings are read-only, until the remedy was typed", () => {
    const shown = (remedy: string) =>
      decodeShown(run("unshare", [
        "-m",
        "sh",
        "-ec",
        `mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys\n${remedy}\nexec "$@"`,
        "sh",
        ...factsProgram,
        "network rights"
      ]))
    const { ok, refusal, remedy } = shown(":")
    assert.isFalse(ok)
    assert.match(
      refusal,
      /^the setting .* cannot be had, \/proc\/sys is read-only, .*: start this with one to write to/
    )
    assert.deepStrictEqual(shown(remedy), { ok: true, remedy: "", refusal: "" })
  })
})

describe.skipIf(noIptables !== undefined)("facts of a host with Docker", () => {
  it.live.each<["iptables" | "iptables-legacy"]>([["iptables"], ["iptables-legacy"]])(
    "tell that it forwards nothing, by %s, until the remedy was typed",
    ([iptables]) => {
      const netns = `hf${process.pid}-${iptables.slice(-6)}`
      const inside = (program: string, args: string) => run("ip", ["netns", "exec", netns, program, ...args.split(" ")])
      // The old iptables tells of the namespace that we are in.
      const shown = Effect.sync(() => decodeShown(run("ip", ["netns", "exec", netns, ...factsProgram])))
      return Effect.acquireUseRelease(
        Effect.sync(() => run("ip", ["netns", "add", netns])),
        () =>
          Effect.gen(function*() {
            assert.deepInclude(yield* shown, { ok: true })
            for (
              const line of [
                "-P FORWARD DROP",
                "-N DOCKER-USER",
                "-A DOCKER-USER -j RETURN",
                "-A FORWARD -j DOCKER-USER",
                "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -i docker0 -j ACCEPT"
              ]
            ) inside(iptables, line)
            const closed = yield* shown
            assert.strictEqual(closed.ok, false)
            run("ip", ["netns", "exec", netns, "sh", "-c", closed.remedy])
            assert.deepInclude(yield* shown, { ok: true })
            // Docker can still read what is its own.
            assert.include(inside(iptables, "-S FORWARD"), "-A FORWARD -i mv+ -j ACCEPT")
          }),
        () => Effect.sync(() => run("ip", ["netns", "del", netns]))
      )
    }
  )
})
