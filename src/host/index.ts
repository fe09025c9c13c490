/**
 * What a machine needs of its Linux host, beyond a process: links, addresses, a firewall, names, disks, limits, and checks of
 * what is there.
 *
 * @since 0.1.0
 */
export * as Addresses from "./Addresses.ts"
export * as Cidr from "./Cidr.ts"
export * as DiskClones from "./DiskClones.ts"
export * as DiskCollection from "./DiskCollection.ts"
export * as DiskFiles from "./DiskFiles.ts"
export * as DnsRelay from "./DnsRelay.ts"
export * as DnsTransport from "./DnsTransport.ts"
export * as EgressRule from "./EgressRule.ts"
export * as Ext4 from "./Ext4.ts"
export * as Firewall from "./Firewall.ts"
export * as HeldProcesses from "./HeldProcesses.ts"
export * as HostChecks from "./HostChecks.ts"
export * as HostCommands from "./HostCommands.ts"
export * as HostError from "./HostError.ts"
export * as HostFacts from "./HostFacts.ts"
export * as KernelSettings from "./KernelSettings.ts"
export * as Limits from "./Limits.ts"
export * as Links from "./Links.ts"
export * as LinkSpec from "./LinkSpec.ts"
export * as MachineDirectories from "./MachineDirectories.ts"
export * as MachineNetworks from "./MachineNetworks.ts"
export * as NodeDiskFiles from "./NodeDiskFiles.ts"
export * as NodeDnsTransport from "./NodeDnsTransport.ts"
export * as NodeHostCommands from "./NodeHostCommands.ts"
export * as NodeHostFacts from "./NodeHostFacts.ts"
export * as NodeMachineNetworks from "./NodeMachineNetworks.ts"
export * as Routes from "./Routes.ts"
export * as Templates from "./Templates.ts"
