import type { Answer } from "../ControlRequest.ts"

/** The answer of a run that does not do what it was asked for. */
export const refused = (
  reason: Extract<Answer, { readonly _tag: "Refused" }>["reason"],
  message: string
): Answer => ({ _tag: "Refused", reason, message })
