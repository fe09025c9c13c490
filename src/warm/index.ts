/**
 * Machines that start in milliseconds: snapshots on disk, golden machines, and clones of them that are made their own.
 *
 * @since 0.1.0
 */
export * as DiskSnapshotStore from "./DiskSnapshotStore.ts"
export * as FileSeals from "./FileSeals.ts"
export * as GoldenMachines from "./GoldenMachines.ts"
export * as NodeDiskSnapshotStore from "./NodeDiskSnapshotStore.ts"
export * as NodeFileSeals from "./NodeFileSeals.ts"
export * as NodeWarmMachine from "./NodeWarmMachine.ts"
export * as WarmMachine from "./WarmMachine.ts"
export * as WarmProgress from "./WarmProgress.ts"
