/**
 * What an image is made of, as a value: which Debian packages, which modules of the kernel, which files of ours.
 *
 * @since 0.1.0
 */
import type * as Cpio from "./Cpio.ts"
import * as GuestScripts from "./GuestScripts.ts"

/**
 * A module of the kernel that the guest loads at boot. With `device`, a virtio device type, it is loaded only in guests
 * that have such a device (Virtual I/O Device specification, section 5: 1 is a network card, 2 a disk, 3 a console, 4 a source of entropy, 19 a socket).
 *
 * @category models
 * @since 0.1.0
 */
export interface KernelModule {
  /** The name of its file, without `.ko`. */
  readonly name: string
  readonly device?: number
}

/**
 * The parts of an image. Packages are named without a version: apt's candidate is taken when the image is built.
 *
 * @category models
 * @since 0.1.0
 */
export interface ImageRecipe {
  /** A package that depends on the newest kernel of its kind, `linux-image-…`. */
  readonly kernelPackage: string
  /** The package of `qemu-ga`. The libraries it needs are found by themselves. */
  readonly agentPackage: string
  /** The package of a busybox without libraries. */
  readonly shellPackage: string
  /** In the order in which they can be loaded: what a module depends on comes before it. */
  readonly modules: ReadonlyArray<KernelModule>
  /** What else is in the guest's file system, its init among it. */
  readonly entries: ReadonlyArray<Cpio.Entry>
}

/**
 * Debian's kernel for virtual machines, busybox and QEMU's guest agent, with modules for the console ports, the sockets
 * to the host, the network, disks, the power button and the news of a panic.
 *
 * @category constants
 * @since 0.1.0
 */
export const standard: ImageRecipe = {
  kernelPackage: "linux-image-cloud-amd64",
  agentPackage: "qemu-guest-agent",
  shellPackage: "busybox-static",
  modules: [
    { name: "virtio_ring" },
    { name: "virtio" },
    { name: "virtio_pci_modern_dev" },
    { name: "virtio_pci_legacy_dev" },
    { name: "virtio_pci" },
    { name: "virtio_mmio" },
    { name: "virtio_console", device: 3 },
    { name: "pvpanic" },
    { name: "pvpanic-mmio" },
    { name: "button" },
    { name: "evdev" },
    { name: "virtio-rng", device: 4 },
    { name: "failover", device: 1 },
    { name: "net_failover", device: 1 },
    { name: "virtio_net", device: 1 },
    { name: "virtio_blk", device: 2 },
    { name: "vsock", device: 19 },
    { name: "vmw_vsock_virtio_transport_common", device: 19 },
    { name: "vmw_vsock_virtio_transport", device: 19 }
  ],
  entries: GuestScripts.entries
}
