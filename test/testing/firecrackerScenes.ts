/** What is asked of a Firecracker to see how it answers. Paths lead from its working directory. */
export type Step = readonly [method: string, path: string, body?: string]

interface Endpoint {
  readonly method: string
  readonly path: string
  /** A field and a good value. Those that are required are first. */
  readonly fields: ReadonlyArray<readonly [name: string, json: string]>
  readonly required: number
}

const bucket = `{"size":1000,"refill_time":100}`
const limiter = `{"bandwidth":${bucket},"ops":{"size":10,"refill_time":100,"one_time_burst":5}}`

const endpoint = (what: string, required: number, fields: Readonly<Record<string, string>>): Endpoint => {
  const [method = "", path = ""] = what.split(" ")
  return { method, path, required, fields: Object.entries(fields) }
}

const machine = {
  vcpu_count: "2",
  mem_size_mib: "64",
  smt: "false",
  track_dirty_pages: "true",
  huge_pages: `"None"`,
  cpu_template: `"None"`
}

const endpoints: ReadonlyArray<Endpoint> = [
  endpoint("PUT /machine-config", 2, machine),
  endpoint("PATCH /machine-config", 0, machine),
  endpoint("PUT /boot-source", 1, { kernel_image_path: `"k.elf"`, initrd_path: `"k.elf"`, boot_args: `"a"` }),
  endpoint("PUT /drives/d1", 2, {
    drive_id: `"d1"`,
    is_root_device: "false",
    path_on_host: `"disk.img"`,
    is_read_only: "true",
    partuuid: "null",
    cache_type: `"Unsafe"`,
    io_engine: `"Sync"`,
    rate_limiter: limiter,
    socket: "null"
  }),
  endpoint("PATCH /drives/d1", 1, { drive_id: `"d1"`, path_on_host: `"disk.img"`, rate_limiter: limiter }),
  endpoint("PUT /pmem/p1", 2, {
    id: `"p1"`,
    path_on_host: `"disk.img"`,
    root_device: "false",
    read_only: "true",
    rate_limiter: limiter
  }),
  endpoint("PATCH /pmem/p1", 1, { id: `"p1"`, rate_limiter: limiter }),
  endpoint("PUT /network-interfaces/e1", 2, {
    iface_id: `"e1"`,
    host_dev_name: `"longer-than-any-may-be"`,
    guest_mac: `"06:00:AC:10:00:02"`,
    mtu: "1500",
    rx_rate_limiter: limiter,
    tx_rate_limiter: "null"
  }),
  endpoint("PATCH /network-interfaces/e1", 1, { iface_id: `"e1"`, rx_rate_limiter: limiter, tx_rate_limiter: "null" }),
  endpoint("PUT /vsock", 2, { guest_cid: "3", uds_path: `"v.sock"`, vsock_id: `"v"` }),
  endpoint("PUT /entropy", 0, { rate_limiter: limiter }),
  endpoint("PUT /serial", 0, { serial_out_path: `"serial.out"`, rate_limiter: bucket }),
  endpoint("PUT /balloon", 2, {
    amount_mib: "1",
    deflate_on_oom: "true",
    stats_polling_interval_s: "1",
    free_page_hinting: "true",
    free_page_reporting: "true"
  }),
  endpoint("PATCH /balloon", 1, { amount_mib: "2" }),
  endpoint("PATCH /balloon/statistics", 1, { stats_polling_interval_s: "2" }),
  endpoint("PATCH /balloon/hinting/start", 0, { acknowledge_on_stop: "true" }),
  endpoint("PUT /hotplug/memory", 1, { total_size_mib: "1024", slot_size_mib: "128", block_size_mib: "2" }),
  endpoint("PATCH /hotplug/memory", 1, { requested_size_mib: "128" }),
  endpoint("PUT /mmds/config", 1, {
    network_interfaces: `["e1"]`,
    version: `"V2"`,
    ipv4_address: `"169.254.1.1"`,
    imds_compat: "false"
  }),
  endpoint("PUT /logger", 0, {
    log_path: `"log"`,
    level: `"Info"`,
    show_level: "true",
    show_log_origin: "true",
    module: `"x"`
  }),
  endpoint("PUT /metrics", 1, { metrics_path: `"metrics"`, emit_id: "true", properties: `{"a":"b"}` }),
  endpoint("PUT /cpu-config", 0, { kvm_capabilities: `["!56"]`, cpuid_modifiers: "[]", msr_modifiers: "[]" }),
  endpoint("PUT /snapshot/create", 2, { snapshot_path: `"s"`, mem_file_path: `"m"`, snapshot_type: `"Full"` }),
  endpoint("PUT /snapshot/load", 1, {
    snapshot_path: `"s"`,
    mem_backend: `{"backend_type":"File","backend_path":"m"}`,
    mem_file_path: "null",
    resume_vm: "false",
    track_dirty_pages: "false",
    enable_diff_snapshots: "false",
    network_overrides: `[{"iface_id":"e1","host_dev_name":"t"}]`,
    vsock_override: `{"uds_path":"v2"}`,
    clock_realtime: "false",
    huge_pages: `"Snapshot"`
  }),
  endpoint("PUT /actions", 1, { action_type: `"FlushMetrics"` }),
  endpoint("PATCH /vm", 1, { state: `"Paused"` })
]

/** Values for any field: some are good for some. */
const wrong = ["null", `"str"`, "-1", "[]"]
const broken = [
  "",
  " ",
  "null",
  "[]",
  "{}",
  "{",
  "}",
  `"x"`,
  "1",
  "true",
  "{}x",
  `{"a"`,
  `{"a":`,
  "{'a':1}",
  "{a:1}",
  "[1,2]",
  `{\n "zzz": 1\n}`,
  `{"\\u00e9":1}`,
  "\uFEFF{}",
  `{"a":1,}`
]
const limits = [
  `{"nope":1}`,
  `{"bandwidth":{}}`,
  `{"bandwidth":{"size":1}}`,
  `{"bandwidth":{"size":1,"refill_time":-1}}`,
  `{"bandwidth":{"size":"1","refill_time":1}}`,
  `{"ops":{"size":1,"refill_time":1,"nope":1},"nope":1}`,
  `{"ops":5}`
]

const object = (fields: ReadonlyArray<readonly [string, string]>): string =>
  `{${fields.map(([name, json]) => `${JSON.stringify(name)}:${json}`).join(",")}}`

/** Bodies that are refused for what they are, whatever the machine does. What follows a value shows whether that was one. */
const bodies: ReadonlyArray<Step> = endpoints.flatMap(({ fields, method, path, required }) => {
  const nope = ["nope", "1"] as const
  const [first = nope] = fields
  const all = [
    object([...fields, nope]),
    object([nope]),
    object([first, ...fields]),
    ...fields.slice(0, required).map((left) => object(fields.filter((field) => field !== left))),
    ...fields.flatMap(([name]) => wrong.map((json) => `{${JSON.stringify(name)}:${json},!`)),
    ...path === "/drives/d1" && method === "PUT" ? limits.map((json) => object([["rate_limiter", json], nope])) : [],
    ...path === "/machine-config" || path === "/vm"
      ? broken.filter((text) => required > 0 || text !== "{}")
      : ["[1,2]", "{"]
  ]
  return all.map((body): Step => [method, path, body])
})

const routes: ReadonlyArray<Step> = [
  ..."/ /version /version/x /vm /vm/config /vm/x /machine-config /machine-config/x /boot-source /cpu-config".split(" "),
  ..."/drives /drives/d1 /pmem /pmem/p1 /network-interfaces /network-interfaces/e1 /vsock /entropy /serial".split(" "),
  ..."/logger /metrics /mmds /mmds/config /mmds/x /balloon /balloon/statistics /balloon/hinting/start".split(" "),
  ..."/balloon/hinting/status /balloon/hinting/stop /balloon/hinting /balloon/hinting/x /balloon/x".split(" "),
  ..."/hotplug /hotplug/memory /hotplug/x /actions /snapshot /snapshot/create /snapshot/load /snapshot/x".split(" "),
  ..."/nope /nope/x //version /// /Version /version/ /version?a=b /%76ersion http://h/version version".split(" ")
].flatMap((path) => ["GET", "PUT", "PATCH", "DELETE"].map((method): Step => [method, path]))

const ids: ReadonlyArray<Step> = ["drives", "network-interfaces", "pmem"].flatMap((kind) =>
  ["", "/", "/a-b", "/a.b", "/a%20b", "/other", "/d1/x", "//", "/a?b=1", `/${"a".repeat(70)}`, "/_"].flatMap((id) =>
    ["PUT", "PATCH"].map((method): Step => [method, `/${kind}${id}`, "{"])
  )
)

const puts = (path: string, bodiesOf: ReadonlyArray<string>): ReadonlyArray<Step> =>
  bodiesOf.map((body): Step => ["PUT", path, body])
const get = (path: string): Step => ["GET", path]
const all = ["/", "/version", "/vm/config", "/machine-config", "/mmds", "/balloon", "/balloon/statistics"]
  .concat("/balloon/hinting/status", "/hotplug/memory")

const drive = (
  id: string,
  more: string
): Step => ["PUT", `/drives/${id}`, `{"drive_id":"${id}","is_root_device":${more}}`]
const disk = `"path_on_host":"disk.img"`
const sizes = (more: string) => `{"vcpu_count":1,"mem_size_mib":${more}}`

/** All that a machine is made of, before it runs. */
const before: ReadonlyArray<Step> = [
  ...all.map(get),
  ...[
    `{"vcpu_count":0,"mem_size_mib":64}`,
    `{"vcpu_count":33,"mem_size_mib":64}`,
    `{"vcpu_count":32,"mem_size_mib":64}`,
    `{"vcpu_count":3,"mem_size_mib":64,"smt":true}`,
    sizes("0"),
    sizes(`3,"huge_pages":"2M"`),
    sizes(`64,"huge_pages":"1G"`),
    sizes(`64,"cpu_template":"T9"`),
    sizes(`64,"cpu_template":null`),
    `{"vcpu_count":2,"mem_size_mib":128,"smt":true,"huge_pages":"2M","track_dirty_pages":true}`,
    sizes("64"),
    "[1,64]"
  ].flatMap((body): ReadonlyArray<Step> => [["PUT", "/machine-config", body], get("/machine-config")]),
  ...[
    "{}",
    `{"vcpu_count":null}`,
    `{"vcpu_count":4}`,
    `{"mem_size_mib":96}`,
    `{"smt":true}`,
    `{"vcpu_count":3}`,
    `{"smt":false}`,
    `{"vcpu_count":0}`,
    `{"huge_pages":"2M","mem_size_mib":97}`,
    `{"track_dirty_pages":true}`
  ].flatMap((body): ReadonlyArray<Step> => [["PATCH", "/machine-config", body], get("/machine-config")]),
  ...puts("/boot-source", [
    `{"kernel_image_path":"missing"}`,
    `{"kernel_image_path":""}`,
    `{"kernel_image_path":"k.elf","initrd_path":"missing"}`,
    `{"kernel_image_path":"k.elf","boot_args":"${"x".repeat(2047)}"}`,
    `{"kernel_image_path":"k.elf","boot_args":"${"x".repeat(2048)}"}`,
    `{"kernel_image_path":"k.elf","boot_args":"a\\u0000b"}`,
    `{"kernel_image_path":"k.elf\\u0000x"}`,
    `{"kernel_image_path":"text"}`,
    `{"kernel_image_path":"k.elf","boot_args":"a=1 -- b"}`
  ]),
  get("/vm/config"),
  drive("d1", `false,${disk}`),
  drive("d1", `false,"path_on_host":"missing"`),
  drive("d1", `false,"path_on_host":"dir"`),
  drive("d1", `false,"path_on_host":""`),
  drive("d1", "false"),
  drive("d1", `true,${disk},"partuuid":"0eaa91a0-01"`),
  drive("d2", `true,${disk}`),
  drive("d2", `false,${disk},"partuuid":"x"`),
  drive("d3", `false,${disk},"cache_type":"Writeback","rate_limiter":${limiter},"is_read_only":true`),
  drive("d4", `false,"path_on_host":"odd.img"`),
  drive("d5", `false,"socket":"nosock"`),
  drive("d5", `false,"socket":"nosock",${disk}`),
  drive("d5", `false,"socket":"nosock","is_read_only":true`),
  drive("d6", `false,${disk},"rate_limiter":{}`),
  drive("d7", `false,${disk},"rate_limiter":{"bandwidth":{"size":0,"refill_time":0}}`),
  drive("d8", `false,${disk},"io_engine":"Turbo"`),
  ["PUT", "/drives/d9", `{"drive_id":"d8","is_root_device":false}`],
  get("/vm/config"),
  ...puts("/pmem/p1", [
    `{"id":"p1","path_on_host":"disk.img"}`,
    `{"id":"p1","path_on_host":"disk.img","root_device":true}`,
    `{"id":"p1","path_on_host":"missing"}`,
    `{"id":"p2","path_on_host":"disk.img"}`
  ]),
  ...puts("/network-interfaces/e1", [
    `{"iface_id":"e1","host_dev_name":"sixteen-or-more-"}`,
    `{"iface_id":"e1","host_dev_name":"t","guest_mac":"zz"}`,
    `{"iface_id":"e1","host_dev_name":"t","guest_mac":"06-00-ac-10-00-02"}`,
    `{"iface_id":"e2","host_dev_name":"t"}`
  ]),
  ...puts("/vsock", [
    `{"guest_cid":2,"uds_path":"v.sock"}`,
    `{"guest_cid":4294967295,"uds_path":"v.sock"}`,
    `{"guest_cid":3,"uds_path":"v.sock"}`,
    `{"guest_cid":3,"uds_path":"v.sock"}`,
    `{"guest_cid":3,"uds_path":"text"}`,
    `{"guest_cid":3,"uds_path":"missing/v"}`,
    `{"guest_cid":3,"uds_path":"${"x".repeat(110)}"}`,
    `{"guest_cid":3,"uds_path":"v3.sock","vsock_id":"old"}`
  ]),
  get("/vm/config"),
  ...[
    `{"amount_mib":1000000,"deflate_on_oom":false}`,
    `{"amount_mib":96,"deflate_on_oom":true,"stats_polling_interval_s":1}`,
    `{"amount_mib":97,"deflate_on_oom":true}`,
    `{"amount_mib":10,"deflate_on_oom":false}`
  ].flatMap((body): ReadonlyArray<Step> => [["PUT", "/balloon", body], get("/balloon")]),
  ["PUT", "/machine-config", sizes("8")],
  ["PATCH", "/machine-config", `{"mem_size_mib":8}`],
  ...puts("/entropy", [`{"rate_limiter":${limiter}}`, "{}"]),
  ...puts("/serial", ["{}", `{"serial_out_path":"missing/x"}`, `{"serial_out_path":"ser"}`]),
  ...puts("/hotplug/memory", [
    `{"total_size_mib":100}`,
    `{"total_size_mib":129}`,
    `{"total_size_mib":1024,"block_size_mib":1}`,
    `{"total_size_mib":1024,"block_size_mib":3}`,
    `{"total_size_mib":1024,"slot_size_mib":64}`,
    `{"total_size_mib":1024,"slot_size_mib":130,"block_size_mib":4}`,
    `{"total_size_mib":0}`,
    `{"total_size_mib":1024}`
  ]),
  get("/hotplug/memory"),
  get("/vm/config"),
  ...puts("/mmds/config", [
    `{"network_interfaces":[]}`,
    `{"network_interfaces":["nope"],"version":"V2"}`,
    `{"network_interfaces":["e1"],"version":"V3"}`,
    `{"network_interfaces":["e1"],"ipv4_address":"10.0.0.1"}`,
    `{"network_interfaces":["e1"],"ipv4_address":"x"}`,
    `{"network_interfaces":[],"version":"V1"}`
  ]),
  ["PATCH", "/mmds", `{"a":1}`],
  get("/mmds"),
  ...[
    ["PUT", `{"a":{"b":1,"c":"x"}}`],
    ["PATCH", `{"a":{"b":null,"d":[1]}}`],
    ["PATCH", "5"],
    ["PUT", "[]"],
    ["PUT", `"str"`],
    ["PUT", "{bad"],
    ["PUT", `{"x":"${"y".repeat(51_195)}"}`],
    ["PUT", `{"z":1,"a":2,"z":3}`]
  ].flatMap(([method = "", body = ""]): ReadonlyArray<Step> => [[method, "/mmds", body], get("/mmds")]),
  ...puts("/logger", [
    "{}",
    `{"level":"debug"}`,
    `{"level":"Trace"}`,
    `{"level":"Nope"}`,
    `{"log_path":"missing/l"}`,
    `{"log_path":"dir"}`,
    `{"log_path":"log","level":"Info"}`
  ]),
  ...puts("/metrics", [
    `{"metrics_path":"missing/m"}`,
    `{"metrics_path":"dir"}`,
    `{"metrics_path":"met"}`,
    `{"metrics_path":"met2"}`
  ]),
  ...puts("/cpu-config", [
    "{}",
    `{"kvm_capabilities":["x"]}`,
    `{"msr_modifiers":[{"addr":"0x1","bitmap":"0b2"}]}`,
    `{"msr_modifiers":[{"addr":"x","bitmap":"0b1"}]}`,
    `{"msr_modifiers":[{"addr":"0x1","bitmap":"0b${"x".repeat(65)}"}]}`
  ]),
  ...puts("/actions", [
    `{"action_type":"SendCtrlAltDel"}`,
    `{"action_type":"FlushMetrics"}`,
    `{"action_type":"instancestart"}`
  ]),
  ["PATCH", "/vm", `{"state":"Paused"}`],
  ["PATCH", "/vm", `{"state":"paused"}`],
  ["PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`],
  ...puts("/snapshot/load", [
    `{"snapshot_path":"s","mem_file_path":"m"}`,
    `{"snapshot_path":"s"}`,
    `{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}`,
    `{"snapshot_path":"s","mem_backend":{"backend_type":"Fil","backend_path":"m"}}`,
    `{"snapshot_path":"s","mem_backend":{"backend_type":"File"}}`
  ]),
  ["PATCH", "/drives/d1", `{"drive_id":"d1"}`],
  ["PATCH", "/drives/d1", `{"drive_id":"d2"}`],
  ["PATCH", "/network-interfaces/e1", `{"iface_id":"e1"}`],
  ["PATCH", "/pmem/p1", `{"id":"p2"}`],
  ["PATCH", "/balloon", `{"amount_mib":1}`],
  ["PATCH", "/balloon/statistics", `{"stats_polling_interval_s":1}`],
  ["PATCH", "/balloon/hinting/start"],
  ["PATCH", "/hotplug/memory", `{"requested_size_mib":128}`],
  ["DELETE", "/drives/d1"],
  ["DELETE", "/network-interfaces/e1"]
]

const start: Step = ["PUT", "/actions", `{"action_type":"InstanceStart"}`]
export const boot: ReadonlyArray<Step> = [
  ["PUT", "/machine-config", sizes("64")],
  ["PUT", "/boot-source", `{"kernel_image_path":"k.elf","boot_args":"console=ttyS0"}`]
]

/** While it runs. Its guest does nothing, and has no drivers. */
const after: ReadonlyArray<Step> = [
  ...boot,
  drive("d1", `true,${disk}`),
  ["PUT", "/vsock", `{"guest_cid":3,"uds_path":"v.sock"}`],
  ["PUT", "/entropy", "{}"],
  ["PUT", "/balloon", `{"amount_mib":1,"deflate_on_oom":true,"stats_polling_interval_s":1}`],
  start,
  ...all.map(get),
  ["PATCH", "/drives/d1", `{"drive_id":"d1",${disk}}`],
  ["PATCH", "/drives/d1", `{"drive_id":"d1","path_on_host":"missing"}`],
  ["PATCH", "/drives/d1", `{"drive_id":"d1"}`],
  ["PATCH", "/drives/d1", `{"drive_id":"d1","rate_limiter":${limiter}}`],
  ["PATCH", "/drives/d9", `{"drive_id":"d9",${disk}}`],
  ["PATCH", "/network-interfaces/e9", `{"iface_id":"e9"}`],
  ["PATCH", "/pmem/p9", `{"id":"p9"}`],
  ["PATCH", "/balloon", `{"amount_mib":2}`],
  ["PATCH", "/balloon", `{"amount_mib":65}`],
  ["PATCH", "/balloon/hinting/start"],
  ["PATCH", "/balloon/hinting/start", `{"acknowledge_on_stop":1}`],
  ["PATCH", "/balloon/hinting/stop"],
  ["PATCH", "/hotplug/memory", `{"requested_size_mib":128}`],
  drive("d3", `false,${disk}`),
  ["PUT", "/pmem/p1", `{"id":"p1",${disk}}`],
  ["PUT", "/network-interfaces/e2", `{"iface_id":"e2","host_dev_name":"t"}`],
  ["DELETE", "/drives/d1"],
  ["DELETE", "/drives/d9"],
  ["DELETE", "/pmem/p9"],
  ["PUT", "/mmds", `{"z":1}`],
  get("/mmds"),
  ["PUT", "/mmds/config", `{"network_interfaces":["e1"]}`],
  ["PUT", "/actions", `{"action_type":"FlushMetrics"}`],
  start,
  ["PUT", "/snapshot/create", `{"snapshot_path":"s","mem_file_path":"m"}`],
  ["PUT", "/snapshot/load", `{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}}`],
  ["PUT", "/logger", "{}"],
  ["PUT", "/metrics", `{"metrics_path":"met"}`],
  ["PUT", "/serial", "{}"],
  ["PUT", "/machine-config", sizes("64")],
  ["PATCH", "/machine-config", "{}"],
  ["PUT", "/boot-source", `{"kernel_image_path":"missing"}`],
  ["PUT", "/cpu-config", "{}"],
  ["PUT", "/vsock", `{"guest_cid":3,"uds_path":"v9"}`],
  ["PUT", "/entropy", "{}"],
  ["PUT", "/balloon", `{"amount_mib":1,"deflate_on_oom":false}`],
  ["PUT", "/hotplug/memory", `{"total_size_mib":1024}`],
  ["PATCH", "/vm", `{"state":"Resumed"}`],
  get("/"),
  ["PATCH", "/vm", `{"state":"Paused"}`],
  get("/"),
  ["PATCH", "/vm", `{"state":"Paused"}`],
  ...Array.from({ length: 5 }, (): Step => ["PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`]),
  ["PUT", "/snapshot/create", `{"snapshot_path":"missing/s","mem_file_path":"m"}`],
  ["PATCH", "/vm", `{"state":"Resumed"}`],
  get("/"),
  get("/vm/config")
]

const fault = (steps: ReadonlyArray<Step>): ReadonlyArray<Step> => [...steps, get("/"), get("/vm/config")]

export const scenes: Readonly<Record<string, ReadonlyArray<Step>>> = {
  bodies,
  routes,
  ids,
  before,
  "no kernel": fault([start]),
  "no disk": fault([...boot, drive("d1", `true,${disk}`), start, start]),
  after
}

const load = `"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"}`
const loading = (more = ""): Step => ["PUT", "/snapshot/load", `{${load}${more}}`]

/** How a snapshot is loaded, each time by another process. `truncate`: a file to so many bytes, or to none at all (it is gone). */
export const loads: Readonly<
  Record<
    string,
    { readonly steps: ReadonlyArray<Step>; readonly truncate?: readonly [file: string, bytes: number | undefined] }
  >
> = {
  loaded: {
    steps: [
      loading(),
      ...["/", "/vm/config", "/machine-config", "/mmds", "/balloon"].map(get),
      ["PATCH", "/vm", `{"state":"Resumed"}`],
      get("/"),
      loading(),
      start,
      ["PUT", "/logger", "{}"]
    ]
  },
  resumed: { steps: [loading(`,"resume_vm":true`), get("/")] },
  "as it was done once": {
    steps: [
      ["PUT", "/snapshot/load", `{"snapshot_path":"s","mem_file_path":"m","enable_diff_snapshots":true}`],
      get("/")
    ]
  },
  "by two names": { steps: [loading(`,"enable_diff_snapshots":true,"track_dirty_pages":true`)] },
  "at the time of the host": { steps: [loading(`,"clock_realtime":true`), get("/")] },
  "with another socket": { steps: [loading(`,"vsock_override":{"uds_path":"other.sock"}`), get("/vm/config")] },
  "with an interface that it has not": {
    steps: [loading(`,"network_overrides":[{"iface_id":"e9","host_dev_name":"t"}]`), get("/")]
  },
  "after logger and metrics": {
    steps: [
      ["PUT", "/logger", `{"log_path":"log"}`],
      ["PUT", "/metrics", `{"metrics_path":"met"}`],
      loading(),
      get("/")
    ]
  },
  "after machine-config": { steps: [["PUT", "/machine-config", sizes("64")], loading(), get("/")] },
  "after entropy": { steps: [["PUT", "/entropy", "{}"], loading(), get("/")] },
  "after what was not read": { steps: [["PUT", "/entropy", "{"], loading(), get("/")] },
  "after a start that failed": { steps: [start, loading(), get("/")] },
  "no state": { steps: [loading(), get("/")], truncate: ["s", undefined] },
  "no memory": { steps: [loading(), get("/")], truncate: ["m", undefined] },
  "short memory": { steps: [loading(), get("/")], truncate: ["m", 4096] },
  "no disk": { steps: [loading(), get("/")], truncate: ["disk.img", undefined] },
  "an empty state": { steps: [loading(), get("/")], truncate: ["s", 0] }
}

const good = "GET /version HTTP/1.1\r\n\r\n"
const logger = (head: string, body = `{"level":"Info"}`): string => `PUT /logger HTTP/1.1\r\n${head}\r\n${body}`
const length = "Content-Length: 16\r\n"

/** Bytes on a connection; of a list, each when the one before has been read. */
export const bytes: ReadonlyArray<string | ReadonlyArray<string>> = [
  ..."HEAD POST OPTIONS get GETT CONNECT".split(" ").map((method) => `${method} / HTTP/1.1\r\n\r\n`),
  ..."HTTP/1.0 HTTP/2.0 http/1.1".split(" ").map((version) => `GET / ${version}\r\n\r\n`),
  "GET /\r\n\r\n",
  "GET  / HTTP/1.1\r\n\r\n",
  "GET / HTTP/1.1\n\n",
  "\r\nGET / HTTP/1.1\r\n\r\n",
  "garbage\r\n\r\n",
  "\r\n\r\n",
  "GET * HTTP/1.1\r\n\r\n",
  "GET /\xff HTTP/1.1\r\n\r\n",
  ...[1008, 1009, 1010, 1024, 3000].map((size) => `GET /${"a".repeat(size - 16)} HTTP/1.1\r\n\r\n`),
  ...[1022, 1023, 1024, 1025, 2000].map((size) => `GET /version HTTP/1.1\r\nX-A: ${"a".repeat(size - 7)}\r\n\r\n`),
  ...[
    "Connection: close",
    "Content-Length: 0",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 4294967296",
    "Content-Length:",
    "CONTENT-LENGTH: 0",
    "Content-Length : 0",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Expect: 100-continue",
    "Expect: x",
    "Accept-Encoding: identity;q=0",
    "Accept-Encoding: *;q=0",
    "Accept-Encoding: gzip, deflate, br",
    "Content-Type: text/plain",
    "Content-Type: application/json; charset=utf-8",
    "Accept: text/html",
    "NoColon",
    ": empty",
    "Upgrade: websocket"
  ].map((header) => `GET /version HTTP/1.1\r\n${header}\r\n\r\n`),
  logger(length),
  logger(length, `{"level":1,"a":2}`),
  logger("Content-Length: 17\r\n", `{"level":1,"a":2}`),
  logger(""),
  logger("Content-Length: 3\r\n"),
  logger(length + length),
  logger("Transfer-Encoding: chunked\r\n", `10\r\n{"level":"Info"}\r\n0\r\n\r\n`),
  logger(`${length}Transfer-Encoding: chunked\r\n`),
  logger("Content-Length: 51200\r\n", " ".repeat(51_200)),
  logger("Content-Length: 51201\r\n", ""),
  logger(`${length}Content-Type: text/plain\r\n`),
  [logger(`${length}Expect: 100-continue\r\n`, ""), `{"level":"Info"}`],
  [logger(length, ""), `{"lev`, `el":"Info"}`],
  good.split(""),
  good + good,
  logger(length).repeat(3) + good,
  `${good}POST / HTTP/1.1\r\n\r\n`,
  `POST / HTTP/1.1\r\n\r\n${good}`,
  ["POST / HTTP/1.1\r\n\r\n", good],
  `${good}xx`
]

/** Arguments that it does not start with, or that it ends with. A socket is where it can be. */
export const commands: ReadonlyArray<ReadonlyArray<string>> = [
  ["--version"],
  ["--version", "--nope"],
  ["--snapshot-version"],
  ["--nope"],
  ["x"],
  ["--id", "a", "--id", "b"],
  ["--id"],
  ["--id", "--level", "Info"],
  ["--id=a"],
  ["--no-api"],
  ["--seccomp-filter", "x", "--no-seccomp"],
  ["--id", "a_b"],
  ["--id", ""],
  ["--id", "a".repeat(65)],
  ["--level", "Nope"],
  ["--log-path", "missing/l"],
  ["--metrics-path", "missing/m"],
  ["--config-file", "missing"],
  ["--metadata", "missing"],
  ["--seccomp-filter", "missing"],
  ["--http-api-max-payload-size", "x"],
  ["--api-sock", "missing/a.sock"],
  ["--api-sock", "text"],
  ["--describe-snapshot", "missing"],
  ["--no-api", "--config-file", "missing"]
]
