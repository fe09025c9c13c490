/**
 * Who owns what, surviving our death: claims, the lease on a state directory, and what is done about the claims of the dead.
 *
 * @since 0.1.0
 */
export * as Journal from "./Journal.ts"
export * as JournalError from "./JournalError.ts"
export * as Lease from "./Lease.ts"
export * as MachineRecord from "./MachineRecord.ts"
export * as NodeJournal from "./NodeJournal.ts"
export * as NodeLease from "./NodeLease.ts"
export * as Reclaimer from "./Reclaimer.ts"
export * as Reconcile from "./Reconcile.ts"
export * as ResourceKind from "./ResourceKind.ts"
