/**
 * What devices are configured and changed with.
 */
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { between, HostDevice, Mac, Path, ResourceId, SocketPath, U16, U32, U64 } from "./wireParts.ts"

const { optional } = Schema

/**
 * `size` tokens that come back within `refill_time` milliseconds, evenly. `one_time_burst` (default 0) is spent before
 * them, and never comes back. With a `size` or `refill_time` of 0 there is no limit, which is how one is taken away.
 *
 * @category schemas
 * @since 0.1.0
 */
export const TokenBucket = Schema.Struct({
  size: U64,
  refill_time: U64,
  one_time_burst: optional(U64)
})

/**
 * @category models
 * @since 0.1.0
 */
export type TokenBucket = typeof TokenBucket.Type

/**
 * A limit of bytes, of operations, or of both. A bucket that is left out in a change stays as it is; one that is given
 * begins anew, full.
 *
 * @category schemas
 * @since 0.1.0
 */
export const RateLimiter = Schema.Struct({ bandwidth: optional(TokenBucket), ops: optional(TokenBucket) })

/**
 * @category models
 * @since 0.1.0
 */
export type RateLimiter = typeof RateLimiter.Type

const virtioOnly = ["path_on_host", "is_read_only", "rate_limiter", "io_engine"] as const

/**
 * A disk: a file of the host (`path_on_host`), or a vhost-user-block back end (`socket`, a preview that snapshots cannot
 * hold). `io_engine` `Async` (preview) needs a host kernel of 5.10.51 or later. `partuuid` counts for a root device only.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Drive = Schema.Struct({
  drive_id: ResourceId,
  is_root_device: Schema.Boolean,
  partuuid: optional(Schema.String.check(
    Schema.isPattern(/^[0-9A-Za-z-]{1,64}$/, { expected: "the id of a partition" })
  )),
  cache_type: optional(Schema.Literals(["Unsafe", "Writeback"])),
  is_read_only: optional(Schema.Boolean),
  path_on_host: optional(Path),
  rate_limiter: optional(RateLimiter),
  io_engine: optional(Schema.Literals(["Sync", "Async"])),
  socket: optional(SocketPath)
}).check(Schema.makeFilter((drive) => {
  if (drive.socket === undefined) {
    return drive.path_on_host === undefined ? [{ path: ["path_on_host"], issue: "give it, or a socket" }] : []
  }
  return virtioOnly.flatMap((key) =>
    drive[key] === undefined ? [] : [{ path: [key], issue: "leave it out of a drive with a socket" }]
  )
}))

/**
 * @category models
 * @since 0.1.0
 */
export type Drive = typeof Drive.Type

/**
 * Another file behind a disk, or other limits. The same path announces a file of another size. Only safe while the guest
 * does not use the disk. For a vhost-user-block device give neither: its configuration is read again.
 *
 * @category schemas
 * @since 0.1.0
 */
export const PartialDrive = Schema.Struct({
  drive_id: ResourceId,
  path_on_host: optional(Path),
  rate_limiter: optional(RateLimiter)
})

/**
 * @category models
 * @since 0.1.0
 */
export type PartialDrive = typeof PartialDrive.Type

/**
 * A file that the guest sees as memory, `/dev/pmem0` and on. A guest that writes to a `read_only` one may end the machine.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Pmem = Schema.Struct({
  id: ResourceId,
  path_on_host: Path,
  root_device: optional(Schema.Boolean),
  read_only: optional(Schema.Boolean),
  rate_limiter: optional(RateLimiter)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Pmem = typeof Pmem.Type

/**
 * @category schemas
 * @since 0.1.0
 */
export const PartialPmem = Schema.Struct({ id: ResourceId, rate_limiter: optional(RateLimiter) })

/**
 * @category models
 * @since 0.1.0
 */
export type PartialPmem = typeof PartialPmem.Type

/**
 * A network interface on a TAP device that is there already. `iface_id` is not its name in the guest. `mtu` is told to the
 * guest.
 *
 * @category schemas
 * @since 0.1.0
 */
export const NetworkInterface = Schema.Struct({
  iface_id: ResourceId,
  host_dev_name: HostDevice,
  guest_mac: optional(Mac),
  mtu: optional(between(68, 65_535)),
  rx_rate_limiter: optional(RateLimiter),
  tx_rate_limiter: optional(RateLimiter)
})

/**
 * @category models
 * @since 0.1.0
 */
export type NetworkInterface = typeof NetworkInterface.Type

/**
 * @category schemas
 * @since 0.1.0
 */
export const PartialNetworkInterface = Schema.Struct({
  iface_id: ResourceId,
  rx_rate_limiter: optional(RateLimiter),
  tx_rate_limiter: optional(RateLimiter)
})

/**
 * @category models
 * @since 0.1.0
 */
export type PartialNetworkInterface = typeof PartialNetworkInterface.Type

/**
 * The vsock device, of which there is one. Firecracker binds `uds_path` at the call, so nothing may be there, and leaves
 * the file behind when it ends. CIDs need not differ between machines. `vsock_id` is deprecated.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Vsock = Schema.Struct({
  guest_cid: between(3, 2 ** 32 - 2),
  uds_path: SocketPath,
  vsock_id: optional(ResourceId)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Vsock = typeof Vsock.Type

/**
 * The balloon: `amount_mib` MiB that the guest is asked to give back, at most its memory. It depends on the guest, so it is
 * no limit. With an interval of 0 (default) there are no statistics, and they cannot be turned on later.
 * `free_page_hinting` is a preview.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Balloon = Schema.Struct({
  amount_mib: U32,
  deflate_on_oom: Schema.Boolean,
  stats_polling_interval_s: optional(U16),
  free_page_hinting: optional(Schema.Boolean),
  free_page_reporting: optional(Schema.Boolean)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Balloon = typeof Balloon.Type

/**
 * @category schemas
 * @since 0.1.0
 */
export const BalloonUpdate = Schema.Struct({ amount_mib: U32 })

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonUpdate = typeof BalloonUpdate.Type

/**
 * @category schemas
 * @since 0.1.0
 */
export const BalloonStatsUpdate = Schema.Struct({ stats_polling_interval_s: U16 })

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonStatsUpdate = typeof BalloonStatsUpdate.Type

/**
 * Starts a run of free page hinting. `acknowledge_on_stop` (default true) ends it when the guest has told all.
 *
 * @category schemas
 * @since 0.1.0
 */
export const BalloonStartCmd = Schema.Struct({ acknowledge_on_stop: optional(Schema.Boolean) })

/**
 * @category models
 * @since 0.1.0
 */
export type BalloonStartCmd = typeof BalloonStartCmd.Type

/**
 * A source of random numbers for the guest.
 *
 * @category schemas
 * @since 0.1.0
 */
export const EntropyDevice = Schema.Struct({ rate_limiter: optional(RateLimiter) })

/**
 * @category models
 * @since 0.1.0
 */
export type EntropyDevice = typeof EntropyDevice.Type

/**
 * Where the serial console writes to instead of stdout. It then has no input. What is over the limit is dropped.
 *
 * @category schemas
 * @since 0.1.0
 */
export const SerialDevice = Schema.Struct({
  serial_out_path: optional(Path),
  rate_limiter: optional(TokenBucket)
})

/**
 * @category models
 * @since 0.1.0
 */
export type SerialDevice = typeof SerialDevice.Type

const defaultBlock = 2
const defaultSlot = 128

/**
 * Memory that can be plugged later, in MiB: all of it (`total_size_mib`), by how much the host gives it
 * (`slot_size_mib`, default 128), and by how much the guest takes it (`block_size_mib`, default 2, a power of two). Each is
 * a multiple of the next.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MemoryHotplugConfig = Schema.Struct({
  total_size_mib: U32,
  slot_size_mib: optional(between(128, 2 ** 32 - 1)),
  block_size_mib: optional(between(2, 2 ** 32 - 1))
}).check(Schema.makeFilter(({ block_size_mib: block = defaultBlock, slot_size_mib: slot = defaultSlot, ...rest }) => [
  ...(Number.isInteger(Math.log2(block)) ? [] : [{ path: ["block_size_mib"], issue: "give a power of two" }]),
  ...(slot % block === 0 ? [] : [{ path: ["slot_size_mib"], issue: `give a multiple of block_size_mib, ${block}` }]),
  ...(rest.total_size_mib > 0 && rest.total_size_mib % slot === 0
    ? []
    : [{ path: ["total_size_mib"], issue: `give a multiple of slot_size_mib, ${slot}` }])
]))

/**
 * @category models
 * @since 0.1.0
 */
export type MemoryHotplugConfig = typeof MemoryHotplugConfig.Type

/**
 * How much of the memory that can be plugged shall be. A multiple of the block size, and at most the total size.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MemoryHotplugSizeUpdate = Schema.Struct({ requested_size_mib: U32 })

/**
 * @category models
 * @since 0.1.0
 */
export type MemoryHotplugSizeUpdate = typeof MemoryHotplugSizeUpdate.Type

const byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
// RFC 3927 keeps the first and the last 256 addresses for later.
const linkLocal = new RegExp(`^169\\.254\\.(?!0\\.|255\\.)${byte}\\.${byte}$`)

/**
 * Which interfaces reach the metadata service, and how. They have to be configured before. `version` `V1` is deprecated,
 * and still the default. `ipv4_address` is 169.254.169.254 by default.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MmdsConfig = Schema.Struct({
  network_interfaces: Schema.Array(ResourceId).check(
    Schema.makeFilter((ids) => ids.length > 0, { expected: "one id of an interface at least" })
  ),
  version: optional(Schema.Literals(["V1", "V2"])),
  ipv4_address: optional(Schema.String.check(
    Schema.isPattern(linkLocal, { expected: "an address from 169.254.1.0 to 169.254.254.255" })
  )),
  imds_compat: optional(Schema.Boolean)
})

/**
 * @category models
 * @since 0.1.0
 */
export type MmdsConfig = typeof MmdsConfig.Type

const isJson = Schema.is(Schema.Json)

/**
 * What the metadata service holds: any JSON, plain or `Redacted`. A snapshot does not hold it.
 *
 * @category schemas
 * @since 0.1.0
 */
export const MmdsData = Schema.declare(
  (data): data is Schema.Json | Redacted.Redacted<Schema.Json> =>
    isJson(Redacted.isRedacted(data) ? Redacted.value(data) : data),
  { expected: "JSON, plain or Redacted" }
)

/**
 * @category models
 * @since 0.1.0
 */
export type MmdsData = typeof MmdsData.Type
