/** Prints what a check finds where this is run, what helps, and why a setting cannot be written there as it is. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as HostChecks from "../../src/host/HostChecks.ts"
import { HostFacts } from "../../src/host/HostFacts.ts"
import { KernelSettings } from "../../src/host/KernelSettings.ts"
import * as NodeHostCommands from "../../src/host/NodeHostCommands.ts"
import * as NodeHostFacts from "../../src/host/NodeHostFacts.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"

const [, , which = "other firewalls"] = process.argv
const facts = await Effect.runPromise(
  HostFacts.use(({ observe }) => observe({ stateDirectory: "/nonexistent/state" })).pipe(
    Effect.provide(
      NodeHostFacts.layer.pipe(Layer.provide([NodeHostCommands.layer, NodeFileSystem.layer, NodeProcessHost.layer]))
    )
  )
)
const check = HostChecks.evaluate(facts, { network: true, stateDirectory: "/" }).find(({ name }) => name === which)
const pidMax = "kernel/pid_max"
const refusal = which !== "network rights" ? "" : await Effect.runPromise(
  KernelSettings.use(({ write }) => write([pidMax], facts.settings[pidMax] ?? "")).pipe(
    Effect.match({ onFailure: ({ message }) => message, onSuccess: () => "" }),
    Effect.provide(NodeHostCommands.layer)
  )
)
console.log(JSON.stringify({ ok: check?.ok, remedy: check?.remedy ?? "", refusal }))
