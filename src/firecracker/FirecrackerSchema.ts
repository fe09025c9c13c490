/**
 * The bodies and the answers of Firecracker's API. Names are those of the wire, unchanged. What is sent is exact: its
 * limits are checked, and other keys are a fault, since Firecracker refuses a whole body for one. What is answered is read
 * openly.
 *
 * Which version knows which field is told by `Capabilities`.
 *
 * Source: `firecracker.yaml` and the request types of Firecracker 1.7 to 1.17; where both differ, the types.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as device from "./internal/deviceSchema.ts"
import * as machine from "./internal/machineSchema.ts"

export {
  BalloonHintingStatus,
  BalloonInfo,
  BalloonStats,
  FullVmConfiguration,
  InstanceInfo,
  MachineConfigurationInfo,
  MemoryHotplugStatus,
  VersionInfo
} from "./internal/answerSchema.ts"
export {
  Balloon,
  BalloonStartCmd,
  BalloonStatsUpdate,
  BalloonUpdate,
  Drive,
  EntropyDevice,
  MemoryHotplugConfig,
  MemoryHotplugSizeUpdate,
  MmdsConfig,
  MmdsData,
  NetworkInterface,
  PartialDrive,
  PartialNetworkInterface,
  PartialPmem,
  Pmem,
  RateLimiter,
  SerialDevice,
  TokenBucket,
  Vsock
} from "./internal/deviceSchema.ts"
export {
  BootSource,
  CpuConfig,
  InstanceActionInfo,
  Logger,
  MachineConfiguration,
  MachineConfigurationUpdate,
  Metrics,
  SnapshotCreateParams,
  SnapshotLoadParams,
  Vm
} from "./internal/machineSchema.ts"
export { ResourceId } from "./internal/wireParts.ts"

/**
 * The body of each request, by its name.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerSchema } from "effect-microvm-runtime/firecracker"
 * import * as Schema from "effect/Schema"
 * const isVsock = Schema.is(FirecrackerSchema.requests.Vsock)
 * isVsock({ guest_cid: 3, uds_path: "vsock.sock" }) // => true
 * isVsock({ guest_cid: 2, uds_path: "vsock.sock" }) // => false
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const requests = {
  Balloon: device.Balloon,
  BalloonStartCmd: device.BalloonStartCmd,
  BalloonStatsUpdate: device.BalloonStatsUpdate,
  BalloonUpdate: device.BalloonUpdate,
  BootSource: machine.BootSource,
  CpuConfig: machine.CpuConfig,
  Drive: device.Drive,
  EntropyDevice: device.EntropyDevice,
  InstanceActionInfo: machine.InstanceActionInfo,
  Logger: machine.Logger,
  MachineConfiguration: machine.MachineConfiguration,
  MachineConfigurationUpdate: machine.MachineConfigurationUpdate,
  MemoryHotplugConfig: device.MemoryHotplugConfig,
  MemoryHotplugSizeUpdate: device.MemoryHotplugSizeUpdate,
  Metrics: machine.Metrics,
  MmdsConfig: device.MmdsConfig,
  MmdsData: device.MmdsData,
  NetworkInterface: device.NetworkInterface,
  PartialDrive: device.PartialDrive,
  PartialNetworkInterface: device.PartialNetworkInterface,
  PartialPmem: device.PartialPmem,
  Pmem: device.Pmem,
  SerialDevice: device.SerialDevice,
  SnapshotCreateParams: machine.SnapshotCreateParams,
  SnapshotLoadParams: machine.SnapshotLoadParams,
  Vm: machine.Vm,
  Vsock: device.Vsock
} as const

/**
 * @category models
 * @since 0.1.0
 */
export type RequestName = keyof typeof requests

/**
 * A bucket of `size` tokens that is full again after `every`, rounded up to milliseconds: 0 of them would be no limit. The
 * one-time burst is as large as the bucket unless it is given; Firecracker's own default would be none.
 *
 * ```ts import.meta.vitest
 * import { FirecrackerSchema } from "effect-microvm-runtime/firecracker"
 * const bucket = FirecrackerSchema.tokenBucket({ size: 1_048_576, every: "1 second" })
 * bucket // => { size: 1048576, refill_time: 1000, one_time_burst: 1048576 }
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const tokenBucket = (options: {
  readonly size: number
  readonly every: Duration.Input
  readonly burst?: number | undefined
}): device.TokenBucket => ({
  size: options.size,
  refill_time: Math.ceil(Duration.toMillis(Duration.fromInputUnsafe(options.every))),
  one_time_burst: options.burst ?? options.size
})
