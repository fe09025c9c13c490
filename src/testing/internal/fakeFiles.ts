import * as Base64 from "effect/encoding/Base64"
import * as Result from "effect/Result"

/** @internal */
export type Answer = { readonly return: unknown } | {
  readonly error: { readonly class: string; readonly desc: string }
}

const encoder = new TextEncoder()

/** @internal */
export const bytesOf = (data: string | Uint8Array): Uint8Array => typeof data === "string" ? encoder.encode(data) : data

/** @internal */
export const concat = (a: Uint8Array, b: Uint8Array): Uint8Array => {
  const both = new Uint8Array(a.length + b.length)
  both.set(a)
  both.set(b, a.length)
  return both
}

/** @internal */
export const refuse = (desc: string): Answer => ({ error: { class: "GenericError", desc } })

interface File {
  readonly path: string
  readonly mode: string
  at: number
}

/**
 * A file system of files alone, in the words of the agent. `proc` has those that the guest's kernel makes up.
 *
 * @internal
 */
export const makeFiles = (proc: (path: string) => Uint8Array | undefined = () => undefined) => {
  const byPath = new Map<string, Uint8Array>()
  const handles = new Map<number, File>()
  let last = 1000
  const contentOf = (path: string) => byPath.get(path) ?? proc(path)

  const using = (handle: number, use: (file: File, bytes: Uint8Array) => unknown): Answer => {
    const file = handles.get(handle)
    if (file === undefined) return refuse(`handle '${handle}' has not been found`)
    return { return: use(file, contentOf(file.path) ?? new Uint8Array(0)) }
  }

  return {
    byPath,
    handles,
    open: ({ mode, path }: { readonly path: string; readonly mode: string }): Answer => {
      if (mode === "r" && contentOf(path) === undefined) {
        return refuse(`failed to open file '${path}' (mode: '${mode}'): No such file or directory`)
      }
      if (mode === "w" || mode !== "r" && !byPath.has(path)) byPath.set(path, new Uint8Array(0))
      handles.set(++last, { path, mode, at: 0 })
      return { return: last }
    },
    close: ({ handle }: { readonly handle: number }): Answer =>
      using(handle, () => {
        handles.delete(handle)
        return {}
      }),
    read: ({ count, handle }: { readonly handle: number; readonly count: number }): Answer =>
      using(handle, (file, bytes) => {
        const part = bytes.subarray(file.at, file.at + count)
        file.at += part.length
        return { count: part.length, "buf-b64": Base64.encode(part), eof: file.at >= bytes.length }
      }),
    write: ({ "buf-b64": data, handle }: { readonly handle: number; readonly "buf-b64": string }): Answer =>
      using(handle, (file, bytes) => {
        const more = Result.getOrElse(Base64.decode(data), () => new Uint8Array(0))
        byPath.set(file.path, concat(bytes, more))
        return { count: more.length, eof: false }
      })
  }
}
