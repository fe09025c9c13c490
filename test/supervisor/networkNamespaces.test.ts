/** What is found of network namespaces, in a directory that has the form of /proc. */
import { assert, describe, it } from "@effect/vitest"
import * as NodeFs from "node:fs"
import * as NodeOs from "node:os"
import * as NodePath from "node:path"
import { look } from "../../src/supervisor/internal/NodeNetworkNamespaces.ts"

/** Links, and files whose text has blanks in it. */
const lookAt = (files: Readonly<Record<string, string>>) => {
  const proc = NodeFs.mkdtempSync(NodePath.join(NodeOs.tmpdir(), "proc-test-"))
  try {
    for (const [name, text] of Object.entries(files)) {
      const path = NodePath.join(proc, name)
      NodeFs.mkdirSync(NodePath.dirname(path), { recursive: true })
      if (text.includes(" ")) NodeFs.writeFileSync(path, text)
      else NodeFs.symlinkSync(text, path)
    }
    const { isWhole, names } = look(proc)
    return { isWhole, names: [...names].toSorted() }
  } finally {
    NodeFs.rmSync(proc, { recursive: true })
  }
}

const host = {
  "self/ns/pid": "pid:[4026531836]",
  "1/ns/mnt": "mnt:[1]",
  "1/task/1/ns/net": "net:[1]",
  "1/fd/0": "/dev/null",
  "1/mountinfo": "24 29 0:22 / /proc rw - proc proc rw\n"
}

describe("network namespaces", () => {
  it("are kept by threads, by files and by mounts", () => {
    assert.deepStrictEqual(lookAt(host), { isWhole: true, names: ["net:[1]"] })
    const names = lookAt({
      ...host,
      "7/ns/mnt": "mnt:[1]",
      "7/task/7/ns/net": "net:[1]",
      "7/task/8/ns/net": "net:[2]",
      "7/fd/3": "net:[3]",
      "7/fd/4": "socket:[9]",
      "9/ns/mnt": "mnt:[2]",
      "9/mountinfo":
        "31 29 0:4 net:[4] /run/netns/x rw shared:2 - nsfs nsfs rw\n32 29 0:4 mnt:[5] /run/y rw - nsfs nsfs rw\n"
    })
    assert.deepStrictEqual(names, { isWhole: true, names: ["net:[1]", "net:[2]", "net:[3]", "net:[4]"] })
  })

  it("may be others where not all processes are seen", () => {
    assert.isFalse(lookAt({ ...host, "self/ns/pid": "pid:[4026532000]" }).isWhole)
    // As with `hidepid=2`: nobody but ourselves.
    assert.isFalse(lookAt({ "self/ns/pid": "pid:[4026531836]", "7/task/7/ns/net": "net:[1]" }).isWhole)
    // What is there, and is not to be read.
    assert.isFalse(lookAt({ ...host, "7/task/7/ns/net": "not a link" }).isWhole)
  })

  it("are there, the one that we are in too", () => {
    assert.isTrue(look().names.has(NodeFs.readlinkSync("/proc/self/ns/net")))
  })
})
