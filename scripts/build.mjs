// Builds `dist`: types for every module of `src`, a few files of plain JavaScript, and the command `microvm` as two files more. Few files
// start fast: Node spends most of its time not on what is in a module, but on each module.
// The first argument, a digest of the sources, is left in dist/.stamp. `dist` changes in one step, at the end.
import { build } from "esbuild"
import { spawnSync } from "node:child_process"
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

const root = join(dirname(fileURLToPath(import.meta.url)), "..")
const [digest = ""] = process.argv.slice(2)
const dist = join(root, "dist")
// Beside it: the source maps lead from there to `src` by the same way.
const fresh = `${dist}.fresh`
const replaced = `${dist}.replaced`

for (const left of [fresh, replaced]) rmSync(left, { recursive: true, force: true })
mkdirSync(fresh)

// Types are the business of `npm run types`: a set-up should not wait for them, nor a test run fail on them as a whole.
const compile = ["-p", "tsconfig.build.json", "--noCheck", "--outDir", fresh]
const { status } = spawnSync(join(root, "node_modules", ".bin", "tsc"), compile, { cwd: root, stdio: "inherit" })
if (status !== 0) {
  rmSync(fresh, { recursive: true, force: true })
  process.exit(1)
}

/** @satisfies {import("esbuild").BuildOptions} */
const common = {
  absWorkingDir: root,
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node22",
  sourcemap: "linked",
  sourcesContent: false,
  logLevel: "warning"
}

// A file for each subpath, and one for each program that is started by its path. What several of them have in common is in files of
// its own, so that everything is there once, and so is what is loaded only where it is needed.
await build({
  ...common,
  entryPoints: ["./src/**/index.ts", "./src/testing/internal/*Program.ts", "./src/process/internal/*Program.ts"],
  outbase: "src",
  outdir: fresh,
  splitting: true,
  chunkNames: "internal/[name]-[hash]",
  packages: "external"
})

const command = join(root, "src", "cli", "bin.ts")
if (existsSync(command)) {
  await build({
    ...common,
    entryPoints: [command],
    outdir: join(fresh, "cli"),
    external: ["./internal/NodeMain.ts"]
  })
  // What it loads is no module but the text of a function, as src/cli/internal/NodeCompileCache.ts takes it.
  const { metafile } = await build({
    ...common,
    entryPoints: [join(root, "src", "cli", "internal", "NodeMain.ts")],
    outfile: join(fresh, "cli", "program.js"),
    format: "cjs",
    charset: "ascii",
    minifyIdentifiers: true,
    minifySyntax: true,
    minifyWhitespace: true,
    alias: { "node:tls": join(root, "scripts", "lazyTls.cjs") },
    define: { "Intl.Segmenter": "__Segmenter", "import.meta.url": "__url" },
    metafile: true,
    banner: {
      js: [
        // Strict as a module is: the bundler's own words for it come too late, after these.
        "(function (require, __url, __tell) { \"use strict\"; const module = { exports: {} }",
        // Effect's command line makes one when it is loaded, which takes a tenth of a start, and uses it when it lays out help.
        "class __Segmenter {",
        "  constructor(...options) { this.make = () => new globalThis.Intl.Segmenter(...options) }",
        "  segment(text) { return (this.made ??= this.make()).segment(text) }",
        "}"
      ].join("\n")
    },
    footer: { js: "__tell(module.exports.main) })" }
  })
  chmodSync(join(fresh, "cli", "bin.js"), 0o755)
  writeFileSync(join(fresh, "cli", "bin.LICENSES.txt"), licenses(Object.keys(metafile.inputs)))
}

writeFileSync(join(fresh, ".stamp"), digest)
if (existsSync(dist)) renameSync(dist, replaced)
renameSync(fresh, dist)
rmSync(replaced, { recursive: true, force: true })

/**
 * The licence texts of the packages that went into a bundle, which their authors ask to be passed on.
 *
 * @param {ReadonlyArray<string>} inputs paths below the project
 */
function licenses(inputs) {
  const packages = new Set(
    inputs.flatMap((input) => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0] ?? [])
  )
  return [...packages].sort().map((folder) => {
    const { license, name, version } = JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8"))
    const file = readdirSync(join(root, folder)).find((entry) => /^licen[cs]e/i.test(entry))
    return `${name} ${version} (${license})\n\n${
      file === undefined ? "" : readFileSync(join(root, folder, file), "utf8")
    }`
  }).join(`\n${"-".repeat(80)}\n\n`)
}
