import { readFileSync } from "node:fs"
import { join } from "node:path"
import { describe, expect, it } from "vitest"
import { changelogFaults } from "./changelog.ts"
import { readManifest } from "./manifest.ts"
import { root } from "./source.ts"

const { version } = readManifest(root)

describe("CHANGELOG.md", () => {
  it("keeps its format and has an entry for the version", () => {
    expect(changelogFaults(readFileSync(join(root, "CHANGELOG.md"), "utf8"), version)).toEqual([])
  })
})

describe("changelogFaults", () => {
  const good = [
    "# Changelog",
    "",
    "## [Unreleased]",
    "",
    "### Added",
    "",
    "- One thing",
    "  that needs a second line.",
    "",
    "## [1.1.0] - 2026-02-03",
    "",
    "### Fixed",
    "",
    "- Another thing.",
    "",
    "## [1.0.0] - 2026-02-01",
    "",
    "### Added",
    "",
    "- The first thing."
  ]
  const change = (from: string, to: string) => changelogFaults(good.join("\n").replace(from, to), "1.1.0")

  it.each([
    ["nothing wrong", "", "", []],
    [
      "a version that is not released yet stands under Unreleased",
      "## [1.1.0] - 2026-02-03",
      "## [1.0.9] - 2026-02-03",
      []
    ],
    ["title", "# Changelog", "# Changes", ["1: the title is `# Changelog`"]],
    ["no date", " - 2026-02-03", "", ["10: `## [Unreleased]` or `## [x.y.z] - YYYY-MM-DD`"]],
    ["no such day", "2026-02-03", "2026-02-30", ["10: 2026-02-30 is no day"]],
    ["out of order", "[1.1.0]", "[0.9.0]", ["16: 1.0.0 stands below the older 0.9.0"]],
    ["dates out of order", "2026-02-03", "2026-01-03", ["16: 2026-02-01 stands below the earlier 2026-01-03"]],
    ["an unknown kind", "### Fixed", "### Repaired", [
      "12: Repaired is none of Added, Changed, Deprecated, Removed, Fixed, Security"
    ]],
    ["an empty kind", "- Another thing.", "", ["12: Fixed has no entry"]],
    ["an entry without a kind", "### Fixed", "", ["14: an entry stands below a kind of change"]],
    ["stray text", "- Another thing.", "Another thing.", [
      "12: Fixed has no entry",
      "14: entries are `- …`, with further lines indented"
    ]],
    ["no Unreleased and no entry for the version", "## [Unreleased]", "## [1.0.1] - 2026-02-04", [
      "10: 1.1.0 stands below the older 1.0.1"
    ]]
  ])("%s", (_, from, to, faults) => {
    expect(change(from, to)).toEqual(faults)
  })

  it("wants an entry for the version when nothing is unreleased", () => {
    expect(changelogFaults("# Changelog\n\n## [1.0.0] - 2026-02-01\n\n### Added\n\n- A thing.\n", "1.1.0"))
      .toEqual(["neither Unreleased nor 1.1.0 has an entry"])
  })
})
