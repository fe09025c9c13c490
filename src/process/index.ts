/**
 * A good parent: spawn in a scope, exit as a value, identity, kill scope, readiness, and nothing left behind.
 *
 * @since 0.1.0
 */
export * as AdoptedProcess from "./AdoptedProcess.ts"
export * as EffectProcess from "./EffectProcess.ts"
export * as KillScope from "./KillScope.ts"
export * as Mark from "./Mark.ts"
export * as NodeFileDigest from "./NodeFileDigest.ts"
export * as NodeProcessHolder from "./NodeProcessHolder.ts"
export * as NodeProcessHost from "./NodeProcessHost.ts"
export * as NodeProcessSpawner from "./NodeProcessSpawner.ts"
export * as NodeReadiness from "./NodeReadiness.ts"
export * as NodeSupervisorGuard from "./NodeSupervisorGuard.ts"
export * as OutputTail from "./OutputTail.ts"
export * as OwnedFiles from "./OwnedFiles.ts"
export * as OwnerLock from "./OwnerLock.ts"
export * as Process from "./Process.ts"
export * as ProcessCapabilities from "./ProcessCapabilities.ts"
export * as ProcessError from "./ProcessError.ts"
export * as ProcessHolder from "./ProcessHolder.ts"
export * as ProcessHost from "./ProcessHost.ts"
export * as ProcessIdentity from "./ProcessIdentity.ts"
export * as ProcessSpawner from "./ProcessSpawner.ts"
export * as Readiness from "./Readiness.ts"
export * as SpawnOptions from "./SpawnOptions.ts"
export * as SupervisorGuard from "./SupervisorGuard.ts"
export * as UserMap from "./UserMap.ts"
