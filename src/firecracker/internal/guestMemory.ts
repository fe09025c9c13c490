/** What a Firecracker tells of its memory, and what is wanted of it before it is asked for. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { WorkingSet } from "../PageServer.ts"
import type { Region } from "./faultLoop.ts"

export interface GuestMemory {
  readonly pageSize: WorkingSet["pageSize"]
  readonly regions: ReadonlyArray<Region>
}

const Natural = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

/** `GuestRegionUffdMapping` of vmm/src/persist.rs. */
const Mapping = Schema.Struct({
  base_host_virt_addr: Natural,
  size: Natural,
  offset: Natural,
  /** In bytes; since 1.12. */
  page_size: Schema.optionalKey(Natural),
  /** In bytes too, whatever its name says; since 1.7. */
  page_size_kib: Schema.optionalKey(Natural)
})

/** A machine has two or three. */
const mostMappings = 64

const decode = Schema.decodeUnknownResult(
  Schema.fromJsonString(Schema.NonEmptyArray(Mapping).check(Schema.isMaxLength(mostMappings)))
)

const isPageSize = Schema.is(WorkingSet.fields.pageSize)

/** Reads Firecracker's message. Fails with what is wrong with it, or with a memory file of `size` bytes for such a machine. */
export const read = (message: string, size: number): Result.Result<GuestMemory, string> =>
  Result.flatMap(
    Result.mapError(decode(message), ({ message: why }) => `it did not tell of its memory: ${why}`),
    (mappings) => {
      const sizes = new Set(mappings.map((mapping) => mapping.page_size ?? mapping.page_size_kib ?? 4096))
      const [pageSize] = sizes
      if (sizes.size > 1 || !isPageSize(pageSize)) {
        return Result.fail(`its pages have ${[...sizes].join(" and ")} bytes`)
      }
      const isOdd = (value: number): boolean => value % pageSize !== 0
      if (mappings.some((one) => isOdd(one.base_host_virt_addr) || isOdd(one.size) || isOdd(one.offset))) {
        return Result.fail(`its memory does not consist of pages of ${pageSize} bytes`)
      }
      if (isOdd(size)) return Result.fail(`the memory file does not consist of pages of ${pageSize} bytes`)
      return Result.succeed({
        pageSize,
        regions: mappings.map(({ base_host_virt_addr: base, offset, size: length }) => ({ base, size: length, offset }))
      })
    }
  )

/** What is copied at once: as much as a fault may have to wait for. */
const mostOfRun = 512 * 1024

/**
 * Pairs of offset and length, for a memory file of `size` bytes: in the order of the working set, but with each page go those
 * that follow it in the file. What is not in the file is left out.
 */
export const runs = (workingSet: WorkingSet, pageSize: number, size: number): Float64Array => {
  const pages = size / pageSize
  const wanted = new Uint8Array(pages)
  const unit = workingSet.pageSize / pageSize
  const first = (page: number): number => Math.floor(page * unit)
  for (const page of workingSet.pages) wanted.fill(1, first(page), first(page) + Math.max(1, unit))
  const most = Math.max(1, mostOfRun / pageSize)
  const found: Array<number> = []
  for (const page of workingSet.pages) {
    const end = Math.min(pages, first(page) + Math.max(1, unit))
    for (let start = first(page); start < end;) {
      let next = start
      while (next - start < most && wanted[next] === 1) wanted[next++] = 0
      if (next > start) found.push(start * pageSize, (next - start) * pageSize)
      start = Math.max(next, start + 1)
    }
  }
  return Float64Array.from(found)
}
