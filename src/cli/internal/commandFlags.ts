/** What `run` and `exec` have in common: a command, variables for it, and where it works. */
import * as Argument from "effect/cli/Argument"
import * as Flag from "effect/cli/Flag"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

export const envFlag = Flag.String("env").pipe(
  Flag.withAlias("e"),
  Flag.withMetavar("K=V"),
  Flag.atLeast(0),
  Flag.withDescription("A variable for the command, or the name alone of one of ours; may be repeated")
)

export const workdirFlag = Flag.String("workdir").pipe(
  Flag.withAlias("w"),
  Flag.withMetavar("DIR"),
  Flag.optional,
  Flag.withDescription("Where the command works; / by default")
)

export const workdirFaults = (workdir: Option.Option<string>): ReadonlyArray<string> =>
  Option.match(workdir, {
    onNone: () => [],
    onSome: (directory) => [
      ...(directory === "" ? ["--workdir is empty: name a directory of the guest"] : []),
      ...(directory.includes("\0") ? ["--workdir holds a NUL byte: remove it"] : [])
    ]
  })

export const commandArgument = Argument.String("command").pipe(
  Argument.variadic(),
  Argument.withDescription("The command and its arguments, after --")
)

/** What is wrong with the words after `--`. */
export const commandFaults = (words: ReadonlyArray<string>, example: string): ReadonlyArray<string> => [
  ...(words.length === 0 ? [`no command: write it after --, as in ${example}`] : []),
  ...(words[0] === "" ? ["the command is empty: name a program after --"] : []),
  ...(words.some((word) => word.includes("\0")) ? ["the command holds a NUL byte: remove it"] : [])
]

const isVariable = (name: string): boolean => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name)

/**
 * Gives each `--env NAME` the value that it has in our environment, where everybody may not read it as in our command line
 * (proc(5)). One that has none, or an empty one, stays as it is.
 */
export const fillEnv = (pairs: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string>> =>
  Effect.forEach(pairs, (pair) =>
    !isVariable(pair)
      ? Effect.succeed(pair)
      : Effect.option(Config.String(pair)).pipe(
        Effect.map(Option.match({ onNone: () => pair, onSome: (value) => `${pair}=${value}` }))
      ))

/** The variables of `--env K=V`, and all that is wrong with them. The last of a name counts. */
export const readEnv = (
  pairs: ReadonlyArray<string>
): { readonly env: Readonly<Record<string, string>>; readonly faults: ReadonlyArray<string> } => {
  const env: Array<readonly [string, string]> = []
  const faults: Array<string> = []
  for (const pair of pairs) {
    const at = pair.indexOf("=")
    const key = at === -1 ? pair : pair.slice(0, at)
    // The value may be a secret, so the name alone is told; what is neither may be a value whose name was forgotten.
    if (at === -1) {
      const [told, name] = isVariable(pair) ? [` ${pair}`, pair] : ["", "NAME"]
      faults.push(`--env${told} has no value: write ${name}=VALUE, or set ${name} in our environment`)
    } else if (!isVariable(key)) {
      faults.push(`--env name ${JSON.stringify(key)} is not valid: use letters, digits and _, no digit first`)
    } else if (pair.includes("\0")) faults.push(`--env ${key} holds a NUL byte: remove it`)
    else env.push([key, pair.slice(at + 1)])
  }
  return { env: Object.fromEntries(env), faults }
}
