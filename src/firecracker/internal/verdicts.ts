import type { MicroVmError } from "../../microvm/MicroVmError.ts"
import { FirecrackerError } from "../FirecrackerError.ts"
import type { FileFacts, Setup } from "../FirecrackerHost.ts"
import * as FirecrackerVersion from "../FirecrackerVersion.ts"

/** Why this Firecracker does not boot such an image, where that is certain. */
export const kernelFault = ({ architecture, version }: Setup, kernel: FileFacts["kernel"]): string | undefined => {
  if (kernel === undefined) return undefined
  if (architecture === "aarch64") {
    return kernel === "arm64 Image"
      ? undefined
      : `it is ${kernel === "ELF" ? "an ELF" : "a bzImage"}, not an arm64 Image`
  }
  if (kernel === "arm64 Image") return "it is an arm64 Image, not a kernel for x86_64"
  return kernel === "ELF" || FirecrackerVersion.isAtLeast(version, { major: 1, minor: 17, patch: 0 })
    ? undefined
    : "it is a bzImage, which Firecracker boots from 1.17 on: extract its vmlinux (scripts/extract-vmlinux of Linux)"
}

/** Was it only the clock that could not be restored? */
export const refusedClock = ({ reason }: MicroVmError): boolean =>
  reason._tag === "LaunchFailed" && reason.cause instanceof FirecrackerError
  && reason.cause.reason._tag === "ApiFault" && reason.cause.reason.kind === "RestoreFailed"
  && /clock_realtime/.test(reason.cause.reason.message)
