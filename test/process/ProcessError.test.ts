import { assert, describe, it } from "@effect/vitest"
import { ProcessError } from "effect-microvm-runtime/process"

const notFound = (searched: ReadonlyArray<string>): string =>
  ProcessError.fromReason(ProcessError.ProcessErrorReason.NotFound({ command: "tool", searched })).message

describe("ProcessError", () => {
  it("tells where a command was looked for, and of a long PATH the end, in whole directories", () => {
    const usual = ["/usr/local/bin", "/usr/bin", "/bin"]
    assert.strictEqual(
      notFound(usual),
      "tool: not found in /usr/local/bin:/usr/bin:/bin: install it, or give its path"
    )
    const long = Array.from({ length: 100 }, (_, index) => `/home/somebody/project/${index}/node_modules/.bin`)
    assert.match(
      notFound([...long, ...usual]),
      /^tool: not found in …(:\/home\/somebody\/project\/9\d\/node_modules\/\.bin){2,4}:\/usr\/local\/bin:\/usr\/bin:\/bin: install/
    )
    assert.strictEqual(notFound([`/${"x".repeat(500)}`]), "tool: not found in …: install it, or give its path")
  })
})
