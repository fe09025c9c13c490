/** The users of machines. */
import * as Config from "effect/Config"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as UserMap from "../../process/UserMap.ts"

/** `MICROVM_UIDS`: the first and the last, as `2000000000-2000065535`. */
const Uids = Schema.String.check(
  Schema.makeFilter((text) => {
    const [, first, last] = /^(\d{5,10})-(\d{5,10})$/.exec(text) ?? []
    return Number(first) >= 65_536 && Number(first) <= Number(last) && Number(last) < 2 ** 32 - 1
  }, { expected: "two numbers from 65536 to 4294967294, the smaller one first: 2000000000-2000065535" })
)

/** In a range that neither accounts nor containers have (systemd.io/UIDS-GIDS). */
const usual = "2000000000-2000065535"

const rangeOf = (text: string): UserMap.Range => {
  const [first = 0, last = 0] = text.split("-").map(Number)
  return { first, last }
}

/**
 * Among those that we can become. None where the usual ones are not there: all machines have one then, that of nobody.
 */
export const userPool = (others: ReadonlyArray<UserMap.Range> | undefined) => {
  const isHere = (text: string) => others === undefined || UserMap.covers(others, rangeOf(text))
  const here = Schema.makeFilter(isHere, { expected: "users that there are here (/proc/self/uid_map, gid_map)" })
  return Config.option(Config.schema(Uids.check(here), "MICROVM_UIDS")).pipe(
    Config.map(Option.match({
      onNone: () => isHere(usual) ? Option.some(rangeOf(usual)) : Option.none(),
      onSome: (text) => Option.some(rangeOf(text))
    }))
  )
}
