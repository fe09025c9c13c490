/**
 * Who owns what, surviving our death: claims, the lease on a state directory, and what is done about the claims of the dead.
 *
 * @since 0.1.0
 */
export * as Journal from "./Journal.ts"
export * as JournalError from "./JournalError.ts"
export * as MachineRecord from "./MachineRecord.ts"
export * as ResourceKind from "./ResourceKind.ts"
