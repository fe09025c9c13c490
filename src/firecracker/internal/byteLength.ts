const encoder = new TextEncoder()

/** The length of a text in UTF-8. Mostly it is ASCII, and nothing has to be encoded. */
export const byteLength = (text: string): number =>
  /^[\0-\x7f]*$/.test(text) ? text.length : encoder.encode(text).length
