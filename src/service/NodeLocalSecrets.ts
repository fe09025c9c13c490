/**
 * Secrets from a file of the directory that the service runs in.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as NodeFs from "node:fs"
import * as NodePath from "node:path"
import { codeOf } from "./internal/NodeLocalState.ts"
import type { SecretMap } from "./Resource.ts"

/**
 * A file of secrets cannot be used: one sentence for each fault, without a value.
 *
 * @category errors
 * @since 0.1.0
 */
export class SecretsFileError extends Data.TaggedError("SecretsFileError")<{
  readonly path: string
  readonly faults: ReadonlyArray<string>
}> {
  override get message(): string {
    return this.faults.map((fault) => `${this.path}: ${fault}`).join("; ")
  }
}

/**
 * What was found.
 *
 * @category models
 * @since 0.1.0
 */
export interface LocalSecrets {
  readonly secrets: SecretMap
  /** The file that was read. */
  readonly source: Option.Option<string>
  /** What should be changed, but does not stop the service. */
  readonly warnings: ReadonlyArray<string>
}

/**
 * The files that are looked for, the first that is there is taken, alone. Shuttle knows the first two.
 *
 * @category constants
 * @since 0.1.0
 */
export const files = ["Secrets.dev.toml", "Secrets.toml", ".env"] as const

/** Secrets are small. Whoever needs more has taken the wrong file. */
const mostBytes = 16 * 1024 * 1024

interface Opened {
  readonly text: string
  readonly mode: number
}

/** `undefined` when there is no file of that name; a directory of that name is none. */
const read = (path: string): Opened | undefined => {
  let fd: number
  try {
    // Without O_NONBLOCK a FIFO of that name would hang us.
    fd = NodeFs.openSync(path, NodeFs.constants.O_RDONLY | NodeFs.constants.O_NONBLOCK)
  } catch (cause) {
    if (codeOf(cause) === "ENOENT") return undefined
    throw new SecretsFileError({
      path,
      faults: [`cannot be read (${codeOf(cause)}): let this user read it, or remove it`]
    })
  }
  try {
    const stat = NodeFs.fstatSync(fd)
    if (!stat.isFile()) return undefined
    if (stat.size > mostBytes) {
      throw new SecretsFileError({ path, faults: [`is larger than ${mostBytes} bytes: keep large data elsewhere`] })
    }
    const text = new TextDecoder("utf-8", { fatal: true }).decode(NodeFs.readFileSync(fd))
    return { text, mode: stat.mode }
  } catch (cause) {
    if (cause instanceof SecretsFileError) throw cause
    const why = cause instanceof TypeError ? "is not UTF-8: save it as such" : `cannot be read (${codeOf(cause)})`
    throw new SecretsFileError({ path, faults: [why] })
  } finally {
    NodeFs.closeSync(fd)
  }
}

const octal = (mode: number): string => (mode & 0o777).toString(8).padStart(4, "0")

/**
 * Reads `file`, or else the first of `files` in `cwd`. No file is no fault: then there are no secrets.
 *
 * A `.toml` file has `NAME = "value"` on one level, values are strings only. Any other file has `NAME=value` lines, as `.env`.
 * Every fault of the file is reported, up to 20, with its name or line. A file that everybody may write is refused, for whoever writes
 * it decides whom the service trusts; that others than the owner may read it is a warning.
 *
 * ```ts import.meta.vitest
 * import { NodeLocalSecrets } from "effect-microvm-runtime/service"
 * import * as Effect from "effect/Effect"
 * const { secrets } = await Effect.runPromise(NodeLocalSecrets.load({ cwd: "/proc/self" }))
 * secrets.size // => 0
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const load = Effect.fn("NodeLocalSecrets.load")(function*(options: {
  readonly cwd: string
  /** Relative to `cwd`. It must be there. */
  readonly file?: string | undefined
}): Effect.fn.Return<LocalSecrets, SecretsFileError> {
  for (const name of options.file === undefined ? files : [options.file]) {
    const path = NodePath.resolve(options.cwd, name)
    const opened = yield* Effect.try({
      try: () => read(path),
      catch: (cause) =>
        cause instanceof SecretsFileError ? cause : new SecretsFileError({ path, faults: [codeOf(cause)] })
    })
    if (opened === undefined) continue
    const { mode, text } = opened
    const { parseEnv, parseToml } = yield* Effect.promise(() => import("./internal/secretsFile.ts"))
    const parsed = path.endsWith(".toml") ? parseToml(text) : parseEnv(text)
    const writable = (mode & 0o002) === 0 ? [] : [`everybody may write it (mode ${octal(mode)}): chmod 600`]
    if (Result.isFailure(parsed) || writable.length > 0) {
      const faults = Result.isFailure(parsed) ? parsed.failure : []
      return yield* new SecretsFileError({ path, faults: [...writable, ...faults] })
    }
    const secrets = new Map(
      Array.from(parsed.success, ([key, value]) => [key, Redacted.make(value, { label: key })] as const)
        .toSorted(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    )
    const warnings = (mode & 0o077) === 0
      ? []
      : [`${path}: others than its owner may read it (mode ${octal(mode)}): chmod 600`]
    return { secrets, source: Option.some(path), warnings }
  }
  if (options.file !== undefined) {
    return yield* new SecretsFileError({
      path: NodePath.resolve(options.cwd, options.file),
      faults: ["there is no such file"]
    })
  }
  return { secrets: new Map(), source: Option.none(), warnings: [] }
})
