/**
 * What each client does that is compared: for a line `start DIRECTORY…` or `configure DIRECTORY…` on its stdin it does so with
 * the Firecracker behind `api.sock` in each of the directories, with all at once, and says how many milliseconds that took, up to
 * the last answer. The connections are closed afterwards, as those of fctools are; those of firecracker-go-sdk are closed by the
 * other end.
 */
import { createInterface } from "node:readline"

export type Goal = "configure" | "start"

/** One machine, the same for every client. */
export const bodies = (directory: string) => ({
  machine: { vcpu_count: 2, mem_size_mib: 256, smt: false, track_dirty_pages: false },
  bootSource: { kernel_image_path: `${directory}/kernel`, boot_args: "console=ttyS0 reboot=k panic=1" },
  drive: { drive_id: "rootfs", path_on_host: `${directory}/rootfs`, is_root_device: true, is_read_only: true },
  vsock: { guest_cid: 3, uds_path: `${directory}/v.sock` },
  start: { action_type: "InstanceStart" }
} as const)

/** `run` gives what closes its connection. */
export const answerRounds = async (run: (directory: string, goal: Goal) => Promise<() => unknown>): Promise<void> => {
  for await (const line of createInterface({ input: process.stdin })) {
    const [goal, ...directories] = line.split(" ")
    const begin = performance.now()
    const closes = await Promise.all(
      directories.map((directory) => run(directory, goal === "start" ? "start" : "configure"))
    )
    const took = performance.now() - begin
    await Promise.all(closes.map((close) => close()))
    console.log(took)
  }
}
