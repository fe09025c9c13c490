/** Prints what this host forwards nothing by, and what helps, as it is where this is run. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as HostChecks from "../../src/host/HostChecks.ts"
import { HostFacts } from "../../src/host/HostFacts.ts"
import * as NodeHostCommands from "../../src/host/NodeHostCommands.ts"
import * as NodeHostFacts from "../../src/host/NodeHostFacts.ts"
import * as NodeProcessHost from "../../src/process/NodeProcessHost.ts"

const facts = await Effect.runPromise(
  HostFacts.use(({ observe }) => observe({ stateDirectory: "/nonexistent/state" })).pipe(
    Effect.provide(
      NodeHostFacts.layer.pipe(Layer.provide([NodeHostCommands.layer, NodeFileSystem.layer, NodeProcessHost.layer]))
    )
  )
)
const check = HostChecks.evaluate(facts, { network: true, stateDirectory: "/" }).find(({ name }) =>
  name === "other firewalls"
)
console.log(JSON.stringify({ ok: check?.ok, remedy: check?.remedy ?? "" }))
