import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as ForwardRules from "../../src/host/internal/forwardRules.ts"

type Statement = Readonly<Record<string, unknown>>
type Rules = ReadonlyArray<ReadonlyArray<Statement>>

const counter = { counter: { packets: 1, bytes: 2 } }
const accept = { accept: null }
const drop = { drop: null }
const back = { return: null }
const jump = (target: string) => ({ jump: { target } })
const go = (target: string) => ({ goto: { target } })
const link = (key: string, right = "mv*") => ({ match: { op: "==", left: { meta: { key } }, right } })
const state = (right: unknown) => ({ match: { op: "in", left: { ct: { key: "state" } }, right } })
const xt = (type: string, name: string) => ({ xt: { type, name } })

const from = [link("iifname"), accept]
const to = [link("oifname"), counter, accept]

const drops = (policy: string, chains: Readonly<Record<string, Rules>>) => {
  const at = { family: "ip", table: "filter" }
  return ForwardRules.decode(JSON.stringify({
    nftables: [
      { metainfo: { version: "1.0.6" } },
      { chain: { ...at, name: "FORWARD", hook: "forward", type: "filter", prio: 0, policy, handle: 1 } },
      ...Object.entries(chains).flatMap(([chain, rules]) =>
        rules.map((expr, handle) => ({ rule: { ...at, chain, handle, expr } }))
      )
    ]
  })).pipe(Effect.map((listing) => {
    const [chain] = ForwardRules.forwarding(listing)
    return chain === undefined ? assert.fail("no chain") : ForwardRules.drops(listing, chain)
  }))
}

describe("a chain of nftables", () => {
  it.effect.each<[string, boolean, string, Readonly<Record<string, Rules>>]>([
    ["with no rule", false, "accept", {}],
    ["that drops by policy", true, "drop", {}],
    ["that drops at its end", true, "accept", {
      FORWARD: [[state({ set: ["established"] }), accept], [counter, drop]]
    }],
    ["that rejects as iptables does", true, "accept", {
      FORWARD: [[xt("match", "comment"), counter, xt("target", "REJECT")]]
    }],
    ["that drops something", false, "accept", { FORWARD: [[link("iifname", "eth0"), drop], [state("invalid"), drop]] }],
    ["that accepts both ways", false, "drop", { FORWARD: [from, to] }],
    ["that accepts one way", true, "drop", { FORWARD: [from] }],
    ["that accepts the other way", true, "drop", { FORWARD: [to] }],
    ["that accepts us and answers", false, "drop", {
      FORWARD: [[state(["established", "related"]), accept], from]
    }],
    ["that accepts us and answers, as iptables says it", false, "drop", {
      FORWARD: [[xt("match", "conntrack"), counter, accept], from]
    }],
    ["that accepts some answers", true, "drop", {
      FORWARD: [[link("oifname", "docker0"), xt("match", "conntrack"), accept], from]
    }],
    ["that accepts too late", true, "accept", { FORWARD: [[drop], from, to] }],
    ["that accepts others", true, "drop", {
      FORWARD: [[link("iifname", "mvx*"), accept], [link("oifname", "mv"), accept]]
    }],
    ["that accepts more than us", false, "drop", {
      FORWARD: [[link("iifname", "m*"), accept], [link("oifname", "*"), accept]]
    }],
    ["that accepts all", false, "drop", { FORWARD: [[counter, accept]] }],
    ["that accepts us in another chain", false, "drop", {
      FORWARD: [[counter, jump("USER")]],
      USER: [from, to, [back]]
    }],
    ["that returns before", true, "drop", { FORWARD: [[jump("USER")]], USER: [[back], from, to] }],
    ["that may not come there", true, "drop", { FORWARD: [[link("iifname", "eth0"), jump("USER")]], USER: [from, to] }],
    ["that goes away for good", true, "drop", { FORWARD: [[go("USER")], from, to], USER: [] }],
    ["that drops in another chain", true, "accept", { FORWARD: [[jump("USER")]], USER: [[drop]] }],
    ["that goes in circles", true, "drop", { FORWARD: [[jump("USER")]], USER: [[jump("FORWARD")]] }]
  ])("%s", ([, expected, policy, chains]) =>
    Effect.gen(function*() {
      assert.strictEqual(yield* drops(policy, chains), expected)
    }))

  it.effect("is none of ours, no bridge's, and sees what is forwarded", () =>
    Effect.gen(function*() {
      const chain = { family: "inet", table: "t", name: "c", hook: "forward", policy: "drop" }
      const listing = yield* ForwardRules.decode(JSON.stringify({
        nftables: [chain, { ...chain, table: "effect-microvm-mv1" }, { ...chain, family: "bridge" }, {
          ...chain,
          hook: "input"
        }].map((one) => ({ chain: one }))
      }))
      assert.deepStrictEqual(ForwardRules.forwarding(listing), [chain])
    }))
})

describe("the chain of the old iptables", () => {
  it.each<[boolean, ReadonlyArray<string>]>([
    [false, ["-P FORWARD ACCEPT"]],
    [true, ["-P FORWARD DROP"]],
    [true, ["-P FORWARD ACCEPT", "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"]],
    [false, ["-P FORWARD DROP", "-A FORWARD -i mv+ -j ACCEPT", "-A FORWARD -o mv+ -j ACCEPT"]],
    [true, ["-P FORWARD DROP", "-A FORWARD -i mv+ -j ACCEPT"]],
    [true, ["-P FORWARD DROP", "-A FORWARD -i mv+ -j DROP", "-A FORWARD -o mv+ -j ACCEPT"]],
    [false, [
      "-P FORWARD DROP",
      "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
      "-A FORWARD -i mv+ -j ACCEPT"
    ]]
  ])("drops: %s", (expected, lines) => {
    assert.strictEqual(ForwardRules.legacyDrops(`${lines.join("\n")}\n`), expected)
  })
})
