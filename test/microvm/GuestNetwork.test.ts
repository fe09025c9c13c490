import { assert, describe, it } from "@effect/vitest"
import * as GuestNetwork from "../../src/microvm/GuestNetwork.ts"

const bare = { tap: "tap0", mac: "02:00:00:00:00:01" }
const whole = {
  ...bare,
  address: "10.0.0.1/31",
  gateway: "10.0.0.0",
  address6: "fd00::1/127",
  gateway6: "fd00::",
  nameserver: "10.0.0.53",
  mtu: 1400
}

describe("the arguments of the kernel", () => {
  it("tell of all cards, in our words; of the first, also in the usual ones", () => {
    assert.deepStrictEqual(GuestNetwork.kernelArgs([whole, { ...whole, mac: "02:00:00:00:00:02" }]), [
      "ip=10.0.0.1::10.0.0.0:255.255.255.254::eth0:off:10.0.0.53",
      "microvm.net=02:00:00:00:00:01,10.0.0.1/31,10.0.0.0,fd00::1/127,fd00::,10.0.0.53,1400",
      "microvm.net=02:00:00:00:00:02,10.0.0.1/31,10.0.0.0,fd00::1/127,fd00::,10.0.0.53,1400"
    ])
  })

  it("say nothing where there is nothing to be told", () => {
    assert.deepStrictEqual(GuestNetwork.kernelArgs([]), [])
    assert.deepStrictEqual(GuestNetwork.kernelArgs([bare]), [])
  })

  it("have no usual words for IPv6, and none for a second card", () => {
    const { address6, gateway6 } = whole
    const six = { ...bare, address6, gateway6, nameserver: "fd00::53" }
    assert.deepStrictEqual(GuestNetwork.kernelArgs([six, whole]).filter((arg) => arg.startsWith("ip=")), [])
    assert.deepStrictEqual(GuestNetwork.kernelArgs([{ ...six, address: "10.0.0.1/8" }]), [
      "ip=10.0.0.1:::255.0.0.0::eth0:off",
      "microvm.net=02:00:00:00:00:01,10.0.0.1/8,,fd00::1/127,fd00::,fd00::53"
    ])
  })

  it.each([
    [0, "0.0.0.0"],
    [1, "128.0.0.0"],
    [19, "255.255.224.0"],
    [24, "255.255.255.0"],
    [32, "255.255.255.255"]
  ])("a prefix of %i bits is the mask %s", (length, mask) => {
    const [ip] = GuestNetwork.kernelArgs([{ ...bare, address: `10.0.0.1/${length}` }])
    assert.strictEqual(ip, `ip=10.0.0.1:::${mask}::eth0:off`)
  })
})
