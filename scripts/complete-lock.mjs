// Completes package-lock.json after `npm install`: an optional dependency that is for another platform and that the registry at hand
// does not serve gets no entry from npm, and then `npm ci` rejects the file. Such an entry follows from the dependent's own word
// on name and version, and the platform is in the name.
import { readFileSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

const path = join(dirname(fileURLToPath(import.meta.url)), "..", "package-lock.json")
const lock = JSON.parse(readFileSync(path, "utf8"))

const systems = new Set([
  "aix",
  "android",
  "darwin",
  "freebsd",
  "linux",
  "netbsd",
  "openbsd",
  "openharmony",
  "sunos",
  "win32"
])
const processors = new Set(["arm", "arm64", "ia32", "loong64", "mips64el", "ppc64", "riscv64", "s390x", "x64"])
/** @type {Record<string, string>} */
const libraries = { glibc: "glibc", gnu: "glibc", gnueabihf: "glibc", musl: "musl", musleabihf: "musl" }

/** @type {Array<string>} */
const added = []
for (const [dependent, entry] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const key = `node_modules/${name}`
    if (lock.packages[key] !== undefined || lock.packages[`${dependent}/${key}`] !== undefined) continue
    const words = name.split(/[/-]/)
    const libc = words.flatMap((word) => libraries[word] ?? [])
    lock.packages[key] = {
      version,
      cpu: words.filter((word) => processors.has(word)),
      ...(entry.dev === true ? { dev: true } : {}),
      ...(libc.length > 0 ? { libc } : {}),
      optional: true,
      os: words.filter((word) => systems.has(word))
    }
    added.push(`${name}@${version}`)
  }
}
lock.packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => a.localeCompare(b, "en")))
writeFileSync(path, `${JSON.stringify(lock, null, 2)}\n`)
process.stderr.write(
  added.length === 0 ? "package-lock.json is complete\n" : `added to package-lock.json:\n  ${added.join("\n  ")}\n`
)
