/** Builds the real image from real packages, and boots it. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { ImageStore, NodeImageStore } from "effect-microvm-runtime/image"
import { MachineEnd } from "effect-microvm-runtime/microvm"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { spawn, spawnSync } from "node:child_process"
import { createHash, randomBytes } from "node:crypto"
import { once } from "node:events"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { isDeepStrictEqual } from "node:util"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { boot } from "./guest.ts"

const MINUTES = 60_000

const missing = ["apt-get", "dpkg-deb", "qemu-system-x86_64"].filter((command) =>
  spawnSync(command, ["--version"]).error !== undefined
)

const ensureIn = (directory: string) =>
  Effect.runPromise(
    ImageStore.ImageStore.use((images) => images.ensure()).pipe(
      Effect.provide(NodeImageStore.layerAt({ directory }).pipe(Layer.provide(NodeServices.layer)))
    )
  )

/** The processes that unpack a package below it. */
const unpacking = (directory: string) =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((name) => {
    try {
      const line = readFileSync(join("/proc", name, "cmdline"), "utf8")
      return /(^|\/)dpkg-deb\0/.test(line) && line.includes(directory) ? [Number(name)] : []
    } catch {
      return []
    }
  })

const until = async (what: string, holds: () => boolean) => {
  for (const start = Date.now(); !holds();) {
    if (Date.now() - start > MINUTES) throw new Error(`${what}: not within a minute`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

if (missing.length > 0) console.warn(`skipped: the default image: no ${missing.join(", ")}`)

describe.skipIf(missing.length > 0)(
  `the default image${missing.length > 0 ? ` (skipped: no ${missing.join(", ")})` : ""}`,
  () => {
    const root = mkdtempSync(join(tmpdir(), "image-"))
    let image: ImageStore.Image
    beforeAll(async () => {
      image = await ensureIn(join(root, "a"))
    }, 5 * MINUTES)
    afterAll(() => rmSync(root, { recursive: true, force: true }))

    it("is the same wherever it is built, and nothing else is left", async () => {
      const again = await ensureIn(join(root, "b"))
      expect(again.digest).toBe(image.digest)
      expect(again.manifest).toEqual(image.manifest)
      expect(readdirSync(join(root, "b")).toSorted()).toEqual(["images", "names", "tmp"])
      expect(readdirSync(join(root, "b", "tmp"))).toEqual([])
    }, 5 * MINUTES)

    it("is built by the next one when its builder is killed", async () => {
      const directory = join(root, "c")
      const builder = spawn(process.execPath, [join(import.meta.dirname, "builder.fixture.ts"), directory])
      const ended = once(builder, "exit")
      let steps = ""
      builder.stdout.on("data", (part) => void (steps += String(part)))
      try {
        await until("the kernel's package", () => steps.includes("\"package\":\"linux-image"))
        await until("what unpacks it", () => unpacking(directory).length > 0)
        // By itself, it does not end now.
        for (const pid of unpacking(directory)) process.kill(pid, "SIGSTOP")
      } finally {
        builder.kill("SIGKILL")
        await ended
      }
      try {
        await until("what it had started is gone", () => unpacking(directory).length === 0)
        await until("what it was at is gone", () => readdirSync(join(directory, "tmp")).length === 0)
      } finally {
        for (const pid of unpacking(directory)) process.kill(pid, "SIGKILL")
      }
      expect(readdirSync(directory)).toContain("lock")
      expect((await ensureIn(directory)).digest).toBe(image.digest)
      expect(readdirSync(directory).toSorted()).toEqual(["images", "names", "tmp"])
      expect(readdirSync(join(directory, "tmp"))).toEqual([])
    }, 5 * MINUTES)

    describe("in a guest", () => {
      let guest: Awaited<ReturnType<typeof boot>>
      beforeAll(async () => {
        guest = await boot(image)
      }, 2 * MINUTES)
      afterAll(() => guest.kill())

      it("runs the image's kernel under its host name", async () => {
        const { out } = await guest.run(["uname", "-rn"])
        expect(out.toString()).toBe(`testguest ${image.kernelRelease}\n`)
      })

      it("keeps the streams apart, and the exit code", async () => {
        const end = await guest.run(["sh", "-c", "cat; echo err >&2; exit 7"], { stdin: Buffer.from("in\0\n") })
        expect([end.code, end.out.toString(), end.err]).toEqual([7, "in\0\n", "err\n"])
      })

      it("lets a command open its streams again", async () => {
        const script = "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin"
        const end = await guest.run(["sh", "-c", script], { stdin: Buffer.from("in\n") })
        expect([end.code, end.out.toString(), end.err]).toEqual([0, "out\nin\n", "err\n"])
        const nobody = await guest.run(["su", "nobody", "-s", "/bin/sh", "-c", "id -u >/dev/stderr"])
        expect([nobody.code, nobody.err]).toEqual([0, "65534\n"])
      })

      it("tells signals from exit codes, and starts commands with default dispositions", async () => {
        expect(await guest.run(["sh", "-c", "kill -SEGV $$"])).toMatchObject({ signal: 11 })
        expect(await guest.run(["sh", "-c", "kill -INT $$"])).toMatchObject({ signal: 2 })
      })

      it("tells what cannot be run", async () => {
        const absent = await guest.run(["no-such-command"])
        expect([absent.code, absent.faults]).toEqual([127, ""])
        expect(absent.err).toContain("no-such-command: not found")
        const data = await guest.run(["/etc/passwd"])
        expect([data.code, data.faults]).toEqual([126, ""])
        expect(data.err).toContain("/etc/passwd")
        const nowhere = await guest.run(["pwd"], { directory: "/nowhere" })
        expect([nowhere.code, nowhere.err]).toEqual([126, ""])
        expect(nowhere.faults).toContain("/nowhere")
      })

      it("passes arguments, environment and directory on as they are", async () => {
        const words = ["a b", "", "*", "$x", "'", "é", "-n"]
        const { out } = await guest.run(["printf", "<%s>", ...words])
        expect(out.toString()).toBe(words.map((word) => `<${word}>`).join(""))
        const env = ["PATH=/bin:/usr/bin", "no-identifier=0", "slot=1", "nonce=2", "port=3", "line=4"]
        const seen = (await guest.run(["env"], { env })).out.toString().trim().split("\n")
        expect(seen).toEqual(expect.arrayContaining(env))
        expect((await guest.run(["pwd"], { directory: "/usr/bin" })).out.toString()).toBe("/usr/bin\n")
      })

      it("runs the file that the PATH names, under its own name", async () => {
        const shadowed = "mkdir /tmp/bin; printf '#!/bin/sh\\necho mine\\n' >/tmp/bin/ls; chmod +x /tmp/bin/ls"
        await guest.run(["sh", "-c", shadowed])
        expect((await guest.run(["ls"], { env: ["PATH=/tmp/bin:/bin"] })).out.toString()).toBe("mine\n")
        expect((await guest.run(["ls"], { env: ["HOME=/root"] })).out.toString()).toContain("proc")
        const script = "mkdir -p /tmp/bin; echo 'echo $0 $*' >/tmp/bin/plain; chmod +x /tmp/bin/plain; : >/tmp/bin/data"
        await guest.run(["sh", "-c", script])
        const plain = await guest.run(["plain", "a", "b"], { env: ["PATH=/nowhere::/tmp/bin:/bin"] })
        expect([plain.code, plain.out.toString()]).toEqual([0, "/tmp/bin/plain a b\n"])
        const data = await guest.run(["data"], { env: ["PATH=/tmp/bin:/bin"] })
        expect([data.code, data.err]).toEqual([127, "microvm: data: not found in PATH\n"])
        expect((await guest.run(["cat", "/proc/self/cmdline"])).out.toString()).toBe("cat\0/proc/self/cmdline\0")
      })

      it("carries 16 MiB there and back whole", async () => {
        const stdin = randomBytes(16 * 1024 * 1024)
        const { code, out } = await guest.run(["cat"], { stdin })
        const digest = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex")
        expect([code, out.length, digest(out)]).toEqual([0, stdin.length, digest(stdin)])
      }, 2 * MINUTES)

      it("ends the input of a command that stops reading, and is ready for the next", async () => {
        const { code, out } = await guest.run(["head", "-c", "3"], { stdin: Buffer.from("abc\ndef\n") })
        expect([code, out.toString()]).toEqual([0, "abc"])
        expect((await guest.run(["cat"], { stdin: Buffer.from("next") })).out.toString()).toBe("next")
      })

      it("gives the command no children that it has not started, and reaps orphans", async () => {
        const children = await guest.run(["sh", "-c", "cat /proc/$$/task/*/children; (sleep 0.01 &); exit 0"])
        // Only the cat itself.
        expect(children.out.toString().trim().split(/\s+/)).toHaveLength(1)
        const zombies =
          "i=0; while grep -q 'State:.Z' /proc/[0-9]*/status; do i=$((i+1)); [ $i -gt 50 ] && exit 1; sleep 0.1; done"
        expect((await guest.run(["sh", "-c", zombies])).code).toBe(0)
      })

      it("starts the agent again when it dies", async () => {
        const opened = () => guest.qmp.events.flatMap(({ data, event }) => event === "VSERPORT_CHANGE" ? [data] : [])
        await guest.agent.ask("guest-exec", { path: "/bin/sh", arg: ["-c", "usleep 200000; kill -9 $(pidof qemu-ga)"] })
        await until("its end", () => opened().some((one) => isDeepStrictEqual(one, { id: "p0", open: false })))
        await until("its return", () => isDeepStrictEqual(opened().at(-1), { id: "p0", open: true }))
        expect(await guest.agent.ask("guest-sync", { id: 99 })).toBe(99)
      }, 2 * MINUTES)
    })

    const ends: ReadonlyArray<readonly [string, (guest: Awaited<ReturnType<typeof boot>>) => unknown, string]> = [
      ["the agent's power-off", (guest) => guest.agent.send("guest-shutdown", { mode: "powerdown" }), "guest-shutdown"],
      ["the agent's reboot", (guest) => guest.agent.send("guest-shutdown", { mode: "reboot" }), "guest-reset"],
      ["the power button", (guest) => guest.qmp.ask("system_powerdown"), "guest-shutdown"],
      ["a panic", (guest) => guest.start(["sh", "-c", "echo c >/proc/sysrq-trigger"]), "guest-panic"]
    ]
    it.each(ends)("goes down in order: %s", async (_, end, reason) => {
      const guest = await boot(image)
      try {
        await end(guest)
        await guest.exited
        expect(guest.qmp.events.find((event) => event["event"] === "SHUTDOWN")).toMatchObject({ data: { reason } })
      } finally {
        await guest.kill()
      }
    }, 2 * MINUTES)

    it.each([["the program", []], ["the script", ["microvm.off=reboot"]]] as const)(
      "goes down with a whole line that says so, after half a line on its console: %s",
      async (_, more) => {
        const guest = await boot(image, ...more)
        try {
          await guest.run(["sh", "-c", "printf 'Progress 93%%' >/dev/console"])
          await until("half a line", () => guest.console().includes("Progress 93%"))
          guest.agent.send("guest-shutdown", { mode: "powerdown" })
          await guest.exited
          expect(guest.console()).toContain("microvm-shutdown: all is written, poweroff")
          expect(MachineEnd.saysAllIsWritten(guest.console())).toBe(true)
        } finally {
          await guest.kill()
        }
      },
      2 * MINUTES
    )

    it("lets a command say its last words, and waits a second for one that will not end", async () => {
      const guest = await boot(image)
      try {
        const script = "(trap '' TERM; sleep 1000) & trap 'sleep 0.2; echo last words' TERM; echo up; wait; wait"
        const command = await guest.start(["sh", "-c", script])
        await until("the command", () => command.said().includes("up"))
        guest.agent.send("guest-shutdown", { mode: "powerdown" })
        await guest.exited
        expect(command.said()).toContain("last words")
      } finally {
        await guest.kill()
      }
    }, 2 * MINUTES)
  }
)
