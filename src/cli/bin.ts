#!/usr/bin/env node
/**
 * The executable: loads the program, and exits. With a service's edge, the only place that calls `process.exit`.
 */
import packageJson from "../../package.json" with { type: "json" }
import { load } from "./internal/NodeCompileCache.ts"

// What the package's `engines` ask for; nobody else checks that of a command. An older one may not even load the program.
const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
const isTooOld = major < 22 || (major === 22 && minor < 19)
/** No usable backend: see `ExitCode.run`. */
const tooOld = (exit: (code: number, isWhole: boolean) => void): void => {
  process.stderr.write(`microvm: this is Node ${process.versions.node}: start it with Node 22.19 or later\n`)
  exit(69, false)
}

// By itself, Node would open its debugger, to which any user of this host may connect.
process.on("SIGUSR1", () => undefined)

const [first, ...others] = process.argv.slice(2)
/** As the program would say it, in a fifth of the time that it takes to load. */
const tellVersion = (exit: (code: number, isWhole: boolean) => void): void => {
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    // Whoever has closed the pipe wants no more.
    if (code === "EPIPE") return
    process.stderr.write(`microvm: stdout could not be written: ${message}\n`)
    exit(125, false)
  }).write(`microvm v${packageJson.version}\n`)
}

// One that is empty or relative is nobody's: then the user database says where it is, as where there is none.
if (process.env["HOME"]?.startsWith("/") !== true) delete process.env["HOME"]

const isSource = import.meta.url.endsWith(".ts")

const main = isTooOld
  ? tooOld
  : first === "--version" && others.length === 0
  ? tellVersion
  : isSource
  ? (await import("./internal/NodeMain.ts")).main
  : load(`${import.meta.dirname}/program.js`)
main((code) => process.exit(code))
