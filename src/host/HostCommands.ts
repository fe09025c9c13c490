/**
 * The few programs of the host that need its rights, as a service: the real one runs them, a scripted one is for tests.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { HostError } from "./HostError.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface HostCommand {
  readonly program: "ip" | "nft" | "cp" | "resize2fs" | "e2fsck"
  readonly args: ReadonlyArray<string>
  /** What it reads on its stdin. Default nothing. */
  readonly input?: string | undefined
  /** For people: `"making the links of machine web-1"`. */
  readonly what: string
  /** How long it may take, after which it is killed. Default 10 seconds. */
  readonly within?: Duration.Input | undefined
}

/**
 * Runs a program in an environment that is always the same (`LC_ALL=C`), and gives its stdout, of which 64 MiB at most are
 * taken. Fails with `CommandFailed`, `CommandHung`, and `Unavailable` when there is no such program. An interruption kills it and
 * waits until it is gone: what it has done by then is done.
 *
 * @category services
 * @since 0.1.0
 */
export class HostCommands extends Context.Service<HostCommands, {
  readonly run: (command: HostCommand) => Effect.Effect<string, HostError>
}>()("effect-microvm-runtime/host/HostCommands") {}
