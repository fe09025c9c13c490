import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as NodeFs from "node:fs"

/** Directories between `top` and `path`, both left out, the outermost first. */
export const between = (top: string, path: string): ReadonlyArray<string> => {
  const names = path.slice(top.length + 1).split("/").slice(0, -1)
  return names.map((_, index) => [top, ...names.slice(0, index + 1)].join("/"))
}

/**
 * Directories that several jails have in common. One that was not there before the first of ours is removed after the last, if
 * nobody else has put anything into it.
 */
export const make = () => {
  const kept = new Map<string, { users: number; readonly isOurs: boolean }>()
  const take = (path: string): void => {
    const known = kept.get(path)
    if (known === undefined) kept.set(path, { users: 1, isOurs: !NodeFs.existsSync(path) })
    else known.users++
  }
  const leave = (path: string): void => {
    const known = kept.get(path)
    if (known === undefined || --known.users > 0) return
    kept.delete(path)
    if (!known.isOurs) return
    try {
      NodeFs.rmdirSync(path)
    } catch {
      // Somebody else's by now, or never made.
    }
  }
  return {
    keep: (paths: ReadonlyArray<string>): Effect.Effect<void, never, Scope.Scope> =>
      Effect.asVoid(Effect.acquireRelease(
        Effect.sync(() => paths.forEach(take)),
        () => Effect.sync(() => paths.toReversed().forEach(leave))
      ))
  }
}
