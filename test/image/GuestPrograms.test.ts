/** The guest's machine code, run on the host where that can be done without harm. */
import { GuestPrograms } from "effect-microvm-runtime/image"
import { spawn, spawnSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { hostname as osHostname, tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import * as RenewalCalls from "../../src/guest/internal/renewalCalls.ts"
import * as SystemCalls from "../../src/guest/internal/systemCalls.ts"

const programs = Object.entries(GuestPrograms)
const nonce = "0123456789abcdef".repeat(2)

describe("GuestPrograms", () => {
  it.each(programs)("%s is an ELF file that is loaded whole and starts within", (_, bytes) => {
    const view = new DataView(bytes.buffer)
    expect(new TextDecoder().decode(bytes.subarray(1, 4))).toBe("ELF")
    // The types of the file and the processor, the entry, and one program header.
    expect([view.getUint16(16, true), view.getUint16(18, true), view.getUint16(56, true)]).toEqual([2, 62, 1])
    const headers = Number(view.getBigUint64(32, true))
    const [offset, address, , inFile, inMemory] = [8, 16, 24, 32, 40].map((at) =>
      Number(view.getBigUint64(headers + at, true))
    )
    expect([offset, inFile, inMemory]).toEqual([0, bytes.length, bytes.length])
    expect(Number(view.getBigUint64(24, true)) - (address ?? 0)).toBe(64 + 56)
    // Readable and executable.
    expect(view.getUint32(headers + 4, true)).toBe(5)
  })
})

const here = process.platform === "linux" && process.arch === "x64"
if (!here) console.warn("skipped: running the guest's programs: not on Linux on x86-64")

describe.skipIf(!here)(`the programs${here ? "" : " (skipped: not on Linux on x86-64)"}`, () => {
  const directory = mkdtempSync(join(tmpdir(), "programs-"))
  const path = (name: string) => join(directory, name)
  beforeAll(() => {
    // Not the one that would end this host.
    for (const [name, bytes] of programs.filter(([one]) => one !== "shutdown")) {
      writeFileSync(path(name), bytes, { mode: 0o755 })
    }
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  describe("resident", () => {
    // Never the call that powers off: it would end all processes of this host.
    const spawnCall = 0xfffe
    const uname: SystemCalls.Call = { what: "uname", number: 63, args: [{ room: 390 }] }

    it("says that it waits, and ends with its input, or with one that is none", () => {
      const { input } = SystemCalls.make([uname])
      for (const bytes of [new Uint8Array(0), input.subarray(0, -1), input.with(4, 0), Buffer.concat([input, input])]) {
        const { status, stdout } = spawnSync(path("resident"), { input: bytes })
        expect([status, stdout.toString()]).toEqual([1, "waits\n"])
      }
    })

    it("makes calls again and again, in a memory that is zero each time, and starts programs", async () => {
      const program = spawn(path("resident"), { stdio: ["pipe", "pipe", "inherit"] })
      let heard: Uint8Array = new Uint8Array(0)
      program.stdout.on("data", (part: Buffer) => void (heard = Buffer.concat([heard, part])))
      const ask = async (calls: ReadonlyArray<SystemCalls.Call>) => {
        const mark = randomBytes(16)
        const { input, outputBytes, read } = SystemCalls.make(calls, { mark })
        heard = new Uint8Array(0)
        // In parts, as a port may give them.
        program.stdin.write(input.subarray(0, 20))
        await new Promise((resolve) => setTimeout(resolve, 20))
        program.stdin.write(input.subarray(20))
        await expect.poll(() => heard.length, { timeout: 10_000 }).toBe(outputBytes)
        expect(Buffer.from(heard.subarray(0, 16))).toEqual(mark)
        return read(heard)
      }
      await expect.poll(() => Buffer.from(heard).toString(), { timeout: 10_000 }).toBe("waits\n")
      const name = { room: 390 }
      const first = await ask([{ what: "uname", number: 63, args: [name] }])
      expect(Buffer.from(first.bytes(name)).toString()).toContain(osHostname())
      const untouched = { room: 390 }
      expect((await ask([{ what: "none", number: 999, args: [untouched] }])).bytes(untouched).some(Boolean)).toBe(false)

      const word = randomBytes(8).toString("hex")
      const file = path("spawned")
      const made: SystemCalls.Call = {
        what: "spawn",
        number: spawnCall,
        args: [
          Buffer.from("/bin/sh\0"),
          { words: ["sh", "-c", "echo $WORD $1 >$0; exit 7", file, "last"] },
          { words: [`WORD=${word}`] }
        ]
      }
      const none: SystemCalls.Call = { ...made, args: [Buffer.from("/no/such\0"), { words: ["a"] }, { words: [] }] }
      for (const [call, code] of [[made, 7], [none, 127]] as const) {
        const pid = (await ask([call])).result(call)
        expect(pid).toBeGreaterThan(1)
        const status = { room: 8 }
        // Without WNOHANG, so it is waited for.
        const wait: SystemCalls.Call = { what: "wait4", number: 61, args: [pid, status, 0] }
        const ended = await ask([wait])
        expect([ended.result(wait), ended.bytes(status)[1]]).toEqual([pid, code])
        expect((await ask([wait])).result(wait)).toBe(-10)
      }
      expect(readFileSync(file, "utf8")).toBe(`${word} last\n`)
      program.stdin.end()
      expect(await new Promise((resolve) => program.on("close", resolve))).toBe(1)
    })
  })

  describe("syscalls", () => {
    const run = (input: Uint8Array) => spawnSync(path("syscalls"), { input })
    const make = (calls: ReadonlyArray<SystemCalls.Call>) => {
      const batch = SystemCalls.make(calls)
      const { status, stdout } = run(batch.input)
      expect([status, stdout.length]).toEqual([0, batch.outputBytes])
      return batch.read(stdout)
    }
    const uname: SystemCalls.Call = { what: "uname", number: 63, args: [{ room: 390 }] }

    it("says 1 and does nothing when its input is not as long as it says", () => {
      const { input } = SystemCalls.make([uname])
      const none = input.with(4, 0)
      const long = new Uint8Array(5000)
      new DataView(long.buffer).setUint32(0, long.length, true)
      for (const bytes of [new Uint8Array(0), input.subarray(0, -1), Buffer.concat([input, none]), none, long]) {
        const { status, stdout } = run(bytes)
        expect([status, stdout.length]).toEqual([1, 0])
      }
    })

    it("makes calls one after the other, and tells what they gave and filled", () => {
      const file = path("file")
      const open = (flags: number): SystemCalls.Call => ({
        what: "open",
        number: 2,
        args: [Buffer.from(`${file}\0`), flags, 0o600]
      })
      const close = (): SystemCalls.Call => ({ what: "close", number: 3, args: [3] })
      const room = { room: 10 }
      const calls: ReadonlyArray<SystemCalls.Call> = [
        open(0),
        open(0o101),
        { what: "write", number: 1, args: [3, Buffer.from("words"), 5] },
        close(),
        close(),
        { what: "no such call", number: 999, args: [1, 2, 3] },
        open(0),
        { what: "read", number: 0, args: [3, room, 10] },
        uname
      ]
      const told = make(calls)
      expect(calls.map(told.result)).toEqual([-2, 3, 5, 0, -9, -38, 3, 5, 0])
      expect(Buffer.from(told.bytes(room)).toString()).toBe("words\0\0\0\0\0")
    })

    it("reads its input in parts", async () => {
      const { input, outputBytes } = SystemCalls.make([uname])
      const program = spawn(path("syscalls"), { stdio: ["pipe", "pipe", "inherit"] })
      let told = 0
      program.stdout.on("data", (part: Buffer) => void (told += part.length))
      // The first part ends within the length of the whole.
      for (const [from, to] of [[0, 1], [1, 30], [30, input.length]] as const) {
        program.stdin.write(input.subarray(from, to))
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      program.stdin.end()
      const code = await new Promise((resolve) => program.on("close", resolve))
      expect([code, told]).toEqual([0, outputBytes])
    })

    it("reads back what the kernel of this host is", () => {
      const all = RenewalCalls.readBack.flatMap(({ calls }) => calls)
      const told = make(all)
      const { bootId, hostname, interfaces } = RenewalCalls.read(told)
      expect(hostname).toBe(osHostname())
      expect(bootId).toBe(readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim())
      const others = readdirSync("/sys/class/net").filter((name) => name !== "lo")
      expect(others).toEqual(expect.arrayContaining([...interfaces]))
      expect(interfaces.length > 0).toBe(others.length > 0)
    })

    it("corrects the clock by nothing and seeds the generator, or tells which of them was refused", (test) => {
      if (!mayCall()) {
        console.warn("skipped: the system calls of a renewal: not permitted here")
        return test.skip("not permitted here")
      }
      const seed = randomBytes(RenewalCalls.seedBytes)
      const steps = [RenewalCalls.seed(seed), RenewalCalls.clock(0n)]
      const { input, outputBytes } = SystemCalls.make(steps.flatMap(({ calls }) => calls))
      const { stdout } = run(input)
      expect([stdout.length, stdout.includes(seed.subarray(0, 8))]).toEqual([outputBytes, false])
      expect(RenewalCalls.faultsOf(steps, make(steps.flatMap(({ calls }) => calls)))).toEqual([])

      // Less than no entropy, and nanoseconds that are negative.
      const broken = [RenewalCalls.seed(seed), RenewalCalls.clock(0n)]
      const argument = (step: number, call: number, nth: number) => {
        const found = broken[step]?.calls[call]?.args[nth]
        if (!(found instanceof Uint8Array)) throw new Error("no bytes")
        return new DataView(found.buffer)
      }
      argument(0, 1, 2).setInt32(0, -1, true)
      argument(1, 0, 0).setBigInt64(80, -1n, true)
      expect(RenewalCalls.faultsOf(broken, make(broken.flatMap(({ calls }) => calls)))).toEqual([
        "seed: RNDADDENTROPY failed with errno 22",
        "clock: adjtimex failed with errno 22"
      ])
    })

    const CAP_SYS_ADMIN = 21n
    const CAP_SYS_TIME = 25n
    const mayCall = () => {
      const status = readFileSync("/proc/self/status", "utf8")
      const has = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(status)?.[1] ?? "0"}`)
      // In a user namespace of its own, a process has them all, and may still not.
      const real = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"))
      return real && [CAP_SYS_ADMIN, CAP_SYS_TIME].every((one) => (has >> one) % 2n === 1n)
    }
  })

  describe("exec", () => {
    const run = (...args: ReadonlyArray<string>) => {
      const { status, stderr, stdout } = spawnSync(path("exec"), args, { encoding: "utf8" })
      return [status, stdout, stderr]
    }
    const usage = "microvm-exec: usage: microvm-exec [-C DIR] SLOT NONCE -- COMMAND [ARGUMENT...]\n"

    it.each([
      [[]],
      [["0", nonce, "--"]],
      [["0", nonce, "-", "true"]],
      [["0", nonce, "true", "--"]],
      [["0", nonce.slice(1), "--", "true"]],
      [["0", `${nonce}0`, "--", "true"]],
      [["0", nonce.toUpperCase(), "--", "true"]],
      [["0", nonce.replace("9", "g"), "--", "true"]],
      [["0", nonce.replace("9", ":"), "--", "true"]],
      [["", nonce, "--", "true"]],
      [["a", nonce, "--", "true"]],
      [["12345", nonce, "--", "true"]],
      [["-C", "/", "0", nonce, "--"]],
      [["-C", "/"]]
    ])("%j is no use of it", (args) => {
      expect(run(...args)).toEqual([125, "", usage])
    })

    it("names the directory that cannot be entered, before it looks for a port", () => {
      expect(run("-C", "/no/such", "0", nonce, "--", "true")).toEqual([
        126,
        "",
        "microvm: /no/such: the directory cannot be entered\n"
      ])
    })

    it("names the port that is not there", () => {
      expect(run("-C", "/", "4711", nonce, "--", "true")).toEqual([
        125,
        "",
        "microvm: microvm.4711.stdout: there is no such port\n"
      ])
    })
  })
})
