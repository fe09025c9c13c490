/** The guest's machine code, run on the host where that can be done without harm. */
import { GuestPrograms } from "effect-microvm-runtime/image"
import { spawn, spawnSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import * as RefreshBlock from "../../src/guest/internal/refreshBlock.ts"

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
    for (const [name, bytes] of programs) writeFileSync(path(name), bytes, { mode: 0o755 })
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  describe("refresh", () => {
    const CAP_SYS_ADMIN = 21n
    const CAP_SYS_TIME = 25n
    const mayCall = () => {
      const status = readFileSync("/proc/self/status", "utf8")
      const has = BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(status)?.[1] ?? "0"}`)
      // In a user namespace of its own, a process has them all, and may still not.
      const real = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"))
      return real && [CAP_SYS_ADMIN, CAP_SYS_TIME].every((one) => (has >> one) % 2n === 1n)
    }
    const run = (input: Uint8Array) => spawnSync(path("refresh"), { input }).status
    const blockWith = (change: (view: DataView) => void) => {
      const block = RefreshBlock.make(0n, randomBytes(RefreshBlock.seedBytes))
      change(new DataView(block.buffer))
      return block
    }

    it("takes its input whole, or says 1", () => {
      const block = blockWith(() => {})
      expect([run(new Uint8Array(0)), run(block.subarray(0, 279))]).toEqual([1, 1])
    })

    it("corrects the clock by nothing and seeds the generator, or says which of them was refused", (test) => {
      if (!mayCall()) {
        console.warn("skipped: the system calls of microvm-refresh: not permitted here")
        return test.skip("not permitted here")
      }
      expect(run(blockWith(() => {}))).toBe(0)
      // Less than no entropy, and nanoseconds that are negative.
      expect(run(blockWith((view) => view.setInt32(208, -1, true)))).toBe(3)
      expect(run(blockWith((view) => view.setBigInt64(80, -1n, true)))).toBe(5)
    })

    it("reads no further than its input, which may come in parts", async () => {
      const block = blockWith((view) => view.setInt32(208, -1, true))
      const script = `"$0"; echo $?; cat`
      const shell = spawn("sh", ["-c", script, path("refresh")], { stdio: ["pipe", "pipe", "inherit"] })
      let said = ""
      shell.stdout.on("data", (part) => void (said += String(part)))
      for (let at = 0; at < block.length; at += 100) {
        shell.stdin.write(block.subarray(at, at + 100))
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      shell.stdin.end("the rest")
      await new Promise((resolve) => shell.on("close", resolve))
      expect(said).toMatch(/^[23]\nthe rest$/)
    })
  })

  describe("drain", () => {
    it("copies any number of bytes, then writes the trailer", () => {
      for (const length of [0, 1, 65536, 1_000_003]) {
        const input = randomBytes(length)
        const { status, stdout } = spawnSync(path("drain"), [nonce], { input, maxBuffer: 2 ** 21 })
        expect([status, stdout.subarray(length).toString()]).toEqual([0, `\0${nonce}\n`])
        const digest = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex")
        expect(digest(stdout.subarray(0, length))).toBe(digest(input))
      }
    })

    it("ends when nobody reads", () => {
      const script = `yes | "$0" ${nonce} | head -c 5`
      const { status, stdout } = spawnSync("sh", ["-c", script, path("drain")], { encoding: "utf8", timeout: 10_000 })
      expect([status, stdout]).toEqual([0, "y\ny\ny"])
    })
  })

  describe("start", () => {
    it("runs a file under another name with its arguments and environment, in a session of its own", () => {
      const script = "echo $0 \"$@\"; echo $X; cut -d ' ' -f 1,5,6 /proc/self/stat; echo $$"
      const { status, stdout } = spawnSync(path("start"), ["/bin/sh", "name", "-c", script, "zero", "a b", ""], {
        encoding: "utf8",
        env: { X: "x y", PATH: "/usr/bin:/bin" }
      })
      const [words, x, ids = "", pid] = stdout.split("\n")
      expect([status, words, x]).toEqual([0, "zero a b ", "x y"])
      // cut(1) is another process of the same group and session.
      expect(ids.split(" ").slice(1)).toEqual([pid, pid])
    })

    it("opens its streams up to any user", () => {
      const { stdout } = spawnSync("sh", [
        "-c",
        `true | "$0" /bin/sh sh -c 'stat -L -c %a /dev/stdin /dev/stderr' 2>&1 | cat`,
        path("start")
      ], { encoding: "utf8" })
      expect(stdout).toBe("666\n666\n")
    })

    it("fails when there is no such file", () => {
      const { status } = spawnSync(path("start"), ["/no/such/file", "file"])
      // Where there is a busybox, it cannot read a script that is the guest's, and says 2 or 127.
      expect(existsSync("/bin/busybox") ? [2, 126, 127] : [126]).toContain(status)
    })
  })
})
