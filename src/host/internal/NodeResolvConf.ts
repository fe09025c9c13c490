import { isIP } from "node:net"
import type { Endpoint } from "../DnsTransport.ts"

/** As many as the C library asks. */
const most = 3

/** The name servers in a resolv.conf(5). Where there are none, one is expected on this very host. */
export const serversOf = (text: string): ReadonlyArray<Endpoint> => {
  const found = text.split("\n").flatMap((line) => {
    const address = /^nameserver[ \t]+(\S+)/.exec(line)?.[1] ?? ""
    return isIP(address) === 0 ? [] : [{ address, port: 53 }]
  })
  return found.length === 0 ? [{ address: "127.0.0.1", port: 53 }] : found.slice(0, most)
}
