/**
 * The programs of the guest's user land that are ours: shell scripts for busybox, kept as values so that they are part of
 * an image's recipe. PID 1 itself is busybox's init: it reaps orphans, restarts what {@link inittab} lists with a pause of
 * a second, and gives its children default signal dispositions (a shell would start them with SIGINT ignored).
 *
 * Facts these scripts rest on: busybox(1), init(8) of busybox, the kernel's `virtio_console` driver (a port can be opened
 * once only, and data still queued when it is closed are dropped) and qemu-ga(8).
 *
 * @since 0.1.0
 */
import * as Cpio from "./Cpio.ts"
import * as GuestPrograms from "./GuestPrograms.ts"

/**
 * What PID 1 runs: {@link setup} once, then {@link resident} once, the agent and the power button's reader for as long as
 * the guest lives.
 *
 * @category scripts
 * @since 0.1.0
 */
export const inittab = `::sysinit:/sbin/microvm-setup
::respawn:/sbin/microvm-agent
::once:/sbin/microvm-resident.sh
::respawn:/sbin/microvm-power-button
::ctrlaltdel:/sbin/shutdown -r
`

/**
 * Mounts the kernel's file systems, loads the modules and names the guest: its host name, machine-id(5) and boot id.
 *
 * Kernel arguments:
 *
 * - `microvm.hostname=NAME`: by default `microvm`.
 * - `microvm.vsock=PORT,NAME,…`: where there are no virtio ports, channels to the host are ports of vsock(7), counted from
 *   PORT on, in the order of their names. A terminal stands in for each, under the name that the virtio port would have.
 * - `microvm.net=CARD`, one for each network card: see {@link network}.
 *
 * @category scripts
 * @since 0.1.0
 */
export const setup = `#!/bin/busybox sh
# No step may end the set-up: what fails is told on the console and passed over.
say() { echo "microvm-setup: $*" >/dev/console; }

# busybox runs its own commands through /proc/self/exe, so /proc comes first and is mounted by path.
/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mount -t devtmpfs -o nosuid,mode=755 dev /dev
mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp
# The kernel makes device nodes only; these names are the user land's.
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr

# All that a card has is told: there is no waiting for whoever has the same address, and routers are not listened to.
for option in accept_dad accept_ra; do
  { echo 0 >"/proc/sys/net/ipv6/conf/default/$option"; } 2>/dev/null
done

# Each line: the virtio device type that needs the module (- for every guest) and its path, in the order of dependence.
while read -r type path; do
  if [ "$type" != - ]; then
    found=
    for device in /sys/bus/virtio/devices/*/device; do
      { read -r id <"$device"; } 2>/dev/null && [ "$id" = "$type" ] && found=yes
    done
    [ "$found" ] || continue
  fi
  insmod "/lib/modules/$path" || say "module $path was not loaded"
done </lib/modules/microvm.list

hostname=microvm
read -r arguments </proc/cmdline
set -f
for argument in $arguments; do
  case $argument in
    microvm.hostname=?*) hostname=\${argument#*=} ;;
    microvm.vsock=?*,?*) channels=\${argument#*=} ;;
    microvm.net=?*) cards="$cards \${argument#*=}" ;;
  esac
done
hostname "$hostname" || say "the host name $hostname was refused"
ip link set lo up
[ "$cards" ] && { /sbin/microvm-network $cards 2>&1 >/dev/null | while read -r line; do say "$line"; done; }

# They outlive SIGTERM, so that the last words of others get through.
serve() {
  local IFS=, port="\${1%%,*}" name
  trap '' PIPE TERM
  for name in \${1#*,}; do
    /sbin/microvm-vsock "$port" </dev/null >/dev/null 2>&1 &
    ln -s "/proc/$!/fd/5" "/dev/virtio-ports/$name"
    port=$((port + 1))
  done
}
[ "$channels" ] && (serve "$channels")

read -r id </proc/sys/kernel/random/uuid
while case $id in *-*) ;; *) false ;; esac; do id=\${id%%-*}\${id#*-}; done
echo "$id" >/etc/machine-id
# A boot id of ours in place of the kernel's, which cannot be changed: a machine that is restored needs another one.
read -r id </proc/sys/kernel/random/uuid
echo "$id" >/run/boot-id
mount --bind /run/boot-id /proc/sys/kernel/random/boot_id || say "the boot id is the kernel's"

# The power keys of an attached keyboard go to init, not straight to the kernel's reset.
echo 0 >/proc/sys/kernel/ctrl-alt-del
# A link for each command of busybox, unless the image has a file of that name.
/bin/busybox --install -s
`

/**
 * `microvm-network CARD…`: sets up the network cards at boot. A CARD is
 * `MAC,ADDRESS/LENGTH,GATEWAY,ADDRESS6/LENGTH,GATEWAY6,NAMESERVER,MTU`, and is the one that has this MAC; what is empty, or
 * missing at the end, is left alone. The gateways of the first card are used before those of the second. What fails is told on
 * stderr, the others are done, and the exit code is 1.
 *
 * @category scripts
 * @since 0.1.0
 */
export const network = `#!/bin/busybox sh
status=0
failed() { echo "network: $*" >&2; status=1; }
nth=0
servers=
for card; do
  nth=$((nth + 1))
  IFS=,
  set -f
  set -- $card
  unset IFS
  set +f
  mac=$1 address=$2 gateway=$3 address6=$4 gateway6=$5 server=$6 mtu=$7
  name=
  for path in /sys/class/net/*; do
    { read -r its <"$path/address"; } 2>/dev/null && [ "$its" = "$mac" ] && name=\${path##*/}
  done
  [ "$name" ] || { failed "there is no card for $card"; continue; }
  ip link set dev "$name" \${mtu:+mtu "$mtu"} up || failed "$name does not go up"
  for one in $address $address6; do
    # A kernel with CONFIG_IP_PNP has set up the first card.
    ip addr replace "$one" dev "$name" || failed "$name does not take $one"
  done
  for one in $gateway $gateway6; do
    case $one in *:*) family=-6 ;; *) family=-4 ;; esac
    route="$family route add default via $one dev $name metric $((nth * 10))"
    # A gateway outside of the address's prefix is reached at this card, too.
    ip $route 2>/dev/null || { ip $family route replace "$one" dev "$name" && ip $route; } ||
      failed "$name: no route via $one"
  done
  case "$servers " in *" $server "*) ;; *) servers="$servers $server" ;; esac
done
{ for server in $servers; do echo "nameserver $server"; done; } >/etc/resolv.conf ||
  failed "/etc/resolv.conf cannot be written"
exit "$status"
`

/**
 * `microvm-port NAME SECONDS`: waits until the virtio port NAME is there, at most SECONDS, and links it and all
 * others found as `/dev/virtio-ports/NAME`, the way udev would. The kernel adds ports some time after their driver is loaded.
 *
 * @category scripts
 * @since 0.1.0
 */
export const port = `#!/bin/busybox sh
tries=$(($2 * 100))
while :; do
  for port in /sys/class/virtio-ports/*; do
    # The attribute is made after its directory.
    { read -r name <"$port/name"; } 2>/dev/null || continue
    # Another one of these may be faster.
    [ -e "/dev/virtio-ports/$name" ] || ln -s "../\${port##*/}" "/dev/virtio-ports/$name" 2>/dev/null
  done
  [ -e "/dev/virtio-ports/$1" ] && exit
  tries=$((tries - 1))
  [ "$tries" -gt 0 ] || exit 1
  usleep 10000
done
`

/**
 * Runs QEMU's guest agent on its port. Init starts it again when it ends.
 *
 * @category scripts
 * @since 0.1.0
 */
export const agent = `#!/bin/busybox sh
# Nothing is started while the guest goes down.
[ -d /run/shutdown ] && exit
port=org.qemu.guest_agent.0
microvm-port "$port" 10 || { echo "microvm-agent: there is no virtio port $port" >/dev/console; exit 1; }
# What a command gets that is started without an environment.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec qemu-ga -m virtio-serial -p "/dev/virtio-ports/$port" -t /run </dev/null
`

/**
 * Has `microvm-resident` wait on its port where the kernel was told `microvm.resident`, as it is in a machine that others are
 * restored from. It is not started again when it ends: who finds it gone asks the agent.
 *
 * @category scripts
 * @since 0.1.0
 */
export const resident = `#!/bin/busybox sh
read -r arguments </proc/cmdline
case " $arguments " in *" microvm.resident "*) ;; *) exit ;; esac
port=microvm.resident
microvm-port "$port" 10 || { echo "microvm-resident: there is no virtio port $port" >/dev/console; exit 1; }
# What a program says that cannot be started.
exec /sbin/microvm-resident <>"/dev/virtio-ports/$port" >&0 2>/run/microvm-resident
`

/**
 * Powers the guest off when the ACPI power button is pressed.
 *
 * @category scripts
 * @since 0.1.0
 */
export const powerButton = `#!/bin/busybox sh
[ -d /run/shutdown ] && exit
for input in /sys/class/input/event*; do
  { read -r name <"$input/device/name"; } 2>/dev/null || continue
  [ "$name" = "Power Button" ] || continue
  # One struct input_event is 24 bytes; any event of this device is a press.
  (dd bs=24 count=1 <"/dev/input/\${input##*/}" >/dev/null 2>&1 && exec /sbin/shutdown -P) &
done
wait
# A guest without a button must not have init start this once a second.
exec sleep 2147483647
`

/**
 * `microvm-shutdown.sh [-P | -H | -r] …`: what `shutdown` becomes when there is more to do than it can: unmounts what lies on
 * block devices, too. The processes have a second to act on SIGTERM.
 *
 * The last line on its console is `microvm-shutdown: all is written, poweroff`, or what else it was asked for; it is the kernel that
 * says it, after an empty line, so what others have begun there is not in its way.
 *
 * Kernel argument: `microvm.off=reboot`: whatever was asked for, the guest reboots in the end, for monitors that end with a
 * reboot and with nothing else. To them, this reboot looks like that of a kernel that gave up, but for that line.
 *
 * @category scripts
 * @since 0.1.0
 */
export const shutdown = `#!/bin/busybox sh
how=poweroff
for argument; do
  case $argument in -P) how=poweroff ;; -H) how=halt ;; -r) how=reboot ;; esac
done
read -r arguments </proc/cmdline
asked=$how
case " $arguments " in *" microvm.off=reboot "*) how=reboot ;; esac
# One shutdown at a time; this also keeps the agent from being started again.
mkdir /run/shutdown 2>/dev/null || exit 0

# Does a process live but init and this one? Kernel threads and zombies have no command line.
others() {
  local process line self="$1"
  for process in /proc/[0-9]*; do
    case $process in /proc/1 | "/proc/$self") continue ;; esac
    line=
    { read -r line <"$process/cmdline"; } 2>/dev/null
    # What carries the others' last words goes with SIGKILL.
    case $line in '' | /sbin/microvm-vsock*) ;; *) return 0 ;; esac
  done
  return 1
}

go_down() {
  local self rest directory device mounts= tries=100
  trap '' HUP INT TERM
  read -r self rest </proc/self/stat
  # kill(2) with -1 spares init and the caller. A stopped process can act on SIGTERM only once it goes on.
  kill -TERM -1
  kill -CONT -1
  while others "$self" && [ "$tries" -gt 0 ]; do
    tries=$((tries - 1))
    usleep 4000
  done
  kill -KILL -1
  sync
  # Only what lies on a block device can lose data; the last mounted goes first.
  while read -r device directory rest; do
    case $device in /dev/*) mounts="$directory $mounts" ;; esac
  done </proc/mounts
  for directory in $mounts; do umount -r "$directory"; done
  # By the kernel: a terminal could still wait, or block. The newline in front ends what somebody may have left there unfinished.
  line="
microvm-shutdown: all is written, $asked"
  { echo "<0>$line" >/dev/kmsg; } 2>/dev/null || echo "$line" >/dev/console
  "$how" -f
}

# The agent waits for this command before it looks at its own SIGTERM, so the work is not this process's.
go_down &
`

/**
 * `microvm-start.sh FILE NAME [ARGUMENT…]`: what `microvm-exec` becomes when the kernel does not take FILE. One without a
 * `#!` line is run by the shell, and for any other there is a message and 126 or 127.
 *
 * @category scripts
 * @since 0.1.0
 */
export const start = `#!/bin/busybox sh
microvm_exec_file=$1
microvm_exec_name=$2
shift 2
exec -a "$microvm_exec_name" -- "$microvm_exec_file" "$@"
`

/**
 * `microvm-renew-hooks`: runs the executables in `/etc/microvm/renew.d`, in order of name. Each line of stdout is
 * `restarted` and the name of one that worked. One that fails is told on stderr, the others are run, and the exit code is 1.
 *
 * @category scripts
 * @since 0.1.0
 */
export const renewHooks = `#!/bin/busybox sh
status=0
for hook in /etc/microvm/renew.d/*; do
  [ -f "$hook" ] && [ -x "$hook" ] || continue
  # The agent waits for whoever has its pipes open, and a hook leaves programs behind.
  if "$hook" </dev/null >/dev/console 2>&1; then echo "restarted \${hook##*/}"
  else
    echo "microvm-renew-hooks: \${hook##*/} ended with $?" >&2
    status=1
  fi
done
exit "$status"
`

/**
 * The scripts at their places, with the few files a user land expects.
 *
 * @category scripts
 * @since 0.1.0
 */
export const entries: ReadonlyArray<Cpio.Entry> = [
  Cpio.symlink("init", "bin/busybox"),
  Cpio.symlink("bin/sh", "busybox"),
  Cpio.file("sbin/microvm-setup", setup, 0o755),
  Cpio.file("sbin/microvm-network", network, 0o755),
  Cpio.file("sbin/microvm-port", port, 0o755),
  Cpio.file("sbin/microvm-agent", agent, 0o755),
  Cpio.file("sbin/microvm-power-button", powerButton, 0o755),
  Cpio.file("sbin/microvm-exec", GuestPrograms.exec, 0o755),
  Cpio.file("sbin/microvm-start.sh", start, 0o755),
  Cpio.file("sbin/microvm-renew-hooks", renewHooks, 0o755),
  Cpio.file("sbin/microvm-vsock", GuestPrograms.vsock, 0o755),
  Cpio.file("sbin/microvm-syscalls", GuestPrograms.syscalls, 0o755),
  Cpio.file("sbin/microvm-resident.sh", resident, 0o755),
  Cpio.file("sbin/microvm-resident", GuestPrograms.resident, 0o755),
  Cpio.file("sbin/shutdown", GuestPrograms.shutdown, 0o755),
  Cpio.file("sbin/microvm-shutdown.sh", shutdown, 0o755),
  Cpio.file("etc/inittab", inittab),
  Cpio.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
  Cpio.file("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
  Cpio.file("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
  // The kernel opens it for its first process, before devtmpfs is mounted.
  Cpio.charDevice("dev/console", 5, 1),
  Cpio.directory("root", 0o700),
  ...["proc", "sys", "run", "tmp", "usr/bin", "usr/sbin"].map((path) => Cpio.directory(path))
]
