/**
 * What a machine needs of its Linux host, beyond a process: links, addresses, a firewall, names, disks, limits, and checks of
 * what is there.
 *
 * @since 0.1.0
 */
export * as HostCommands from "./HostCommands.ts"
export * as HostError from "./HostError.ts"
