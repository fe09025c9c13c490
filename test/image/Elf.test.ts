import { describe, expect, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Elf from "../../src/image/internal/elf.ts"
import { elfFile } from "./elfFile.ts"

describe("elf", () => {
  it("finds the loader and the libraries, in their order", () => {
    const program = elfFile({ interpreter: "/lib64/ld.so.2", needed: ["libb.so.1", "liba.so.6"] })
    expect(Result.getOrThrow(Elf.needed("program", program))).toEqual(["/lib64/ld.so.2", "libb.so.1", "liba.so.6"])
    expect(Result.getOrThrow(Elf.needed("static", elfFile({})))).toEqual([])
  })

  it("refuses what is no ELF file, or not all of one", () => {
    const whole = elfFile({ interpreter: "/lib64/ld.so.2", needed: ["liba.so.6"] })
    for (const bytes of [new Uint8Array(0), new TextEncoder().encode("#!/bin/sh\n"), whole.subarray(0, 100)]) {
      const result = Elf.needed("program", bytes)
      expect(Result.isFailure(result) && result.failure.reason).toMatchObject({
        _tag: "UnexpectedContent",
        file: "program"
      })
    }
  })

  it("tells whether a kernel starts uncompressed", () => {
    expect(Elf.hasPvhEntry(elfFile({ pvh: true }))).toBe(true)
    expect(Elf.hasPvhEntry(elfFile({}))).toBe(false)
    expect(Elf.hasPvhEntry(new Uint8Array(100))).toBe(false)
  })
})
