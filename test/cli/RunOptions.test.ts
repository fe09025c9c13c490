import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as RunOptions from "../../src/cli/RunOptions.ts"
import * as EgressRule from "../../src/host/EgressRule.ts"
import * as DurationText from "../../src/lifecycle/DurationText.ts"
import { flags, optionsOf } from "./world.ts"

const faultsOf = (some: Partial<RunOptions.RunFlags>): ReadonlyArray<string> => {
  const result = RunOptions.fromFlags({ ...flags, ...some })
  return Result.isFailure(result) ? result.failure.faults : []
}

describe("a duration", () => {
  const good: ReadonlyArray<readonly [text: string, millis: number]> = [
    ["500ms", 500],
    ["0s", 0],
    ["3s", 3000],
    ["3 s", 3000],
    [" 3s ", 3000],
    ["1.5m", 90_000],
    ["0.001s", 1],
    ["2h", 7_200_000],
    ["1d", 86_400_000],
    ["30d", 2_592_000_000],
    ["1 milli", 1],
    ["10 millis", 10],
    ["1 second", 1000],
    ["3 seconds", 3000],
    ["2 minutes", 120_000],
    ["1 hour", 3_600_000],
    ["7 days", 604_800_000]
  ]
  it.each(good)("%j is %d ms", (text, millis) => {
    assert.strictEqual(Duration.toMillis(Option.getOrThrow(DurationText.parse(text))), millis)
  })

  const bad = [
    "",
    "3",
    "s",
    "-3s",
    "+3s",
    "3S",
    "1e3s",
    "1,5s",
    ".5s",
    "5.s",
    "1.2345s",
    "3  s",
    "1m30s",
    "3 sec",
    "3 y",
    "Infinity",
    "1234567890s",
    "3s\n4s",
    "٣s"
  ]
  it.each(bad)("%j is none", (text) => assert.deepStrictEqual(DurationText.parse(text), Option.none()))
})

describe("flags", () => {
  it("become options", () => {
    const result = RunOptions.fromFlags({
      ...flags,
      backend: "qemu",
      name: Option.some("web-1"),
      vcpus: Option.some(2),
      memory: Option.some(512),
      image: Option.some("big"),
      env: ["A=1"],
      workdir: Option.some("/srv"),
      timeout: Option.some("3s"),
      grace: "1m",
      watchdog: Option.some("30s"),
      command: ["sh", "-c", "true"]
    })
    assert.deepStrictEqual(Result.getOrThrow(result), {
      backend: "qemu",
      name: Option.some("web-1"),
      vcpus: 2,
      memoryMib: 512,
      image: "big",
      start: "cold",
      env: { A: "1" },
      workdir: Option.some("/srv"),
      network: { _tag: "None" },
      detach: false,
      timeout: Option.some(Duration.seconds(3)),
      grace: Duration.minutes(1),
      watchdog: Option.some(Duration.seconds(30)),
      command: ["sh", "-c", "true"]
    })
  })

  it("say what a guest with a network may reach", () => {
    const { network } = optionsOf({ network: "nat", allow: ["10.0.0.0/8:443/tcp", "example.com"] })
    assert.deepStrictEqual(network._tag === "Nat" && network.allow.map(EgressRule.format), [
      "10.0.0.0/8:443/tcp",
      "example.com"
    ])
    assert.deepStrictEqual(optionsOf({ network: "nat" }).network, { _tag: "Nat", allow: [] })
  })

  it("refuse rules without a network, rules that are none, and a report of what goes on", () => {
    assert.deepStrictEqual(
      faultsOf({ allow: ["10.0.0.1/8", "10.0.0.0/8:443"], detach: true, json: true }).map((one) => one.slice(0, 40)),
      [
        "--allow \"10.0.0.1/8\" is not possible: gi",
        "--allow \"10.0.0.0/8:443\" is not possible",
        "--allow is for a guest with a network: w",
        "--json is the report of a run that has e"
      ]
    )
  })

  it("have all their faults told at once, each with what to do", () => {
    const faults = faultsOf({
      backend: "firecracker",
      name: Option.some("bad_"),
      vcpus: Option.some(99),
      memory: Option.some(1),
      env: ["A", "1B=x", "C=\0"],
      workdir: Option.some(""),
      timeout: Option.some("0s"),
      grace: "soon",
      watchdog: Option.some("999ms"),
      network: "nat",
      allow: ["tcp:443"],
      command: []
    })
    assert.deepStrictEqual(faults.toSorted(), [
      `--allow "tcp:443" is not possible: say by which protocol: tcp:443/tcp or tcp:443/udp`,
      "--env A has no value: write A=VALUE, or set A in our environment",
      "--env C holds a NUL byte: remove it",
      `--env name "1B" is not valid: use letters, digits and _, no digit first`,
      `--grace "soon" is no duration above zero: write 500ms, 30s, 5m or 2h`,
      "--memory 1 is not possible: give a whole number of MiB from 96 to 1048576",
      `--name "bad_" is not possible: give 1 to 64 letters, digits and "-", the first and the last no "-"`,
      `--timeout "0s" is no duration above zero: write 500ms, 30s, 5m or 2h`,
      "--vcpus 99 is not possible: give a whole number from 1 to 32",
      `--watchdog "999ms" is no duration of a second or more: write 30s, 5m or 2h`,
      "--workdir is empty: name a directory of the guest",
      "no command: write it after --, as in microvm run -- uname -a"
    ])
  })

  const starts: ReadonlyArray<readonly [flags: Partial<RunOptions.RunFlags>, start: RunOptions.RunOptions["start"]]> = [
    [{ cold: false }, "warm"],
    [{ cold: true }, "cold"],
    [{ cold: false, from: Option.some("ready") }, { from: "ready" }]
  ]
  it.each(starts)("%j say how the machine comes up", (some, start) => {
    assert.deepStrictEqual(optionsOf(some).start, start)
    assert.deepInclude(optionsOf(some), { vcpus: 1, memoryMib: 256, image: "default" })
  })

  it("refuse what is a part of a snapshot beside --from", () => {
    const [vcpus, memory, image] = [Option.some(1), Option.some(256), Option.some("default")]
    const parts = ["vcpus", "memory", "image"].map((flag) =>
      `--${flag} is a part of the snapshot: leave it out, or leave out --from`
    )
    assert.deepStrictEqual(faultsOf({ from: Option.some("ready"), cold: true, vcpus, memory, image }), [
      ...parts,
      "--cold and --from exclude each other: leave one of them out"
    ])
    assert.deepStrictEqual(faultsOf({ from: Option.some(""), cold: false }), [
      "--from is empty: name a snapshot, as microvm snapshot ls lists them"
    ])
  })

  it.each(["", "-a", "a-", "a.b", "a b", "ä", "a".repeat(65)])("refuse the name %j once", (name) => {
    assert.match(faultsOf({ name: Option.some(name) }).join("\n"), /^--name .* is not possible: [^\n]*$/)
  })

  it.each(["a", "1", "A-1", "a".repeat(64)])("take the name %j", (name) => {
    assert.deepStrictEqual(faultsOf({ name: Option.some(name) }), [])
  })

  it("refuse an empty program, and NUL bytes anywhere", () => {
    assert.deepStrictEqual(faultsOf({ command: ["", "x"] }), ["the command is empty: name a program after --"])
    assert.deepStrictEqual(faultsOf({ command: ["a", "b\0"] }), ["the command holds a NUL byte: remove it"])
  })
})

describe("--env", () => {
  const envOf = (...env: ReadonlyArray<string>) => Result.getOrThrow(RunOptions.fromFlags({ ...flags, env })).env

  it("splits at the first =, keeps the value as it is, and the last of a name counts", () => {
    assert.deepStrictEqual(envOf("A=b=c", "E=", "S= x\ny ", "_=1", "A=2"), { A: "2", E: "", S: " x\ny ", _: "1" })
  })

  it("takes names that objects have already", () => {
    const env = envOf("__proto__=1", "constructor=2", "toString=3")
    assert.deepStrictEqual(Object.entries(env), [["__proto__", "1"], ["constructor", "2"], ["toString", "3"]])
  })

  const secret = "hunter2!"
  it.each([`1A=${secret}`, `A B=${secret}`, `=${secret}`, `A=${secret}\0`, secret, `A:${secret}`])(
    "never tells a value: %j",
    (pair) => {
      const faults = faultsOf({ env: [pair] })
      assert.lengthOf(faults, 1)
      assert.notInclude(faults.join(), "hunter")
      assert.match(faults.join(), /^--env /)
    }
  )
})
