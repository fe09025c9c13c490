/** A record as text, and back. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { MachineId, MachineRecord } from "../MachineRecord.ts"

/** What we write is far below this; what is above it is not taken into memory. */
export const LARGEST = 1024 * 1024

export const isId = Schema.is(MachineId)

const options = { errors: "all", onExcessProperty: "error" } as const
const decode = Schema.decodeUnknownResult(MachineRecord, options)
const encode = Schema.encodeUnknownResult(MachineRecord, options)
const hasFormat = Schema.is(Schema.Struct({ format: Schema.Int }))

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

const guarded = <A>(
  run: () => Result.Result<A, string>,
  why: (cause: unknown) => string
): Result.Result<A, string> => Result.flatMap(Result.try({ try: run, catch: why }), (result) => result)

/** A record, and what is on the disk of it. */
export interface Written {
  readonly record: MachineRecord
  readonly text: string
}

/** A record with its text, or why it cannot be one. */
export const written = (record: MachineRecord): Result.Result<Written, string> =>
  guarded(
    () =>
      Result.flatMap(Result.mapError(encode(record), messageOf), (encoded) => {
        const text = `${JSON.stringify(encoded, undefined, 1)}\n`
        const { length } = new TextEncoder().encode(text)
        return length <= LARGEST
          ? Result.succeed({ record, text })
          : Result.fail(
            `it has ${length} bytes, ${LARGEST} are the most: keep large things in files, and their names here`
          )
      }),
    // What is nested too deeply throws.
    messageOf
  )

const parse = (bytes: Uint8Array): Result.Result<unknown, string> =>
  guarded(
    () => Result.succeed<unknown>(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))),
    (cause) => `it is torn, or never was a record: ${messageOf(cause)}`
  )

/** The record that a file of this name holds, or why it holds none. One that we could not write again is none. */
export const fromBytes = (name: string, bytes: Uint8Array): Result.Result<Written, string> =>
  Result.flatMap(parse(bytes), (value) => {
    if (hasFormat(value) && value.format !== 1) {
      return Result.fail(`it has format ${value.format}, and 1 is the one known here: use the version that wrote it`)
    }
    return Result.flatMap(
      guarded(() => Result.mapError(decode(value), messageOf), messageOf),
      (record) =>
        `${record.id}.json` === name
          ? written(record)
          : Result.fail(`it has the name ${name}, and is the record of ${record.id}`)
    )
  })
