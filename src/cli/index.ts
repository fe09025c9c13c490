/**
 * The command line `microvm`: it picks the backend and owns the terminal.
 *
 * @since 0.1.0
 */
export * as Backend from "./Backend.ts"
export * as Commands from "./Commands.ts"
export * as Control from "./Control.ts"
export * as ControlRequest from "./ControlRequest.ts"
export * as Doctor from "./Doctor.ts"
export * as FirecrackerHere from "./FirecrackerHere.ts"
export * as HostSignals from "./HostSignals.ts"
export * as ImageCommands from "./ImageCommands.ts"
export * as MachineCommands from "./MachineCommands.ts"
export * as NodeControl from "./NodeControl.ts"
export * as NodeDetach from "./NodeDetach.ts"
export * as NodeFirecrackerHere from "./NodeFirecrackerHere.ts"
export * as NodeRunHost from "./NodeRunHost.ts"
export * as RecoverCommand from "./RecoverCommand.ts"
export * as Reporter from "./Reporter.ts"
export * as Run from "./Run.ts"
export * as RunDirectory from "./RunDirectory.ts"
export * as RunHost from "./RunHost.ts"
export * as RunLog from "./RunLog.ts"
export * as RunOptions from "./RunOptions.ts"
export * as SnapshotCommands from "./SnapshotCommands.ts"
export * as Snapshots from "./Snapshots.ts"
