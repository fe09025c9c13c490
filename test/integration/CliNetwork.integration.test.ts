/**
 * Machines with a network, by the executable as it is built, on a host of the test's own: what they reach, what they do not,
 * and what is left of it.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as NodeChildProcess from "node:child_process"
import { once } from "node:events"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import * as NetworkNamespaces from "../../src/supervisor/internal/NodeNetworkNamespaces.ts"
import { killWithGuard, sleep, until } from "../cli/executable.ts"
import { install, noRuns, Runs } from "./background.ts"
import { noNetns } from "./network.ts"

const reason = noRuns ?? noNetns
if (reason !== undefined) console.warn(`SKIPPED tests of machines with a network: ${reason}`)

const run = (...[file = "", ...args]: ReadonlyArray<string>): string =>
  NodeChildProcess.execFileSync(file, args, { encoding: "utf8", stdio: "pipe" })

/** Says on each port whom it sees, and answers for names: `web.test` is 11.9.9.9 and 2600:9::9, all others 10.9.9.9. */
const serverProgram = `
const say = (s) => { s.on("error", () => {}); s.end("from " + s.remoteAddress + "\\n") }
let left = process.argv[1] ? 3 : 2
const up = () => { if (--left === 0) console.log("up") }
for (const port of [443, 80]) require("net").createServer(say).listen(port, "::", up)
const dns = require("dgram").createSocket("udp4", (query, from) => {
  let at = 12
  const labels = []
  while (query[at] > 0) { labels.push(query.toString("ascii", at + 1, at + 1 + query[at])); at += query[at] + 1 }
  const [name, type] = [labels.join(".").toLowerCase(), query.readUInt16BE(at + 1)]
  console.log("asked " + name)
  const data = type === 1 ? Buffer.from(name === "web.test" ? [11, 9, 9, 9] : [10, 9, 9, 9])
    : type === 28 && name === "web.test" ? Buffer.from("26000009000000000000000000000009", "hex") : undefined
  const head = Buffer.from(query.subarray(0, 12))
  head.writeUInt16BE(0x8180, 2); head.writeUInt16BE(data ? 1 : 0, 6); head.writeUInt32BE(0, 8)
  const fixed = Buffer.alloc(12)
  fixed.writeUInt16BE(0xc00c, 0); fixed.writeUInt16BE(type, 2); fixed.writeUInt16BE(1, 4); fixed.writeUInt32BE(60, 6)
  fixed.writeUInt16BE(data ? data.length : 0, 10)
  dns.send(Buffer.concat([head, query.subarray(12, at + 5), ...(data ? [fixed, data] : [])]), from.port, from.address)
})
if (process.argv[1]) dns.bind(53, process.argv[1], up)
`

/** A host with an internet behind it, in network namespaces of their own. */
class Host implements AsyncDisposable {
  readonly name: string
  readonly internet: string
  readonly within: ReadonlyArray<string>
  asked = ""
  private readonly servers: Array<NodeChildProcess.ChildProcess> = []

  constructor(suffix = "") {
    this.name = `mvh${process.pid}${suffix}`
    this.internet = `mvi${process.pid}${suffix}`
    this.within = ["ip", "netns", "exec", this.name]
  }

  exec(...words: ReadonlyArray<string>): string {
    return run(...this.within, ...words)
  }

  async open(): Promise<void> {
    for (const name of [this.name, this.internet]) {
      run("ip", "netns", "add", name)
      run("ip", "-n", name, "link", "set", "lo", "up")
    }
    run("ip", "-n", this.name, "link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", this.internet)
    const host = [
      "addr add 192.168.77.1/24 dev up0",
      "addr add fd77::1/64 dev up0 nodad",
      "link set up0 up",
      "route add default via 192.168.77.2",
      "-6 route add default via fd77::2"
    ]
    const internet = [
      "addr add 192.168.77.2/24 dev far0",
      "addr add fd77::2/64 dev far0 nodad",
      "link set far0 up",
      ...[
        "10.9.9.9/32",
        "10.9.9.10/32",
        "11.9.9.9/32",
        "169.254.169.254/32",
        "fd99::9/128",
        "fd98::9/128",
        "2600:9::9/128"
      ].map((one) => `addr add ${one} dev lo`)
    ]
    for (const line of host) run("ip", "-n", this.name, ...line.split(" "))
    for (const line of internet) run("ip", "-n", this.internet, ...line.split(" "))
    // The name server of a network namespace, as ip-netns(8) has it.
    const etc = NodePath.join("/etc/netns", this.name)
    NodeFs.mkdirSync(etc, { recursive: true })
    NodeFs.writeFileSync(NodePath.join(etc, "resolv.conf"), "nameserver 192.168.77.2\n")
    this.forwarding(true)
    for (const name of [this.name, this.internet]) await this.serve(name)
  }

  forwarding(on: boolean): void {
    const value = on ? "1" : "0"
    this.exec("sysctl", "-qw", `net.ipv4.ip_forward=${value}`, `net.ipv6.conf.all.forwarding=${value}`)
  }

  private async serve(name: string): Promise<void> {
    const names = name === this.internet ? "192.168.77.2" : ""
    const server = NodeChildProcess.spawn("nsenter", [
      `--net=/run/netns/${name}`,
      process.execPath,
      "-e",
      serverProgram,
      names
    ], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    this.servers.push(server)
    let said = ""
    server.stdout.on("data", (bytes: Buffer) => {
      said += bytes.toString()
      if (name === this.internet) this.asked = said
    })
    await until("the server", () => said.includes("up"))
  }

  /** Links and rules, as they are told. */
  state(): { readonly links: string; readonly rules: string; readonly routes: string } {
    return {
      links: this.exec("ip", "-oneline", "link"),
      rules: this.exec("nft", "list", "ruleset"),
      routes: this.exec("ip", "route", "show", "table", "all").replaceAll(/^.*(multicast|anycast|cache|fe80).*\n/gm, "")
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.servers.splice(0)) {
      const ended = once(server, "exit")
      server.kill("SIGKILL")
      await ended
    }
    for (const name of [this.name, this.internet]) NodeChildProcess.spawnSync("ip", ["netns", "del", name])
    NodeFs.rmSync(NodePath.join("/etc/netns", this.name), { recursive: true, force: true })
    try {
      NodeFs.rmdirSync("/etc/netns")
    } catch {
      // It has others.
    }
  }
}

/** Tries them all at once; prints what each server has said, or nothing. */
const probe = (...targets: ReadonlyArray<string>): string =>
  [
    `t() { printf '%s %s=%s;\\n' "$1" "$2" "$(nc -w 3 "$1" "$2" </dev/null 2>/dev/null)"; }`,
    ...targets.map((target) => `t ${target} &`),
    "wait"
  ].join("\n")

const probed = (output: string): Record<string, string> =>
  Object.fromEntries(
    [...output.matchAll(/^(\S+ \d+)=(.*?);$/gms)].map(([, target = "", answer = ""]) => [target, answer] as const)
  )

const allow = ["--network", "nat", "--allow", "10.0.0.0/8:443/tcp", "--allow", "[fd99::/16]:443/tcp"]

describe.skipIf(reason !== undefined)("microvm run --network nat", () => {
  let bin = ""
  let remove = () => {}
  const host = new Host()
  beforeAll(async () => {
    ;({ bin, remove } = install())
    await host.open()
  }, 900_000)
  afterAll(async () => {
    await host[Symbol.asyncDispose]()
    remove()
  })

  const reached = { v4: "from ::ffff:192.168.77.1", v6: "from fd77::1" }

  it.each([["warm"], ["cold"]])("reaches what is allowed, and nothing else (%s)", async (start) => {
    await using runs = new Runs(bin, { within: host.within })
    const before = host.state()
    const other = await runs.up([...allow, "--", "sh", "-c", "while :; do echo hello | nc -l -p 443; done"])
    const [address = ""] = (await runs.look(other))?.address?.split("/") ?? []
    assert.match(address, /^172\./)
    const octets = address.split(".").map(Number)
    const gateway = [...octets.slice(0, 3), (octets[3] ?? 0) - 1].join(".")
    const targets = [
      "10.9.9.9 443",
      "10.9.9.10 443",
      "10.9.9.9 80",
      "11.9.9.9 443",
      "169.254.169.254 80",
      "192.168.77.1 443",
      `${gateway} 443`,
      `${address} 443`,
      "fd99::9 443",
      "fd99::9 80",
      "fd98::9 443",
      "fd77::1 443"
    ]
    const { code, stderr, stdout } = await runs.start(
      [
        "run",
        ...allow,
        "--allow",
        "172.16.0.0/12:443/tcp",
        ...(start === "cold" ? ["--cold"] : []),
        "--",
        "sh",
        "-c",
        probe(...targets)
      ]
    ).end
    assert.strictEqual(code, 0, stderr)
    const open: Record<string, string> = {
      "10.9.9.9 443": reached.v4,
      "10.9.9.10 443": reached.v4,
      "fd99::9 443": reached.v6
    }
    assert.deepStrictEqual(probed(stdout), Object.fromEntries(targets.map((target) => [target, open[target] ?? ""])))
    assert.deepInclude(await runs.microvm("stop", other), { code: 0 })
    await runs.nothingLeft()
    assert.deepStrictEqual(host.state(), before)
  })

  it("reaches the names that are allowed, and goes on doing so after its supervisor was killed", async () => {
    await using runs = new Runs(bin, { within: host.within })
    const before = host.state()
    const id = await runs.up([
      "--network",
      "nat",
      "--allow",
      "web.test:443/tcp",
      "--allow",
      "inside.test:443/tcp",
      "--",
      "sleep",
      "300"
    ])
    const up = host.state()
    const look = async (when: string) => {
      const asked = host.asked.length
      const { stdout } = await runs.microvm(
        "exec",
        id,
        "--",
        "sh",
        "-c",
        probe("web.test 443", "web.test 80", "inside.test 443", "other.test 443")
      )
      const answers = probed(stdout)
      assert.include([reached.v4, reached.v6], answers["web.test 443"], `${when}: ${stdout}`)
      // A name leads to no private address, even one that may be asked for.
      assert.deepInclude(answers, { "web.test 80": "", "inside.test 443": "", "other.test 443": "" }, when)
      const { stdout: told } = await runs.microvm("exec", id, "--", "sh", "-c", "nslookup other.test 2>&1; true")
      assert.match(told, /REFUSED/i, when)
      assert.notInclude(host.asked.slice(asked), "other.test", when)
    }
    await look("before")
    assert.include(host.asked, "asked web.test")
    process.kill(runs.supervisor(id), "SIGKILL")
    await sleep(200)
    assert.strictEqual(host.state().links, up.links)
    const { recovered } = await runs.recover()
    assert.deepStrictEqual(recovered.map(({ action }) => action), ["Adopted"])
    await look("after")
    assert.strictEqual(host.state().links, up.links)
    assert.deepInclude(await runs.microvm("stop", id), { code: 0 })
    await runs.nothingLeft()
    assert.deepStrictEqual(host.state(), before)

    // One whose run was in the foreground is removed with all that it had.
    const name = runs.name()
    const front = runs.start([
      "run",
      "--name",
      name,
      "--network",
      "nat",
      "--allow",
      "web.test:443/tcp",
      "--",
      "sh",
      "-c",
      "echo up; sleep 99"
    ])
    await front.says("up")
    process.kill(runs.supervisor(name), "SIGKILL")
    await front.end
    // Its guard has that seen to.
    await runs.nothingLeft()
    assert.deepStrictEqual(host.state(), before)
    assert.deepStrictEqual((await runs.recover()).recovered, [])
  })

  it("a host without a default route reaches what it has routes to", async () => {
    await using runs = new Runs(bin, { within: host.within })
    const ways = ["route", "-6 route"].map((one) => one.split(" "))
    for (const way of ways) host.exec("ip", ...way, "del", "default")
    try {
      const routes = ["route add 10.0.0.0/8 via 192.168.77.2 mtu 1400", "-6 route add fd99::/16 via fd77::2"]
      for (const route of routes) host.exec("ip", ...route.split(" "))
      const before = host.state()
      const script = [probe("10.9.9.9 443", "fd99::9 443"), "cat /sys/class/net/eth0/mtu"].join("\n")
      const { code, stderr, stdout } = await runs.start(["run", ...allow, "--", "sh", "-c", script]).end
      assert.strictEqual(code, 0, stderr)
      assert.deepStrictEqual(probed(stdout), { "10.9.9.9 443": reached.v4, "fd99::9 443": reached.v6 })
      assert.match(stdout, /^1400$/m)
      const nowhere = await runs.microvm("run", "--network", "nat", "--allow", "11.0.0.0/8:443/tcp", "--", "true")
      assert.strictEqual(nowhere.code, 125)
      assert.include(nowhere.stderr, "no route to 1.1.1.1 or 11.0.0.0/8")
      const doctor = await runs.microvm("doctor", "--network", "nat")
      assert.match(doctor.stdout, /warn {2}egress: .*10\.0\.0\.0\/8 by up0/)
      await runs.nothingLeft()
      assert.deepStrictEqual(host.state(), before)
    } finally {
      host.exec("ip", "route", "flush", "10.0.0.0/8")
      host.exec("ip", "-6", "route", "flush", "fd99::/16")
      host.exec("ip", "route", "add", "default", "via", "192.168.77.2")
      host.exec("ip", "-6", "route", "add", "default", "via", "fd77::2")
    }
  })

  it("is removed from elsewhere when its network namespace is gone, and not before", async () => {
    await using runs = new Runs(bin)
    await using other = new Host("b")
    await other.open()
    const [front, back] = [runs.name(), runs.name()]
    const endless = ["--", "sh", "-c", "echo up; sleep 99"]
    const started = runs.start(["run", "--name", front, ...allow, ...endless], { within: other.within })
    await started.says("up")
    const up = runs.start(["run", "-d", "--name", back, ...allow, ...endless], { within: other.within })
    assert.deepInclude(await up.end, { code: 0 })
    const holder = runs.holder(back)
    const supervisors = new Set([front, back].map((id) => runs.supervisor(id)))
    // It would be removed from within, as its guard is there.
    killWithGuard(runs.supervisor(front))
    process.kill(runs.supervisor(back), "SIGKILL")
    await started.end
    await until("the end of both", () => !runs.processes().some(({ pid }) => supervisors.has(pid)))
    const assertLeft = async (when: string) => {
      for (const mode of ["--adopt", "--kill"]) {
        const { code, recovered } = await runs.recover(mode)
        assert.deepStrictEqual([code, recovered.map(({ action }) => action)], [1, ["Left", "Left"]], `${when} ${mode}`)
        for (const { why } of recovered) assert.match(why, /recover it from there$/)
      }
    }
    await assertLeft("there")
    const taken = () => NodeFs.readdirSync(NodePath.join(runs.state, "addresses", "slots")).length
    assert.isAbove(taken(), 0)
    await other[Symbol.asyncDispose]()
    // It has no name any more; a machine is in it still.
    await assertLeft("without a name")
    process.kill(holder, "SIGKILL")
    await until("the end of its machine", () => !runs.processes().some(({ command }) => command.startsWith("qemu")))
    // Where processes are hidden from us, one may be in it, for all that we know.
    const { isWhole } = NetworkNamespaces.look()
    const actions = async (...flags: ReadonlyArray<string>) => {
      const { code, recovered } = await runs.recover(...flags)
      return [
        code,
        ...recovered.map(({ action, why }) => why.endsWith("if that is gone, end it (kill)") ? "?" : action)
      ]
    }
    assert.deepStrictEqual(await actions("--dry-run"), isWhole ? [0, "Reclaimed", "Reclaimed"] : [1, "?", "?"])
    assert.deepStrictEqual(await actions(...(isWhole ? [] : ["--kill"])), [0, "Reclaimed", "Reclaimed"])
    assert.strictEqual(taken(), 0)
    assert.deepInclude(await runs.microvm("rm", front, back), { code: 0 })
    await runs.nothingLeft()
  })

  it("the doctor judges what a run would have", async () => {
    await using runs = new Runs(bin, { within: host.within })
    /** Both their exit codes, and what the run was refused for. */
    const both = async (env: Readonly<Record<string, string>> = {}) => {
      const doctor = await runs.start(["doctor", "--network", "nat"], { env }).end
      const ran = await runs.start(["run", "--network", "nat", "--allow", "10.9.9.9:443/tcp", "--", "true"], { env })
        .end
      const [remedy = ""] = /(export|rm) .*/.exec(ran.stderr) ?? []
      assert.include(doctor.stdout, remedy)
      return { codes: [doctor.code, ran.code], remedy }
    }
    const good = { codes: [0, 0], remedy: "" }
    const blackholes = (...networks: ReadonlyArray<string>) => ({
      [Symbol.dispose]: () => {
        for (const one of networks) host.exec("ip", "route", "del", "blackhole", one)
      },
      made: networks.map((one) => host.exec("ip", "route", "add", "blackhole", one))
    })
    {
      using _ = blackholes("172.30.0.0/16", "10.172.0.0/16", "198.18.0.0/16")
      const { codes, remedy } = await both()
      assert.deepStrictEqual({ codes, remedy }, {
        codes: [69, 125],
        remedy: "export MICROVM_NETWORK_IPV4=10.173.0.0/16"
      })
      assert.deepStrictEqual(await both({ MICROVM_NETWORK_IPV4: "10.173.0.0/16" }), good)
      assert.deepStrictEqual(await both(), good)
    }
    const { codes: [refused] } = await both({ MICROVM_NETWORK_IPV4: "10.174.0.0/16" })
    assert.strictEqual(refused, 69)
    {
      using _ = blackholes("10.173.0.0/24")
      const { codes, remedy } = await both()
      assert.deepStrictEqual(codes, [69, 125])
      const pool = `${runs.state}/addresses/pool`
      assert.strictEqual(remedy, `rm ${pool}, and the next machine makes a new pool`)
      NodeFs.rmSync(pool)
      assert.deepStrictEqual(await both(), good)
    }
    host.forwarding(false)
    try {
      assert.deepStrictEqual((await both()).codes, [69, 125])
      assert.deepStrictEqual(await both({ MICROVM_NETWORK_FORWARDING: "enable" }), good)
    } finally {
      host.forwarding(true)
    }
    await runs.nothingLeft()
  })

  it("a host that does not forward, and a user who may not, are told what to type", async () => {
    await using runs = new Runs(bin, { within: host.within })
    const before = host.state()
    host.forwarding(false)
    const closed = host.state()
    for (const flags of [[], ["--detach"]]) {
      const { code, stderr, stdout } = await runs.microvm("run", ...flags, ...allow, "--", "true")
      assert.deepStrictEqual({ code, stdout }, { code: 125, stdout: "" }, stderr)
      assert.match(stderr, /sysctl -w net\.ipv4\.ip_forward=1/)
    }
    await runs.nothingLeft()
    assert.deepStrictEqual(host.state(), closed)
    host.forwarding(true)

    await using theirs = new Runs(bin, { within: host.within })
    // Another user may not be able to reach this program where it is; one without the right is as good.
    const powerless = [...host.within, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    const { code, stderr } = await theirs.start(["run", ...allow, "--", "true"], { within: powerless }).end
    assert.strictEqual(code, 125)
    assert.match(stderr, /takes CAP_NET_ADMIN: run this as root/)
    assert.notInclude(stderr, "WARN")
    assert.deepStrictEqual(host.state(), before)
  })
})
