import * as Result from "effect/Result"
import * as Cidr from "../Cidr.ts"

const multicast6 = Cidr.network({ family: 6, value: 0xffn << 120n }, 8)
const multicast4 = Cidr.network({ family: 4, value: 0xe0n << 24n }, 4)
/** Each interface has such a route, by which nobody gets anywhere else. */
const linkLocal = Cidr.network({ family: 6, value: 0xfe80n << 112n }, 10)
const nowhere = [linkLocal, multicast6, multicast4]

/** Can what a host routes to that network come from elsewhere than its own link? */
export const isReachable = (network: Cidr.Cidr): boolean => !nowhere.some((one) => Cidr.contains(one, network))

/** Where a route leads to, as ip(8) writes it: `10.0.0.0/8`, or a single address. A default route is not one of these. */
export const destination = (dst: string): Cidr.Cidr | undefined => {
  if (dst.includes("/")) return Result.getOrUndefined(Cidr.parse(dst))
  const single = Result.getOrUndefined(Cidr.parseAddress(dst))
  return single === undefined ? undefined : Cidr.network(single, single.family === 4 ? 32 : 128)
}
