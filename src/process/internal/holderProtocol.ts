/**
 * What a holder and those who come to it say to each other. No imports but of types: the holder is a program without
 * dependencies.
 *
 * In the holder's directory are, with mode 0600:
 *
 * - `holder.json`: a `Claim`, then a `Held`. Made by link(2), so that only one holder can have a directory, or none once
 *   somebody has made it first.
 * - `holder.sock`: takes connections. The first line of a client is a `Request`, and the first of the holder its `Answer`.
 * - `exit.json`, an `Ended`, once the child has ended, and beside it what is left of its output.
 */
import type { LaunchPlan } from "../ProcessHost.ts"
import type { ProcessIdentity } from "../ProcessIdentity.ts"

/** Of everything here. Another one is not spoken to. */
export const version = 1

export const files = {
  held: "holder.json",
  socket: "holder.sock",
  ended: "exit.json",
  log: "holder.log",
  stdout: "stdout.tail",
  stderr: "stderr.tail"
} as const

export const channelFile = (fd: number): string => `channel-${fd}.rest`

/**
 * The mark that a holder has itself, by that of its child: until its execve(2), a child that is just being made has nothing else in
 * its environment.
 */
export const ownMark = (mark: string): string => `${mark}-holder`

/** The longest first line, either way. */
export const longestLine = 65_536

/** What a holder is started for; it reads it from its stdin. */
export interface Order {
  readonly version: number
  readonly directory: string
  readonly bootId: string
  readonly mark: string
  readonly launch: Omit<LaunchPlan, "detached">
  readonly setpriv: string | undefined
  readonly tailBytes: number
  readonly note: string
  /** Channels whose last bytes are handed to the next client once more. */
  readonly replayed: ReadonlyArray<number>
}

/** The one line that a holder answers to its order. */
export type Started =
  | { readonly _tag: "Started" }
  | { readonly _tag: "Refused"; readonly step: "claim" | "start"; readonly code: string }

/** Of a holder that has no child yet, or will have none when `holder` is null. */
export interface Claim {
  readonly version: number
  readonly holder: ProcessIdentity | null
  readonly mark: string
}

export interface Held extends Claim {
  readonly holder: ProcessIdentity
  readonly child: ProcessIdentity
  readonly cgroup: string | null
  /** Path of the program, for people. */
  readonly executable: string
  readonly channels: ReadonlyArray<number>
  readonly note: string
}

export interface End {
  readonly code: number | null
  readonly signal: string | null
}

export interface Ended extends End {
  readonly version: number
  /** How many bytes there were of each stream, and of how many the last are in its file. */
  readonly stdout: number
  readonly stderr: number
}

export type StreamName = "stdout" | "stderr"

export type Request =
  /** Takes the one hand there is. It is free again when this connection ends. */
  | { readonly version: number; readonly op: "hold" }
  /** Follows an output from this position on, as frames; `follow: false` ends it with what is there. */
  | {
    readonly version: number
    readonly op: "output"
    readonly stream: StreamName
    readonly from: number
    readonly follow: boolean
  }
  /** Becomes the channel, for the one who has the hand. */
  | { readonly version: number; readonly op: "channel"; readonly fd: number; readonly hand: string }

export type Answer =
  | { readonly _tag: "Refused"; readonly why: "held" | "busy" | "unknown" }
  | { readonly _tag: "Hand"; readonly hand: string; readonly stdout: number; readonly stderr: number }
  | { readonly _tag: "Output" }
  /** So many of the bytes that follow were sent to somebody before. */
  | { readonly _tag: "Channel"; readonly replayed: number }

/** A piece of output: its position, its length, and its bytes. A piece without any is the end. */
export const frameHeader = 12
