const isVariable = (name: string): boolean => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name)

/** The variables of `--env K=V`, and all that is wrong with them. The last of a name counts. */
export const readEnv = (
  pairs: ReadonlyArray<string>
): { readonly env: Readonly<Record<string, string>>; readonly faults: ReadonlyArray<string> } => {
  const env: Array<readonly [string, string]> = []
  const faults: Array<string> = []
  for (const pair of pairs) {
    const at = pair.indexOf("=")
    const key = at === -1 ? pair : pair.slice(0, at)
    // The value may be a secret, so the name alone is told; what is neither may be a value whose name was forgotten.
    if (at === -1) {
      const [told, name] = isVariable(pair) ? [` ${pair}`, pair] : ["", "NAME"]
      faults.push(`--env${told} has no value: write ${name}=VALUE`)
    } else if (!isVariable(key)) {
      faults.push(`--env name ${JSON.stringify(key)} is not valid: use letters, digits and _, no digit first`)
    } else if (pair.includes("\0")) faults.push(`--env ${key} holds a NUL byte: remove it`)
    else env.push([key, pair.slice(at + 1)])
  }
  return { env: Object.fromEntries(env), faults }
}
