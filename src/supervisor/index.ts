/**
 * Machines with all that they need of their host, written down before it is acquired, and got hold of again after our death.
 *
 * @since 0.1.0
 */
export * as NodeSupervisor from "./NodeSupervisor.ts"
export * as Resources from "./Resources.ts"
export * as Supervisor from "./Supervisor.ts"
export * as Watchdog from "./Watchdog.ts"
