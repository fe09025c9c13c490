import { createHash } from "node:crypto"
import type { Kvm } from "../QemuHost.ts"

/**
 * Its name, and a digest of what it can do: the same model has other features below another hypervisor. With KVM the
 * kernel has a say in what a guest gets of it.
 */
export const describeCpu = (cpuinfo: string, kvm: Kvm, kernel: string): string => {
  const [first = ""] = cpuinfo.split("\n\n", 1)
  const lines = (keys: RegExp): ReadonlyArray<string> =>
    first.split("\n").flatMap((line) => {
      const [, key = "", value = ""] = /^(.*?)\s*:\s*(.*)$/.exec(line) ?? []
      return keys.test(key) ? [value] : []
    })
  const name = lines(/^(model name|CPU (implementer|variant|part|revision))$/).join(" ")
  const features = lines(/^(flags|vmx flags|Features|bugs)$/).join("\n")
  const digest = createHash("sha256").update(features).digest("hex").slice(0, 8)
  return `${name} (features ${digest}${kvm._tag === "Usable" ? `, Linux ${kernel}` : ""})`
}
