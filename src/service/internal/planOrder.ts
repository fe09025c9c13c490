/** In which order parts start and stop. */
import type { PlannedPart } from "./planModel.ts"

/** Parts by how many others, one after the other, have to be done before: the longest chain counts. */
const group = (
  parts: ReadonlyArray<PlannedPart>,
  before: (part: PlannedPart) => ReadonlyArray<PlannedPart>
): ReadonlyArray<ReadonlyArray<string>> => {
  const depths = new Map<PlannedPart, number>()
  const depthOf = (part: PlannedPart): number => {
    const known = depths.get(part)
    if (known !== undefined) return known
    const depth = before(part).reduce((deepest, one) => Math.max(deepest, depthOf(one) + 1), 0)
    depths.set(part, depth)
    return depth
  }
  const groups: Array<Array<string>> = []
  for (const part of parts) (groups[depthOf(part)] ??= []).push(part.name)
  return groups
}

export const levels = (
  listed: ReadonlyArray<PlannedPart>
): {
  readonly parts: ReadonlyArray<PlannedPart>
  readonly startOrder: ReadonlyArray<ReadonlyArray<string>>
  readonly stopOrder: ReadonlyArray<ReadonlyArray<string>>
} => {
  // A part can only depend on parts that were there when it was made, so there is no way back to itself.
  const dependents = new Map<PlannedPart, Array<PlannedPart>>()
  const add = (part: PlannedPart): void => {
    if (dependents.has(part)) return
    for (const one of part.dependsOn) add(one)
    dependents.set(part, [])
    for (const one of new Set(part.dependsOn)) dependents.get(one)?.push(part)
  }
  for (const part of listed) add(part)
  const parts = Array.from(dependents.keys())
  return {
    parts,
    startOrder: group(parts, (part) => part.dependsOn),
    stopOrder: group(parts, (part) => dependents.get(part) ?? [])
  }
}
