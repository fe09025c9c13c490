import * as MicroVmError from "../../microvm/MicroVmError.ts"
import type { FirecrackerError } from "../FirecrackerError.ts"

/** What the caller calls it that a part of the plan has another name for. */
const fieldNames: { readonly [field: string]: string } = {
  args: "kernelArgs",
  "bootSource.boot_args": "kernelArgs",
  hostname: "hostname",
  "machine.mem_size_mib": "memoryMib",
  "machine.vcpu_count": "vcpus"
}

/** The faults of a part of a plan, as those of what the caller has given for it. */
export const faultsOf =
  (part: "devices" | "jail") => ({ reason }: FirecrackerError): ReadonlyArray<MicroVmError.Fault> =>
    reason._tag !== "InvalidRequest" ? [] : reason.faults.map(({ field, remedy, value }) => ({
      field: part === "devices"
        ? fieldNames[field] ?? `${part}.${field.replace(/^devices\./, "")}`
        : `${part}.${field}`,
      value,
      remedy
    }))

export const unsupported = ({ reason }: FirecrackerError): MicroVmError.MicroVmError => {
  const [version, features] = reason._tag === "UnsupportedByVersion" ? [reason.version, reason.features] : ["", []]
  const words = features.map(({ feature, since }) => since === undefined ? feature : `${feature} (since ${since})`)
  return MicroVmError.make(
    new MicroVmError.Unsupported({
      operation: words.join(", "),
      backend: `firecracker ${version}`,
      remedy: "leave it out, or use a later release"
    })
  )
}
