/**
 * Kernel and root file system of a guest as verified values, built from Debian packages without root.
 *
 * @since 0.1.0
 */
export * as Cpio from "./Cpio.ts"
export * as GuestPrograms from "./GuestPrograms.ts"
export * as GuestScripts from "./GuestScripts.ts"
export * as Hasher from "./Hasher.ts"
export * as ImageError from "./ImageError.ts"
export * as ImageManifest from "./ImageManifest.ts"
export * as ImageProgress from "./ImageProgress.ts"
export * as ImageRecipe from "./ImageRecipe.ts"
export * as ImageStore from "./ImageStore.ts"
export * as NodeHasher from "./NodeHasher.ts"
export * as NodeImageStore from "./NodeImageStore.ts"
