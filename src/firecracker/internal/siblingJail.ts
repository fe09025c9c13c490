import { HostPath, type JailPlan } from "../JailPlan.ts"

/** Where a jail of another id is, of the same Firecracker in the same base. */
export const sibling = (self: JailPlan, id: string): JailPlan => {
  const renamed = (path: string): HostPath => HostPath(path.replace(/[^/]*$/, id))
  const directory = renamed(self.directory)
  const within = (path: HostPath): HostPath => HostPath(directory + path.slice(self.directory.length))
  const directories = self.cgroup.directories.map(({ mount, path }) => ({ mount, path: renamed(path) }))
  return {
    ...self,
    id,
    directory,
    root: within(self.root),
    pidFile: within(self.pidFile),
    cgroup: { ...self.cgroup, directories }
  }
}
