/** What a supervisor that is to be killed is told, a line each, and what it answers. */

export interface Mishap {
  /** Which command of `ip`, `nft` and the others, from 0 on. */
  readonly at: number
  readonly how: "fails before" | "fails after" | "hangs before" | "hangs after"
}

interface Conditions {
  /** The state directory. */
  readonly state: string
  /** It kills itself before this step, from 0 on. */
  readonly dieAt?: number
  readonly mishap?: Mishap
  /** Its clock jumps by years, there and back. */
  readonly jumps?: boolean
}

export type BackendName = "script" | "memory" | "firecracker" | "qemu"

export interface Launch extends Conditions {
  readonly do: "launch"
  readonly backend: BackendName
  readonly ids: ReadonlyArray<string>
  readonly keep: boolean
  /** `kill` ends them at once, `leave` ends in order, and `wait` does so when it is told `go`. */
  readonly then: "kill" | "leave" | "wait"
}

export interface Recover extends Conditions {
  readonly do: "recover"
  readonly backend: BackendName
  readonly mode: "adopt" | "kill"
  /** Those that are adopted are asked for an answer, and then to end with code 7. */
  readonly use?: boolean
  /** Those that are adopted are held until `go`. */
  readonly hold?: boolean
}

/** Makes a machine and ends it, again and again. */
export interface Rounds extends Conditions {
  readonly do: "rounds"
  readonly backend: BackendName
  readonly rounds: number
  /** With all that there is of the host, or without anything? */
  readonly resources: boolean
}

export type Order = Launch | Recover | Rounds

/** What a supervisor has, after so many rounds, and after its garbage was collected. */
export interface Sample {
  readonly round: number
  readonly files: number
  readonly heap: number
  /** Timers, pipes, processes and sockets that are open. */
  readonly handles: number
}

export interface Fate {
  readonly id: string
  readonly action: string
  readonly why: string
  readonly end?: string
}

export interface Used {
  readonly id: string
  readonly answer: string
  readonly console: string
  readonly end: string
  readonly left: number
}

export type Answer =
  | { readonly _tag: "Ready" | "Up" | "Held" }
  | {
    readonly _tag: "Done"
    /** All that was done to the host, in order. */
    readonly steps: ReadonlyArray<string>
    readonly commands: number
    readonly fates: ReadonlyArray<Fate>
    readonly used: ReadonlyArray<Used>
    readonly samples: ReadonlyArray<Sample>
    /** What could not be released, for people. */
    readonly left: ReadonlyArray<string>
    readonly millis: number
    /** What is still in the journal. */
    readonly records: ReadonlyArray<string>
  }
  | {
    readonly _tag: "Failed"
    readonly why: string
    readonly tag: string
    readonly left: ReadonlyArray<string>
    readonly steps: ReadonlyArray<string>
  }
