/**
 * The programs that are worth keeping open, and what they are told: a line for each command, and then one that they cannot understand,
 * so that their complaint about it is the end of what they had to say.
 */
import type { Run } from "./commandRunner.ts"

export interface Kind {
  readonly program: "ip" | "nft"
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  /** Or does it only look, and may outlive us until it sees that nobody is there any more? */
  readonly changes: boolean
  /** What it is told for a command; nothing for one that is not for it. */
  readonly lineFor: (command: Run, script: string) => string | undefined
  /** A line that it answers always, with what is in the script then, and whether that answer says that it can be kept. */
  readonly greeting: (script: string) => {
    readonly line: string
    readonly text: string
    readonly isUnderstood: (answer: string) => boolean
  }
  /** The line of its complaint that has in it what was not understood, counted from 0; one comes after it. */
  readonly markedLine: 0 | 1
  readonly isFault: (said: string) => boolean
  /** Has it not come so far as to read the script? */
  readonly isUnread: (said: string, script: string) => boolean
  /** As one says it that is run for this command alone. */
  readonly words: (said: string, script: string) => string
}

/** Before 1.0.6, some failures are told by nft's exit code only, and one that is kept has none. */
const isTalkative = (answer: string): boolean => {
  const [, major, minor, patch] = /^\{"nftables": \[\{"metainfo": \{"version": "(\d+)\.(\d+)\.(\d+)/.exec(answer) ?? []
  return Number(major) > 1 || (Number(major) === 1 && (Number(minor) > 0 || Number(patch) >= 6))
}

/**
 * nft(8) waits for the kernel when it closes its socket, for what it has changed, and not when it changes it. `include` is one
 * transaction as `-f` is. Another's changes are seen: it asks for the generation before each command.
 */
const nft = (args: ReadonlyArray<string>): Omit<Kind, "changes" | "lineFor"> => ({
  program: "nft",
  args: [...args, "-i"],
  // It would write down there what it was told.
  env: { HOME: "/dev/null" },
  // A build without an interactive mode does not come to answer, and one that repeats what it is told says too much.
  greeting: (script) => ({ line: `include "${script}"`, text: "list tables\n", isUnderstood: isTalkative }),
  markedLine: 1,
  isFault: (said) => said.trim() !== "" && (said.includes("Error") || !said.includes("Warning")),
  isUnread: (said, script) => said.includes(`include "${script}"`),
  words: (said, script) => said.replaceAll(/^In file included from .*\n/gm, "").replaceAll(script, "/dev/stdin")
})

/** Of a text of a megabyte, nft keeps two hundred that it never gives back; and a fork is nothing beside the work. */
export const longestText = 2 ** 16

const linesAfter = (args: string) => {
  const pattern = new RegExp(`^${args} (list [A-Za-z0-9 ._-]+)$`)
  return (command: Run): string | undefined => pattern.exec(command.args.join(" "))?.[1]
}

const lists = linesAfter("-j")

export const kinds: ReadonlyArray<Kind> = [
  {
    ...nft(["-j"]),
    changes: true,
    lineFor: (command, script) =>
      command.input === undefined
        ? lists(command)
        : command.args.join(" ") === "-f -" && command.input.length <= longestText
        ? `include "${script}"`
        : undefined
  },
  { ...nft(["-j", "-t"]), changes: false, lineFor: linesAfter("-j -t") },
  {
    program: "ip",
    args: ["-j", "-force", "-batch", "-"],
    env: {},
    changes: false,
    // Nothing else: it remembers which name an interface had.
    lineFor: ({ args, input }) => input === undefined && args.join(" ") === "-j link show" ? "link show" : undefined,
    greeting: () => ({ line: "link show", text: "", isUnderstood: (answer) => /^\[.*\]\s*$/s.test(answer) }),
    markedLine: 0,
    isFault: (said) => /^Command failed -:\d+$/m.test(said),
    isUnread: () => false,
    words: (said) => said.replaceAll(/^Command failed -:\d+\n/gm, "")
  }
]
