/**
 * Linux signal names and numbers.
 *
 * The numbers are those of x86, ARM and RISC-V (signal(7)); MIPS, Alpha and SPARC differ and are not supported.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * Number of each standard signal, by name (signal(7), "Signal numbering for standard signals"). Real-time signals have
 * no fixed names and are left out.
 *
 * @category constants
 * @since 0.1.0
 */
export const numbers = {
  SIGHUP: 1,
  SIGINT: 2,
  SIGQUIT: 3,
  SIGILL: 4,
  SIGTRAP: 5,
  SIGABRT: 6,
  SIGBUS: 7,
  SIGFPE: 8,
  SIGKILL: 9,
  SIGUSR1: 10,
  SIGSEGV: 11,
  SIGUSR2: 12,
  SIGPIPE: 13,
  SIGALRM: 14,
  SIGTERM: 15,
  SIGSTKFLT: 16,
  SIGCHLD: 17,
  SIGCONT: 18,
  SIGSTOP: 19,
  SIGTSTP: 20,
  SIGTTIN: 21,
  SIGTTOU: 22,
  SIGURG: 23,
  SIGXCPU: 24,
  SIGXFSZ: 25,
  SIGVTALRM: 26,
  SIGPROF: 27,
  SIGWINCH: 28,
  SIGIO: 29,
  SIGPWR: 30,
  SIGSYS: 31
} as const

/**
 * The name of a standard signal, such as `"SIGTERM"`.
 *
 * @category models
 * @since 0.1.0
 */
export type Signal = keyof typeof numbers

const isName = (name: string): name is Signal => Object.hasOwn(numbers, name)

/**
 * All signal names in the order of their numbers.
 *
 * @category constants
 * @since 0.1.0
 */
export const names: ReadonlyArray<Signal> = Object.keys(numbers).filter(isName)

const byNumber = new Map<number, Signal>(names.map((name) => [numbers[name], name]))

/**
 * Decodes and encodes signal names.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Signal = Schema.Literals(names)

/**
 * The signal's number.
 *
 * ```ts import.meta.vitest
 * import { Signal } from "effect-microvm-runtime/lifecycle"
 * Signal.toNumber("SIGTERM") // => 15
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const toNumber = (signal: Signal): number => numbers[signal]

/**
 * The signal with this number, or `undefined` when the number is no standard signal.
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromNumber = (number: number): Signal | undefined => byNumber.get(number)

/**
 * Reads a signal from what people write: `"SIGTERM"`, `"term"`, `"15"`. `undefined` when it is none of them.
 *
 * ```ts import.meta.vitest
 * import { Signal } from "effect-microvm-runtime/lifecycle"
 * Signal.fromString("term") // => "SIGTERM"
 * ```
 *
 * @category conversions
 * @since 0.1.0
 */
export const fromString = (text: string): Signal | undefined => {
  if (isName(text)) return text
  if (/^\d+$/.test(text)) return fromNumber(Number(text))
  const upper = text.toUpperCase()
  const name = upper.startsWith("SIG") ? upper : `SIG${upper}`
  return isName(name) ? name : undefined
}

/**
 * Signals whose default action writes a core file where limits allow it (signal(7), action "Core").
 *
 * @category constants
 * @since 0.1.0
 */
export const dumpsCore: ReadonlySet<Signal> = new Set<Signal>([
  "SIGQUIT",
  "SIGILL",
  "SIGTRAP",
  "SIGABRT",
  "SIGBUS",
  "SIGFPE",
  "SIGSEGV",
  "SIGXCPU",
  "SIGXFSZ",
  "SIGSYS"
])
