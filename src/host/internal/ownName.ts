import type { Owner } from "../../journal/ResourceKind.ts"

/** Does the last part of a path hold the owner's token, so that nobody else has chosen it? */
export const isNamedAfter = ({ token }: Pick<Owner, "token">, path: string): boolean =>
  path.startsWith("/") && !path.split("/").includes("..") && path.slice(path.lastIndexOf("/") + 1).includes(token)
