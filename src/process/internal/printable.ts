/** What would steer a terminal, or turn the text after it round. */
const steering = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu

const escape = (char: string): string => `\\u{${char.codePointAt(0)?.toString(16)}}`

/** What a child chooses, on one line and without power over a terminal or a log. */
export const onOneLine = (text: string): string => text.replace(steering, escape)

/** The same for several lines, and for the colours that many a program writes to a pipe, too. */
export const lines = (text: string): string =>
  text.replace(/(\p{Cc})\[[\d;]*m/gu, (found, first) => first === "\u001B" ? "" : found).replace(/\r\n/g, "\n").replace(
    steering,
    (char) => char === "\n" || char === "\t" ? char : escape(char)
  )
