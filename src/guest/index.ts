/**
 * Talking to the agent inside a guest, over any byte stream.
 *
 * @since 0.1.0
 */
export * as GuestAgent from "./GuestAgent.ts"
export * as GuestAgentSchema from "./GuestAgentSchema.ts"
export * as GuestCommand from "./GuestCommand.ts"
export * as GuestError from "./GuestError.ts"
export * as GuestRenewal from "./GuestRenewal.ts"
export * as GuestResident from "./GuestResident.ts"
export * as GuestSlots from "./GuestSlots.ts"
export * as GuestStdio from "./GuestStdio.ts"
