/**
 * Machines on Firecracker, and its API, jailer, vsock, metrics and snapshots each by themselves.
 *
 * @since 0.1.0
 */
export * as ApiTransport from "./ApiTransport.ts"
export * as FirecrackerError from "./FirecrackerError.ts"
export * as FirecrackerVersion from "./FirecrackerVersion.ts"
