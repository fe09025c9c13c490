/** A host that has all that machines can need, and what differs from it. */
import { HostFacts } from "effect-microvm-runtime/host"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export const goodFacts: HostFacts.Facts = {
  uid: 0,
  capabilities: 0x1ff_ffff_ffffn,
  programs: HostFacts.programs,
  tun: "Usable",
  kvm: "Usable",
  cpu: { virtualization: "vmx", isGuest: false },
  settings: {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/neigh/default/gc_thresh3": "1024",
    "fs/inotify/max_user_instances": "128",
    "kernel/pid_max": "4194304",
    "kernel/seccomp/actions_avail": "kill_process kill_thread trap errno user_notif trace log allow",
    "user/max_net_namespaces": "100000",
    "vm/unprivileged_userfaultfd": "0"
  },
  areSettingsReadOnly: false,
  egress: { ipv4: "eth0", ipv6: "eth0" },
  addresses: { ipv4: "172.30.0.0/16", isKept: false },
  networks: [{ device: "eth0", cidr: "192.0.2.0/24" }],
  forwardDrops: [],
  limits: [{ what: "memory", by: "v2" }, { what: "cpu", by: "v1" }],
  state: {
    _tag: "There",
    isDirectory: true,
    owner: 0,
    mode: 0o700,
    fileSystem: "ext4",
    fault: undefined,
    free: 2 ** 40
  },
  openFiles: 1_048_576,
  swap: 0,
  clockSource: "tsc"
}

/** What is put in order changes what is seen next. */
export const layerHostFacts = (
  { apply = ({ _tag }) => Effect.succeed(_tag), facts = {} }: {
    readonly facts?: Partial<HostFacts.Facts> | (() => Partial<HostFacts.Facts>)
    readonly apply?: HostFacts.HostFacts["Service"]["apply"]
  } = {}
) =>
  Layer.succeed(HostFacts.HostFacts, {
    observe: () => Effect.sync(() => ({ ...goodFacts, ...(typeof facts === "function" ? facts() : facts) })),
    apply
  })
