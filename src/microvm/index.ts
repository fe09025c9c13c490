/**
 * The port to microVMs: what a machine is, what may be done to it and when, and what a backend must be able to do.
 *
 * @since 0.1.0
 */
export * as GuestNetwork from "./GuestNetwork.ts"
export * as Machine from "./Machine.ts"
export * as MachineEnd from "./MachineEnd.ts"
export * as MachineSpec from "./MachineSpec.ts"
export * as MachineState from "./MachineState.ts"
export * as MemoryDriver from "./MemoryDriver.ts"
export * as MemoryProvider from "./MemoryProvider.ts"
export * as MicroVmError from "./MicroVmError.ts"
export * as MicroVmPool from "./MicroVmPool.ts"
export * as MicroVmProvider from "./MicroVmProvider.ts"
export * as MicroVmRuntime from "./MicroVmRuntime.ts"
export * as Snapshot from "./Snapshot.ts"
export * as SnapshotStore from "./SnapshotStore.ts"
