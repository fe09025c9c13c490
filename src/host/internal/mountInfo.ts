/** Mount points stand in mountinfo with space, tab, newline and backslash as octal escapes (proc_pid_mountinfo(5)). */
export const unescape = (path: string): string =>
  path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
