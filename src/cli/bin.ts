#!/usr/bin/env node
/**
 * The executable: loads the program, and exits. With a service's edge, the only place that calls `process.exit`.
 */
import { keepCompiled } from "./internal/NodeCompileCache.ts"

// From the sources, it would be a file for each module.
if (import.meta.url.endsWith(".js")) keepCompiled()

const { main } = await import("./internal/NodeMain.ts")
main((code) => process.exit(code))
