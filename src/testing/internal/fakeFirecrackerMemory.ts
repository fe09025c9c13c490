/**
 * The memory of a fake machine: pages that hold what its guest remembers, and all else is zero. Each thing has pages of its own, so that a
 * guest that changes one thing writes few pages.
 */
import * as Fs from "node:fs"
import { type Json, json, list, parse, string, struct, usize } from "./fakeSerde.ts"

export const pageSize = 4096

/** By their numbers; those that are not there are zero. */
export type Pages = ReadonlyMap<number, Uint8Array>

const magic = "fake guest memory"
const head = struct("Head", { magic: string, things: list(struct("Thing", { page: usize, bytes: usize })), one: usize })

/** Where the first thing is. What is told of things may have grown until there. */
const firstPage = 64

/** The pages that hold what a guest has saved. */
export const of = (guest: Json): Pages => {
  const things = (Array.isArray(guest) ? guest : [guest]).map((one) => Buffer.from(JSON.stringify(one)))
  const pages = new Map<number, Uint8Array>()
  const put = (page: number, bytes: Buffer) => {
    for (let at = 0; at < bytes.length; at += pageSize) {
      const content = new Uint8Array(pageSize)
      content.set(bytes.subarray(at, at + pageSize))
      pages.set(page + at / pageSize, content)
    }
  }
  let next = firstPage
  const told = things.map((bytes) => {
    const page = next
    put(page, bytes)
    // Room to grow in place.
    next += 16 * Math.ceil((bytes.length + 1) / (16 * pageSize))
    return { page, bytes: bytes.length }
  })
  put(0, Buffer.from(JSON.stringify({ magic, things: told, one: Array.isArray(guest) ? 0 : 1 })))
  return pages
}

const readAt = (file: number, position: number, length: number): Buffer => {
  const bytes = Buffer.alloc(length)
  return bytes.subarray(0, Fs.readSync(file, bytes, 0, length, position))
}

/** What a guest finds in its memory that goes on with a file; nothing where that is no memory of ours. */
export const read = (path: string): Json | undefined => {
  const file = Fs.openSync(path, Fs.constants.O_RDONLY)
  try {
    const text = readAt(file, 0, firstPage * pageSize)
    const end = text.indexOf(0)
    const { one, things } = parse(head, text.subarray(0, end < 0 ? undefined : end))
    const found = things.map(({ bytes, page }) => parse(json, readAt(file, page * pageSize, bytes)))
    return one === 1 ? found[0] : found
  } catch (error) {
    // What is no JSON is no memory of ours; what cannot be read is another fault.
    if (error instanceof Error && "code" in error) throw error
    return undefined
  } finally {
    Fs.closeSync(file)
  }
}

const zero = new Uint8Array(pageSize)

/** Those that are others than before, also those that are zero now. */
export const changed = (before: Pages, now: Pages): Pages => {
  const pages = new Map<number, Uint8Array>()
  for (const page of [...before.keys(), ...now.keys()]) {
    const [was, is] = [before.get(page) ?? zero, now.get(page) ?? zero]
    if (Buffer.compare(was, is) !== 0) pages.set(page, is)
  }
  return pages
}
