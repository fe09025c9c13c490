/**
 * Fakes that speak the real protocols, scripted processes under virtual time, and the suite that every backend has to
 * pass.
 *
 * @since 0.1.0
 */
export * as FakeFirecracker from "./FakeFirecracker.ts"
export * as FakeGuestAgent from "./FakeGuestAgent.ts"
export * as FakeGuestProgram from "./FakeGuestProgram.ts"
export * as FakeGuestRenewal from "./FakeGuestRenewal.ts"
export * as FakeJailer from "./FakeJailer.ts"
export * as FakeQmp from "./FakeQmp.ts"
export * as FakeRuntimeApi from "./FakeRuntimeApi.ts"
export * as FakeService from "./FakeService.ts"
export * as FakeSupervisor from "./FakeSupervisor.ts"
export * as FakeWarmMachine from "./FakeWarmMachine.ts"
export * as LifecycleConformance from "./LifecycleConformance.ts"
export * as LifecycleProbe from "./LifecycleProbe.ts"
export * as MicroVmConformance from "./MicroVmConformance.ts"
export * as ScriptedProcess from "./ScriptedProcess.ts"
