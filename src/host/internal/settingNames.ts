/** The kernel's settings (`/proc/sys`) by their paths: slashes between the parts, since an interface may have dots in its name. */

/** Does a host that forwards packets take the advice of routers at this interface? 2 does, 1 no more (ip-sysctl.rst). */
export const acceptRa = (device: string): string => `net/ipv6/conf/${device}/accept_ra`

/** As sysctl(8) has it: dots between the parts, and slashes for the dots in an interface's name. */
export const variable = (setting: string): string =>
  setting.replace(/[/.]/g, (separator) => separator === "/" ? "." : "/")

/** Where containers and units have a `/proc/sys` that may be written to. */
export const writableSettings =
  "docker run --security-opt systempaths=unconfined, or a unit without ProtectKernelTunables=yes"
