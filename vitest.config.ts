import { fileURLToPath } from "node:url"
import { defaultServerConditions } from "vite"
import { defineConfig } from "vitest/config"
import { doctest } from "./test/house/doctest.ts"

// The same condition that tsconfig.json names: `effect-microvm-runtime/process` is src/process here, not dist.
const resolve = { conditions: ["@effect-microvm-runtime/source", ...defaultServerConditions] }

// Projects of one group run at the same time, groups one after the other: what boots machines, builds or packs would
// otherwise take the processor from tests that watch real processes.
export default defineConfig({
  resolve,
  ssr: { resolve },
  test: {
    // Only what hangs comes to them: a busy host, and a first start from source, take many times what is usual.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // By itself, Vitest leaves a processor free; tests wait more than they work.
    maxWorkers: "100%",
    env: {
      // Not where this machine's own runs are.
      MICROVM_STATE_DIR: fileURLToPath(new URL("node_modules/.state", import.meta.url)),
      // Of the programs that tests start: compiled once, one from source starts in half of the time.
      NODE_COMPILE_CACHE: fileURLToPath(new URL(".cache/node", import.meta.url))
    },
    projects: [
      {
        extends: true,
        test: {
          name: "unit",
          // To load Effect anew for each file takes a third of the time. Nothing that a file changes in its process outlasts it.
          isolate: false,
          include: ["test/**/*.test.ts"],
          exclude: ["test/**/*.integration.test.ts", "test/house/**"],
          sequence: { groupOrder: 0 }
        }
      },
      {
        extends: true,
        plugins: [doctest()],
        test: {
          name: "examples",
          isolate: false,
          include: [],
          includeSource: ["src/**/*.ts"],
          sequence: { groupOrder: 1 }
        }
      },
      {
        extends: true,
        test: {
          name: "house",
          include: ["test/house/**/*.test.ts"],
          // What these start is in a new place each time: what was compiled of it would not be found again, and never go.
          env: { NODE_DISABLE_COMPILE_CACHE: "1" },
          sequence: { groupOrder: 2 }
        }
      },
      {
        extends: true,
        test: {
          name: "services",
          include: ["test/{journal,service,testing}/**/*.integration.test.ts"],
          testTimeout: 180_000,
          hookTimeout: 180_000,
          sequence: { groupOrder: 3 }
        }
      },
      {
        extends: true,
        test: {
          name: "hosts",
          include: ["test/{firecracker,host,process,supervisor}/**/*.integration.test.ts"],
          testTimeout: 180_000,
          hookTimeout: 180_000,
          sequence: { groupOrder: 4 }
        }
      },
      {
        extends: true,
        test: {
          name: "integration",
          include: ["test/**/*.integration.test.ts"],
          exclude: ["test/{firecracker,host,journal,process,service,supervisor,testing}/**"],
          testTimeout: 180_000,
          hookTimeout: 180_000,
          sequence: { groupOrder: 5 }
        }
      }
    ]
  }
})
