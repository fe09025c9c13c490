import * as Mark from "../Mark.ts"

/**
 * The program of the guard, for any POSIX sh. Its first argument is the mark to look for at the end.
 *
 * It reads lines `SLOT KIND ARGUMENT…` (remember), `SLOT` (forget) and `bye` (all is well); anything else is passed over.
 * The end of the input without a `bye` is our death. Then it goes round until nothing was found several times in a row:
 * a child that was being made at that moment carries its mark only from its execve(2) on. Paths and words come with unusual bytes as
 * octal escapes, so that none can break a line.
 *
 * A process can say that its environment is as long as it likes (PR_SET_MM_MAP of prctl(2)). A search that takes a second of the
 * processor is ended, and from then on a start of each is looked at, which takes longer where all is well.
 */
export const guardScript = `
set -u -f
trap '' HUP INT QUIT TERM PIPE USR1 USR2 ALRM TSTP TTIN TTOU
mark=$1
last=0
endless=0

while IFS= read -r line; do
  [ "$line" = bye ] && exit 0
  slot=\${line%% *}
  case $slot in '' | *[!0-9]* | ????????*) continue ;; esac
  case $line in
    *' '*) eval "watched_$slot=\\\${line#* }" ;;
    *) eval "watched_$slot=" ;;
  esac
  [ "$slot" -le "$last" ] || last=$slot
done

kill_cgroup() {
  [ -d "$1" ] || return 0
  found=1
  echo 1 > "$1/cgroup.kill"
  find "$1" -depth -type d -exec rmdir {} ';'
}

find_marked() {
  set +f
  if [ "$endless" = 0 ]; then
    marked=$(ulimit -t 1; exec grep -lsF -e "${Mark.variable}=$mark." /proc/[0-9]*/environ) || [ "$?" -lt 128 ] || endless=1
  fi
  [ "$endless" = 0 ] || marked=$(find_each)
  set -f
}

find_each() {
  for file in /proc/[0-9]*/environ; do
    head -c 2097152 "$file" | grep -qF -e "${Mark.variable}=$mark." && echo "$file"
  done
}

find_groups() {
  find_marked
  groups=' '
  for file in $marked; do
    stat=$(cat "\${file%environ}stat") || continue
    set -- \${stat##*) }
    groups="$groups$3 "
  done
}

kill_group() {
  case $1 in '' | *[!0-9]* | 0 | 1) return 0 ;; esac
  pgid=$1 since=$2
  if stat=$(cat "/proc/$pgid/stat"); then
    set -- \${stat##*) }
    [ "\${20}" = "$since" ] || return 0
    [ "$1" = Z ] || found=1
  else
    [ -n "$groups" ] || find_groups
    case $groups in *" $pgid "*) found=1 ;; *) return 0 ;; esac
  fi
  kill -s KILL -- "-$pgid"
}

kill_marked() {
  find_marked
  for file in $marked; do
    pid=\${file#/proc/}
    kill -s KILL "\${pid%/environ}" && found=1
  done
}

run_program() {
  left=$#
  while [ "$left" -gt 0 ]; do
    word=$(printf '%b.' "$1")
    shift
    set -- "$@" "\${word%.}"
    left=$((left - 1))
  done
  trap - HUP INT QUIT TERM PIPE USR1 USR2 ALRM TSTP TTIN TTOU
  cd -- "$1" && shift && exec env -i -- "$@"
}

clear() {
  slot=0
  while [ "$slot" -lt "$last" ]; do
    slot=$((slot + 1))
    eval "entry=\\\${watched_$slot-}"
    set -- "$1" $entry
    path=$(printf '%b.' "\${3-}")
    path=\${path%.}
    case "$1 \${2-}" in
      'processes cgroup') kill_cgroup "$path" ;;
      'processes group') kill_group "$3" "$4" ;;
      'paths file') rm -f -- "$path" ;;
      'paths directory') rm -rf -- "$path" ;;
      'programs program') (shift 2 && run_program "$@") ;;
    esac
  done
}

run_programs() {
  [ "$ran" = 0 ] || return 0
  ran=1
  clear programs &
}

quiet=0
rounds=0
ran=0
while [ "$quiet" -lt 6 ] && [ "$rounds" -lt 200 ]; do
  found=0
  groups=
  clear processes
  kill_marked
  if [ "$found" = 0 ]; then quiet=$((quiet + 1)); else quiet=0; fi
  [ "$quiet" = 1 ] && clear paths
  [ "$quiet" = 3 ] && run_programs
  rounds=$((rounds + 1))
  sleep 0.05 || sleep 1
done
clear paths
run_programs
wait
`
