/** What this library adds to Firecracker: to the calls of a start, to the memory of who looks after many machines, to a list. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execFileSync, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { setImmediate as turn } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { MemoryDriver, MemoryProvider, MicroVmRuntime } from "../src/microvm/index.ts"
import { interleaved, median, ms, now, quantile, type Samples, type Section, table, times, verdict } from "./measure.ts"
import { listens } from "./peers/firecracker/listens.ts"

const sources = fileURLToPath(new URL("peers/firecracker", import.meta.url))
const cache = fileURLToPath(new URL("../.cache/bench", import.meta.url))

const byHand = "node:http by hand"
const ours = "this library"

/** What was compiled, or nothing where that cannot be: then it is said why. */
const compiled = (
  name: string,
  source: string,
  files: Readonly<Record<string, string>>,
  commands: ReadonlyArray<readonly [string, ...ReadonlyArray<string>]>
): string | undefined => {
  const directory = join(cache, name)
  mkdirSync(directory, { recursive: true })
  cpSync(join(sources, source), join(directory, source))
  for (const [file, text] of Object.entries(files)) writeFileSync(join(directory, file), text)
  for (const [command, ...args] of commands) {
    const { error, status, stderr } = spawnSync(command, args, { cwd: directory, encoding: "utf8", timeout: 600_000 })
    if (status === 0) continue
    console.error(`skipped: ${name}: ${error?.message ?? stderr.trim().split("\n").at(-1)}`)
    return undefined
  }
  return join(directory, "program")
}

const standIn = (consoleBytes: number): string | undefined =>
  compiled(`standIn-${consoleBytes}`, "standIn.c", {}, [
    ["cc", "-O2", `-DCONSOLE_BYTES=${consoleBytes}`, "-o", "program", "standIn.c"]
  ])

const cargo = `[package]
name = "program"
version = "0.0.0"
edition = "2024"
[[bin]]
name = "program"
path = "fctools.rs"
[dependencies]
bytes = "1"
fctools = { version = "=0.7.0-alpha.2", features = ["tokio-runtime", "vmm-process", "direct-process-spawner", "nix-syscall-backend"] }
http = "1"
http-body-util = "0.1"
serde_json = "1"
tokio = { version = "1", features = ["rt-multi-thread", "macros"] }
`

/** A program that answers each line by a line. */
class Peer {
  private readonly child
  private readonly lines
  private readonly exited

  constructor(command: string, ...args: ReadonlyArray<string>) {
    this.child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] })
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
    this.exited = once(this.child, "exit")
    // What is written to one that has ended is lost, and `ask` sees that it has.
    this.child.stdin.on("error", () => {})
  }

  async ask(line: string): Promise<string> {
    this.child.stdin.write(`${line}\n`)
    const { done, value } = await this.lines.next()
    if (done === true) throw new Error(`${this.child.spawnargs.join(" ")} has ended`)
    return value
  }

  async end(): Promise<void> {
    this.child.stdin.end()
    await this.exited
  }
}

const script = (name: string): Peer => new Peer(process.execPath, join(sources, name))

/** Each client in a process of its own, which has a name. */
const clients = (): ReadonlyMap<string, Peer> => {
  const fctools = compiled("fctools", "fctools.rs", { "Cargo.toml": cargo }, [
    ["cargo", "build", "--quiet", "--release"],
    ["cp", "target/release/program", "program"]
  ])
  const goSdk = compiled("gosdk", "gosdk.go", { "go.mod": "module program\n" }, [
    ["go", "get", "github.com/firecracker-microvm/firecracker-go-sdk@v1.0.0"],
    ["go", "build", "-o", "program", "gosdk.go"]
  ])
  return new Map([
    [byHand, script("byHand.ts")],
    [ours, script("ours.ts")],
    ...(fctools === undefined ? [] : [["fctools", new Peer(fctools)] as const]),
    ...(goSdk === undefined ? [] : [["firecracker-go-sdk", new Peer(goSdk)] as const])
  ])
}

/** Has a Firecracker, or what passes for one, in each directory while they are used. */
type Vmms = (directories: ReadonlyArray<string>, use: () => Promise<number>) => Promise<number>

const processes = (binary: string): Vmms => async (directories, use) => {
  const running = directories.map((cwd) => {
    const child = spawn(binary, ["--api-sock", join(cwd, "api.sock")], { cwd, stdio: "ignore" })
    return { child, exit: once(child, "exit").catch(console.error) }
  })
  try {
    for (const directory of directories) await listens(join(directory, "api.sock"))
    return await use()
  } finally {
    for (const { child } of running) child.kill("SIGKILL")
    await Promise.all(running.map(({ exit }) => exit))
  }
}

/** How long each client takes with so many machines at once that are new for each time. */
const compare = async (
  rounds: number,
  { count = 1, goal = "start", vmms, warmUp }: {
    readonly count?: number
    readonly goal?: "configure" | "start"
    readonly vmms: Vmms
    readonly warmUp: number
  }
): Promise<Samples> => {
  const work = mkdtempSync(join(tmpdir(), "bench-firecracker-"))
  const peers = clients()
  const contestants = [...peers].map(([name, peer]) => ({
    name,
    run: async () => {
      const round = mkdtempSync(join(work, "round-"))
      const directories = Array.from({ length: count }, (_, index) => join(round, String(index)))
      for (const directory of directories) {
        mkdirSync(directory)
        writeFileSync(join(directory, "kernel"), "")
        writeFileSync(join(directory, "rootfs"), Buffer.alloc(512))
      }
      const took = await vmms(directories, async () => Number(await peer.ask([goal, ...directories].join(" "))))
      rmSync(round, { recursive: true })
      return took
    }
  }))
  try {
    await interleaved(warmUp, contestants)
    return await interleaved(rounds, contestants)
  } finally {
    await Promise.all([...peers.values()].map((peer) => peer.end()))
    rmSync(work, { recursive: true })
  }
}

const toByHand = (samples: Samples, where: string) => {
  const ratio = median(samples, ours) / median(samples, byHand)
  return verdict(`${where}: ≤ 1.2 × by hand`, times(ratio), ratio <= 1.2)
}

const verdicts = (samples: Samples, where: string) => {
  const own = median(samples, ours)
  const best = [...samples.keys()].filter((each) => each !== ours && each !== byHand)
    .map((name) => ({ name, took: median(samples, name) })).toSorted((a, b) => a.took - b.took)[0]
  return [
    toByHand(samples, where),
    ...(best === undefined
      // Silence would look as if it was met.
      ? [verdict(`${where}: ≤ the best peer`, "none was there", false)]
      : [verdict(`${where}: ≤ the best peer`, `${ms(own)}, ${best.name} ${ms(best.took)}`, own <= best.took)])
  ]
}

const compareOnFake = async (rounds: number): Promise<Samples> => {
  const fake = script("fake.ts")
  try {
    return await compare(rounds, {
      warmUp: rounds,
      vmms: async (directories, use) => {
        await fake.ask(directories.join(" "))
        return use()
      }
    })
  } finally {
    await fake.end()
  }
}

/** Machine config, boot source, root drive, vsock and the start, on a connection that is new. */
export const calls = async (rounds: number): Promise<Section> => {
  const onFake = await compareOnFake(rounds)
  const binary = process.env["FIRECRACKER_BIN"]
  const onReal = binary === undefined ? undefined : await compare(Math.ceil(rounds / 4), {
    goal: "configure",
    vmms: processes(binary),
    warmUp: Math.ceil(rounds / 4)
  })
  if (onReal === undefined) console.error("skipped: a real Firecracker: FIRECRACKER_BIN names none")
  return {
    title: "The calls that configure and start a machine",
    text:
      "Machine config, boot source, root drive, vsock, start. Each client is a process of its own that has done it before, with a "
      + "connection that is new for each machine; the fake Firecracker is another one, and its time is in all rows. Up to the last "
      + "answer: connections are closed afterwards. fctools: its layer of processes.",
    tables: [
      table(onFake),
      ...(onReal === undefined ? [] : ["A real Firecracker, all but the start:", table(onReal)])
    ],
    verdicts: [...verdicts(onFake, "fake"), ...(onReal === undefined ? [] : verdicts(onReal, "real"))]
  }
}

/** The same for many machines at once. */
export const crowd = async (rounds: number, count: number): Promise<Section> => {
  const binary = standIn(0)
  const title = `The same for ${count} machines at once`
  if (binary === undefined) return { title, text: "Skipped: no C compiler.", tables: [], verdicts: [] }
  const samples = await compare(rounds, { count, vmms: processes(binary), warmUp: 3 })
  const each = median(samples, ours) / count
  return {
    title,
    text: `One client; each machine is a process that says yes to all and takes next to no time. ${
      ms(each)
    } for each by this library. By Node one thread does it all; fctools and the Go SDK use as many as there are processors.`,
    tables: [table(samples)],
    verdicts: [toByHand(samples, String(count))]
  }
}

/** How much a process grows by a machine that it looks after. */
export const supervised = (rounds: number, count: number): Promise<Section> => {
  const rows = new Map<string, Array<number>>()
  for (const [kind, consoleBytes] of [["silent", 0], ["with a full console", 128 * 1024]] as const) {
    const binary = standIn(consoleBytes)
    if (binary === undefined) continue
    for (const [name, who] of [["child_process and node:http by hand", "byHand"], [ours, "ours"]] as const) {
      const samples: Array<number> = []
      rows.set(`${name}, ${kind}`, samples)
      for (let round = 0; round < rounds; round++) {
        const directory = mkdtempSync(join(tmpdir(), "bench-firecracker-"))
        const args = ["--expose-gc", join(sources, "machines.ts"), who, binary, String(count), directory]
        try {
          samples.push(
            Number(execFileSync(process.execPath, args, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] }))
          )
        } finally {
          rmSync(directory, { recursive: true })
        }
      }
    }
  }
  return Promise.resolve({
    title: "Memory for each machine that is looked after",
    text:
      `Resident memory by which a process grows that starts ${count} machines, after a collection: the process's handle, the ends of `
      + "its console and stderr (64 KiB each), a connection to its API.",
    tables: rows.size === 0 ? ["Skipped: no C compiler."] : [table(rows, "KiB")],
    verdicts: []
  })
}

const turns = (count: number): Effect.Effect<void> =>
  Effect.promise(async () => {
    for (let passed = 0; passed < count; passed++) await turn()
  })

/** A look at all machines while some of them stop. */
export const listing = async (count: number, stopping: number): Promise<Section> => {
  const quiet: Array<number> = []
  const took: Array<number> = []
  const program = Effect.gen(function*() {
    const runtime = yield* MicroVmRuntime.make()
    const driver = yield* MemoryDriver.MemoryDriver
    // Guests that take a while to power off.
    yield* driver.script("*", {
      request: (request, guest) => guest.background(Effect.delay(MemoryDriver.obey(request, guest), "200 millis"))
    })
    const ids = Array.from({ length: count }, (_, index) => `m-${index}`)
    yield* Effect.forEach(ids, (id) => Effect.andThen(runtime.create({ id, kernel: "/vmlinux" }), runtime.start(id)), {
      discard: true
    })
    // In its turn of the event loop, as one who asks from elsewhere has it.
    const list = Effect.fnUntraced(function*(into: Array<number>) {
      const start = now()
      yield* turns(1)
      yield* runtime.list
      into.push(now() - start)
    })
    yield* Effect.repeat(Effect.andThen(list(quiet), Effect.sleep("1 millis")), { times: 500 })
    for (let first = 0; first < 10 * stopping; first += stopping) {
      // Each of them comes by itself, as requests do.
      const stops = Effect.forEach(
        ids.slice(first, first + stopping),
        (id, index) => Effect.andThen(turns(index), runtime.stop(id)),
        { concurrency: "unbounded", discard: true }
      )
      yield* Effect.raceFirst(stops, Effect.forever(Effect.andThen(list(took), Effect.sleep("1 millis"))))
    }
  })
  await Effect.runPromise(Effect.scoped(Effect.provide(program, Layer.fresh(MemoryProvider.layer))))
  const p99 = quantile(took, 0.99)
  return {
    title: `${count} machines listed while ${stopping} stop`,
    text:
      "In memory. From the wish to the list, with its turn in the event loop, while those that stop take 200 ms for it.",
    tables: [table(new Map([["list while nothing happens", quiet], [`list while ${stopping} stop`, took]]))],
    verdicts: [verdict("p99 < 5 ms", ms(p99), p99 < 5)]
  }
}
