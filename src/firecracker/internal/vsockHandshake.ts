/**
 * How a connection to a port of the guest is asked for on Firecracker's socket (docs/vsock.md there): `CONNECT 52\n`, in
 * one write, since what is not there at its first look is taken for a broken request; then `OK 1073741824\n`. What follows
 * that line is the guest's.
 */

export const request = (port: number): string => `CONNECT ${port}\n`

export type Step =
  | { readonly _tag: "More" }
  /** `rest` belongs to the stream. */
  | { readonly _tag: "Connected"; readonly hostPort: number; readonly rest: Uint8Array }
  | { readonly _tag: "Refused"; readonly reply: string }

export interface Reader {
  /** Takes the next bytes. Not to be called again after anything else than `More`. */
  readonly push: (chunk: Uint8Array) => Step
  /** What came of a line that has not ended. */
  readonly partial: () => string
}

/** `OK ` and 10 digits are 13; a longer line is only kept to be quoted. */
const longestLine = 64

export const make = (): Reader => {
  const line = new Uint8Array(longestLine)
  let length = 0
  const text = (): string => new TextDecoder().decode(line.subarray(0, length))
  return {
    push: (chunk) => {
      const newline = chunk.indexOf(0x0a)
      const part = chunk.subarray(0, newline === -1 ? chunk.length : newline)
      const fits = part.subarray(0, longestLine - length)
      line.set(fits, length)
      length += fits.length
      if (newline === -1 && length < longestLine) return { _tag: "More" }
      const [, hostPort] = /^OK (\d{1,10})$/.exec(text()) ?? []
      return hostPort === undefined || newline === -1
        ? { _tag: "Refused", reply: text() }
        : { _tag: "Connected", hostPort: Number(hostPort), rest: chunk.subarray(newline + 1) }
    },
    partial: text
  }
}
