/**
 * Machines on QEMU, with KVM where it is usable and without it where it is not.
 *
 * @since 0.1.0
 */
export * as LaunchPlan from "./LaunchPlan.ts"
export * as NodeQemuHost from "./NodeQemuHost.ts"
export * as QemuHost from "./QemuHost.ts"
export * as QemuProvider from "./QemuProvider.ts"
export * as Qmp from "./Qmp.ts"
export * as QmpError from "./QmpError.ts"
export * as QmpSchema from "./QmpSchema.ts"
