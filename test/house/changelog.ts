/** The format of a change log: https://keepachangelog.com */

const kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]

const isOlder = (one: string, other: string): boolean => {
  const [a = [], b = []] = [one, other].map((version) => version.split(".").map(Number))
  const index = a.findIndex((part, at) => part !== b[at])
  return index >= 0 && (a[index] ?? 0) < (b[index] ?? 0)
}

const isDay = (date: string): boolean => {
  const parsed = new Date(`${date}T00:00:00Z`)
  return !Number.isNaN(parsed.getTime()) && parsed.toISOString().startsWith(date)
}

/** What is wrong with the text, each fault with its line. */
export const changelogFaults = (text: string, version: string): ReadonlyArray<string> => {
  const faults: Array<string> = []
  const headings: Array<string> = []
  let release: { readonly version: string; readonly date: string } | undefined
  let kind: { readonly name: string; readonly line: number; entries: number } | undefined
  const endKind = () => {
    if (kind !== undefined && kind.entries === 0) faults.push(`${kind.line}: ${kind.name} has no entry`)
    kind = undefined
  }
  for (const [index, content] of text.split("\n").entries()) {
    const line = index + 1
    const fault = (what: string) => faults.push(`${line}: ${what}`)
    if (line === 1) {
      if (content !== "# Changelog") fault("the title is `# Changelog`")
    } else if (content.startsWith("## ")) {
      endKind()
      const [, name, date] = /^## \[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d{2}-\d{2}))?$/.exec(content) ?? []
      if (name === undefined || (name === "Unreleased") !== (date === undefined)) {
        fault("`## [Unreleased]` or `## [x.y.z] - YYYY-MM-DD`")
        continue
      }
      headings.push(name)
      if (date === undefined) continue
      if (!isDay(date)) fault(`${date} is no day`)
      if (release !== undefined && !isOlder(name, release.version)) {
        fault(`${name} stands below the older ${release.version}`)
      } else if (release !== undefined && release.date < date) fault(`${date} stands below the earlier ${release.date}`)
      release = { version: name, date }
    } else if (content.startsWith("### ")) {
      endKind()
      kind = { name: content.slice("### ".length), line, entries: 0 }
      if (!kinds.includes(kind.name)) fault(`${kind.name} is none of ${kinds.join(", ")}`)
    } else if (content.startsWith("- ")) {
      if (kind === undefined) fault("an entry stands below a kind of change")
      else kind.entries++
    } else if (headings.length > 0 && content !== "" && (!content.startsWith("  ") || (kind?.entries ?? 0) === 0)) {
      endKind()
      fault("entries are `- …`, with further lines indented")
    }
  }
  endKind()
  if (!headings.includes("Unreleased") && !headings.includes(version)) {
    faults.push(`neither Unreleased nor ${version} has an entry`)
  }
  return faults
}
