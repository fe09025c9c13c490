/**
 * A service: one value that says what it needs and what it is made of, and two ways to run it: `run` as an effect, to
 * compose and to test, and `main` at the edge, as this process.
 *
 * ```ts import.meta.vitest
 * import { Part, Service } from "effect-microvm-runtime/service"
 * import { FakeService } from "effect-microvm-runtime/testing"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * const greeter = Part.make("greeter", Layer.effectDiscard(Effect.log("hello")))
 * const service = Service.make({ name: "greeter", version: "1.0.0", parts: [greeter] })
 *
 * // As a program: Service.main(service). In a test:
 * const fake = FakeService.make()
 * const program = Effect.gen(function*() {
 *   yield* fake.send("SIGTERM")
 *   return yield* Service.run(service)
 * })
 * const report = await Effect.runPromise(Effect.provide(program, fake.layer))
 * report.code // => 10
 * ```
 *
 * @since 0.1.0
 */
export { main } from "./NodeServiceMain.ts"
export { CurrentService, faults, type Given, make, type Options, type Service } from "./ServiceDefinition.ts"
export { type Needs, run, type ServiceReport } from "./ServiceRun.ts"
