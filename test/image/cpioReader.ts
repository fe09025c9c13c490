/** Reads newc archives by their description, to check the writer against. */

export interface Member {
  readonly path: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtime: number
  readonly ino: number
  readonly device: readonly [number, number]
  readonly data: Uint8Array
}

export const readCpio = (archive: Uint8Array): ReadonlyArray<Member> => {
  const ascii = new TextDecoder()
  const members: Array<Member> = []
  for (let at = 0;;) {
    if (ascii.decode(archive.subarray(at, at + 6)) !== "070701") throw new Error(`no header at ${at}`)
    const field = (index: number) =>
      Number.parseInt(ascii.decode(archive.subarray(at + 6 + index * 8, at + 14 + index * 8)), 16)
    const nameSize = field(11)
    const path = ascii.decode(archive.subarray(at + 110, at + 110 + nameSize - 1))
    const dataAt = Math.ceil((at + 110 + nameSize) / 4) * 4
    const size = field(6)
    if (path === "TRAILER!!!") return members
    members.push({
      path,
      mode: field(1),
      uid: field(2),
      gid: field(3),
      mtime: field(5),
      ino: field(0),
      device: [field(9), field(10)],
      data: archive.subarray(dataAt, dataAt + size)
    })
    at = Math.ceil((dataAt + size) / 4) * 4
  }
}
