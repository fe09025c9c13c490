/** Builds an image from Debian packages: fetched, unpacked below a directory of ours, and picked from. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as OwnedFiles from "../../process/OwnedFiles.ts"
import * as Cpio from "../Cpio.ts"
import { Hasher } from "../Hasher.ts"
import * as ImageError from "../ImageError.ts"
import * as ImageManifest from "../ImageManifest.ts"
import type { Progress } from "../ImageProgress.ts"
import type { ImageRecipe } from "../ImageRecipe.ts"
import * as Debian from "./debian.ts"
import * as Elf from "./elf.ts"
import * as Vmlinux from "./vmlinux.ts"

/** Raised when the same recipe and packages would give other files than before. */
const FORMAT = 1

const LIBRARIES = "lib/x86_64-linux-gnu"

const unexpected = (file: string, why: string) =>
  ImageError.fromReason(ImageError.ImageErrorReason.UnexpectedContent({ file, why }))

/** The first of these paths that is a file below `root`; Debian 13 has under `usr` what Debian 12 has at the top. */
const find = Effect.fnUntraced(function*(root: string, paths: ReadonlyArray<string>) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  for (const candidate of paths.flatMap((one) => [one, `usr/${one}`])) {
    if (yield* fs.exists(path.join(root, candidate))) return path.join(root, candidate)
  }
  return yield* unexpected(paths.join(" or "), "is in none of the packages")
})

const read = Effect.fnUntraced(function*(root: string, paths: ReadonlyArray<string>) {
  const fs = yield* FileSystem.FileSystem
  return yield* fs.readFile(yield* find(root, paths))
})

/** A program with its loader and all libraries that it and they are linked against, at their places in the guest. */
const programEntries = Effect.fnUntraced(function*(root: string, at: string) {
  const program = yield* read(root, [at])
  const entries = [Cpio.file(at, program, 0o755)]
  const done = new Set<string>()
  const open = [...yield* Effect.fromResult(Elf.needed(at, program))]
  // Grows while it is gone through. The loader comes first by its path; later, as a library of others, by its name.
  for (const name of open) {
    const base = name.slice(name.lastIndexOf("/") + 1)
    const target = name.startsWith("/") ? name.slice(1) : `${LIBRARIES}/${base}`
    if (done.has(base)) continue
    done.add(base)
    const content = yield* read(root, [`${LIBRARIES}/${base}`])
    entries.push(Cpio.file(target, content, name.startsWith("/") ? 0o755 : 0o644))
    const more = yield* Effect.fromResult(Elf.needed(base, content))
    open.push(...more)
  }
  return entries
})

/** The recipe's modules with the list in which the guest's set-up reads their order. */
const moduleEntries = Effect.fnUntraced(function*(root: string, release: string, recipe: ImageRecipe) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const directory = path.dirname(yield* find(root, [`lib/modules/${release}/modules.builtin`]))
  const builtin = yield* fs.readFileString(path.join(directory, "modules.builtin"))
  const files = new Map(
    (yield* fs.readDirectory(directory, { recursive: true })).map((file) => [path.basename(file), file])
  )
  const entries: Array<Cpio.Entry> = []
  let list = ""
  for (const { device, name } of recipe.modules) {
    // Debian 13 compresses modules; busybox unpacks them.
    const file = [`${name}.ko`, `${name}.ko.xz`].find((one) => files.has(one))
    if (file === undefined) {
      if (builtin.includes(`/${name}.ko\n`)) continue
      return yield* unexpected(`${name}.ko`, `is no module of kernel ${release}`)
    }
    entries.push(Cpio.file(`lib/modules/${file}`, yield* fs.readFile(path.join(directory, files.get(file) ?? file))))
    // The kernel shows the type of a virtio device in this form.
    list += `${device === undefined ? "-" : `0x${device.toString(16).padStart(4, "0")}`} ${file}\n`
  }
  return [...entries, Cpio.file("lib/modules/microvm.list", list)]
})

/** Bytes that differ whenever the recipe, or the way of building by it, does. */
export const fingerprint = (recipe: ImageRecipe) =>
  Result.map(Cpio.encode(recipe.entries), (entries) => {
    const { agentPackage, kernelPackage, modules, shellPackage } = recipe
    const rest = new TextEncoder().encode(
      JSON.stringify([
        FORMAT,
        kernelPackage,
        agentPackage,
        shellPackage,
        modules.map(({ device, name }) => [name, device ?? null])
      ])
    )
    const bytes = new Uint8Array(rest.length + entries.length)
    bytes.set(rest)
    bytes.set(entries, rest.length)
    return bytes
  })

/** Everything of an image, from the tree `root` into which all packages were unpacked. */
const assemble = Effect.fnUntraced(function*(root: string, kernelPackage: string, recipe: ImageRecipe) {
  const kernelRelease = kernelPackage.replace(/^linux-image-/, "")
  const bzImage = yield* read(root, [`boot/vmlinuz-${kernelRelease}`])
  const vmlinux = yield* Vmlinux.extract(bzImage)
  const shell = yield* read(root, ["bin/busybox"])
  const libraries = yield* Effect.fromResult(Elf.needed("bin/busybox", shell))
  if (libraries.length > 0) {
    // The guest's kernel would start it in vain.
    const why = `needs ${libraries.join(", ")}: let shellPackage be one without libraries, such as busybox-static`
    return yield* unexpected("bin/busybox", why)
  }
  const initramfs = yield* Effect.fromResult(Cpio.encode([
    ...recipe.entries,
    Cpio.file("bin/busybox", shell, 0o755),
    ...yield* programEntries(root, "usr/sbin/qemu-ga"),
    ...yield* moduleEntries(root, kernelRelease, recipe)
  ]))
  return { kernelRelease, kernel: vmlinux ?? bzImage, initramfs }
})

export interface Request {
  readonly recipe: ImageRecipe
  /** The digest of the recipe's fingerprint. */
  readonly key: string
  /** An empty directory of ours. */
  readonly own: string
  /** Nothing is to be built when these are the packages still. */
  readonly unless: Option.Option<ImageManifest.ImageManifest["packages"]>
  readonly onProgress: (progress: Progress) => Effect.Effect<void>
}

const fetch = Effect.fnUntraced(function*(request: Request, debs: string) {
  const say = request.onProgress
  yield* say({ _tag: "Resolving" })
  const { kernel, packages } = yield* Debian.resolve(request.recipe, debs)
  const known = Option.getOrUndefined(request.unless)
  if (known?.length === packages.length && packages.every(({ sha256 }, index) => sha256 === known[index]?.sha256)) {
    return Option.none()
  }
  const totalBytes = packages.reduce((sum, { size }) => sum + size, 0)
  yield* Debian.download(packages, debs, (receivedBytes) => say({ _tag: "Downloading", receivedBytes, totalBytes }))
  return Option.some({ kernel, packages })
})

/**
 * Builds an image in a directory of its own, ready to be put in place: nothing where `unless` holds, else the directory
 * and its digest.
 */
export const build = Effect.fnUntraced(function*(request: Request) {
  const { key, onProgress: say, own, recipe } = request
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const hasher = yield* Hasher
  const debs = path.join(own, "debs")
  const root = path.join(own, "root")
  const directory = path.join(own, "image")
  yield* Effect.forEach([debs, root, directory], OwnedFiles.ensureDirectory)
  yield* Debian.checkArchitecture
  // Lists that are absent, or so old that what they name has left the mirror, are the common cause of either failure.
  const fetched = yield* fetch(request, debs).pipe(
    Effect.catchIf(
      (error) => error._tag === "ImageError" && /^(PackageMissing|DownloadFailed)$/.test(error.reason._tag),
      (error) =>
        say({ _tag: "UpdatingLists" }).pipe(
          Effect.andThen(Debian.updateLists),
          Effect.flatMap((updated) => updated ? fetch(request, debs) : Effect.fail(error))
        )
    ),
    Effect.catchTag("Silent", () =>
      ImageError.fromReason(
        ImageError.ImageErrorReason.DownloadFailed({
          command: "apt-get download",
          output: "the mirror, or the proxy, is silent: nothing has come for a minute"
        })
      ))
  )
  if (Option.isNone(fetched)) return Option.none()
  const { kernel, packages } = fetched.value
  for (const [done, { file, name }] of packages.entries()) {
    yield* say({ _tag: "Unpacking", package: name, done, total: packages.length })
    yield* Debian.unpack(path.join(debs, file), root)
  }
  yield* say({ _tag: "Assembling" })
  const assembled = yield* assemble(root, kernel, recipe)
  const store = Effect.fnUntraced(function*(name: string, bytes: Uint8Array) {
    const file = path.join(directory, name)
    yield* OwnedFiles.writeDurably(file, bytes)
    // Whatever the umask is: a backend that has given up its rights opens it by itself. The directories keep others out, if any do.
    yield* fs.chmod(file, 0o644)
    return { name, size: bytes.length, sha256: yield* hasher.file(file) }
  })
  const manifest: ImageManifest.ImageManifest = {
    recipe: key,
    kernelRelease: assembled.kernelRelease,
    packages: packages.map(({ name, sha256, version }) => ({ name, version, sha256 })),
    files: {
      kernel: yield* store("kernel", assembled.kernel),
      initramfs: yield* store("initramfs", assembled.initramfs)
    }
  }
  const text = yield* Effect.orDie(Schema.encodeEffect(ImageManifest.ImageManifestText)(manifest))
  const { sha256: digest } = yield* store("manifest.json", new TextEncoder().encode(text))
  return Option.some({ directory, digest, manifest })
})
