"""What is done in a machine: POSIX shell, coreutils and systemd. Texts only; nothing is run here.

A run is a folder below `RUNS`, which only root can list:

    run          the command, and `environment`, what it finds there: both the login user's, who runs it
    keep, told   scripts of the keeper's, and by which systemd tells how the command ended
    at           when it was begun: seconds since the epoch, seconds since the boot, the boot's id
    once/        made by the keeper when it begins; a second keeper goes away
    say/         two pipes that the command writes to; o and e, all it has said; t, lines of `milliseconds`, and what
                 there was of o and of e then; dropped, how much of their beginnings was given up
    work/        the working directory, and own/, where `run` leaves a word if the command cannot be begun
    asked        it was asked to end
    result       how the command ended, in systemd's words: written at once, so it is whole where it is not empty
    end          the same when all it said is kept; the last thing written

The command is a transient service (``usina-<handle>``), whose limits are systemd's; the keeper is another one. So both
outlive every connection, and a user who kills all that is theirs does not reach the keeper. Processes are few: an
emulated machine takes a tenth of a second for each.
"""

from __future__ import annotations

from typing import Final

RUNS: Final = "/var/lib/usina/runs"
KEPT: Final = 32 << 20  # bytes of each stream that are kept in the machine
NO_SYSTEMD: Final = 3  # exit code
READ: Final = 1 << 20  # bytes of each stream that one reading takes

# Arguments: folder, user, the texts of `keep` and `told`, bytes of the environment. Standard input: the texts of
# `environment` and `run`.
MAKE: Final = f"""
set -eu; umask 066
if ! [ -d /run/systemd/system ] || ! command -v systemd-run >/dev/null; then
  echo "there is no systemd in the machine" >&2; exit {NO_SYSTEMD}
fi
mkdir -p -- "$1/say" "$1/work" "$1/own"; cd -- "$1"
if [ -e once ]; then
  cat >/dev/null
else
  [ -p say/o.pipe ] || mkfifo say/o.pipe say/e.pipe
  : >>say/o; : >>say/e; : >>say/t
  printf '%s\\n' "$3" >keep; printf '%s\\n' "$4" >told
  head -c "$5" >environment; cat >run
  chmod 700 work own
  chown -- "$2:" work own say/o.pipe say/e.pipe environment run
fi
"""

# Arguments: handle, folder, then the properties of the command's service. Whoever repeats it changes nothing: the name
# of the keeper's service is taken while it runs, and a keeper goes away where one was.
LAUNCH: Final = """
set -eu
h=$1; cd -- "$2"; shift 2
if ! [ -s at ]; then
  read -r up rest </proc/uptime; read -r boot </proc/sys/kernel/random/boot_id
  echo "$(date +%s.%N) $up $boot" >at
  cat at
fi
if ! [ -e once ]; then
  said=$(systemd-run --quiet --collect --unit "usina-$h-keeper" -p OOMScoreAdjust=-900 -p KillMode=mixed \\
    /bin/sh "$PWD/keep" "$h" "$@" 2>&1) ||
    case $said in *"already"*) ;; *) echo "$said" >&2; exit 4 ;; esac
fi
"""

# Both at once, where there are no files to be put in place between. Arguments: those of `MAKE`, then of `LAUNCH`.
BEGIN: Final = f"{MAKE}shift 5\n{LAUNCH}"

# Arguments: handle, then the properties. Run as a service of its own.
KEEP: Final = f"""
cd -- "${{0%/*}}" || exit 1
umask 077
mkdir once 2>/dev/null || exit 0
h=$1; shift
cat <say/o.pipe >>say/o & o=$!
cat <say/e.pipe >>say/e & e=$!

tick() {{
  now=$(stat -c %s say/o say/e)
  if [ "$now" = "$was" ]; then
    case $pause in 0.3) pause=0.6 ;; 0.6) pause=1 ;; *) pause=2 ;; esac
    busy=0
    return
  fi
  was=$now; busy=$((busy + 1)); pause=0.3
  if [ $busy -gt 200 ]; then pause=2; fi
  set -- $now
  echo "$(date +%s%3N) $1 $2" >>say/t
  if [ $(($1 - gone_o)) -gt {2 * KEPT} ]; then gone_o=$(($1 - {KEPT})); drop o $gone_o; fi
  if [ $(($2 - gone_e)) -gt {2 * KEPT} ]; then gone_e=$(($2 - {KEPT})); drop e $gone_e; fi
}}
# What is too old is given back to the file system; positions stay as they are.
drop() {{
  echo "$gone_o $gone_e" >say/dropped.new; mv say/dropped.new say/dropped
  fallocate -p -o 0 -l "$2" "say/$1" 2>/dev/null
}}
was="0
0"; pause=0.3; busy=0; gone_o=0; gone_e=0; late=0
clock() {{
  while sleep $pause; do
    tick
    if [ -s result ]; then  # somebody who is not of the run any more may hold a pipe open
      pause=0.3; late=$((late + 1)); if [ $late -gt 10 ]; then kill $o $e; fi
    fi
  done
}}
clock 2>/dev/null & c=$!

systemd-run --wait --collect --unit "usina-$h" "$@" /bin/sh "$PWD/run" 2>once/words
how=; code=-; status=-
while read -r line; do
  case $line in
    "Finished with result: "*) how=${{line#*: }} ;;
    "Main processes terminated with: code="*)
      code=${{line#*code=}}; code=${{code%%[/,]*}}; status=${{line##*status=}}
      if [ $code = exited ]; then status=${{status%%/*}}; else status=${{status##*/}}; fi ;;
  esac
done <once/words
if ! [ -s result ]; then  # systemd may kill `told` when it hears late of memory that was used up
  [ -n "$how" ] || kill $o $e 2>/dev/null
  read -r up rest </proc/uptime; echo "${{how:-none}} $code $status $up 0 0" >result
fi
wait $o $e
kill $c 2>/dev/null; wait $c 2>/dev/null
tick
why=
if [ -f own/not-started ] && ! [ -L own/not-started ]; then why=$(head -c 300 own/not-started | tr '\\n' ' ')
elif [ -z "$how" ]; then why=$(head -c 300 once/words | tr '\\n' ' ')
fi
read -r result <result
asked=0; if [ -e asked ]; then asked=1; fi
echo "$asked $result $why" >end
for b in /run/usina/bell.*; do if [ -p "$b" ]; then echo bell 1<>"$b"; fi; done
"""

# Run by systemd as root when all of the command is gone and its control group still is there. Argument: handle.
# One write, and as few processes as can be: it has little time. A machine that is shut down ends what runs in it like
# anybody else, so systemd is asked whether it was that.
TOLD: Final = """
cd -- "${0%/*}" || exit 1
umask 077
g=/sys/fs/cgroup/system.slice/usina-$1.service
cpu=0; peak=0
if [ -r $g/cpu.stat ]; then
  while read -r name value; do if [ $name = usage_usec ]; then cpu=$value; fi; done <$g/cpu.stat
fi
if [ -r $g/memory.peak ]; then read -r peak <$g/memory.peak; fi
read -r up rest </proc/uptime
if [ "$(systemctl is-system-running 2>/dev/null)" = stopping ]; then SERVICE_RESULT=shutdown; fi
echo "$SERVICE_RESULT ${EXIT_CODE:--} ${EXIT_STATUS:--} $up $cpu $peak" >result
"""

# Answers each line that it reads with a look at every run, until its input ends; a keeper that ends its run rings, too.
# Builtins only: it costs the machine no process.
WATCH: Final = f"""
umask 077
mkdir -p /run/usina
bell=/run/usina/bell.$$
mkfifo "$bell" || exit 1
exec 3<>"$bell" 4<&0
trap 'rm -f "$bell"' EXIT
trap 'exit 0' TERM HUP INT PIPE
{{ cat; echo quit; }} <&4 >&3 &
exec 4<&-
look() {{
  read -r boot </proc/sys/kernel/random/boot_id
  for d in {RUNS}/*/; do
    d=${{d%/}}; h=${{d##*/}}
    if ! [ -s "$d/at" ]; then
      if [ -d "$d" ]; then echo "$h making"; fi
      continue
    fi
    read -r at up began <"$d/at"
    keeper=
    for g in /sys/fs/cgroup/system.slice /sys/fs/cgroup/systemd/system.slice; do
      if [ "$began" = "$boot" ] && [ -d "$g/usina-$h-keeper.service" ]; then keeper=1; fi
    done
    if [ -s "$d/end" ]; then  # looked for last: it may have ended since we looked for its keeper
      read -r line <"$d/end"; echo "$h end $at $up $line"
    elif [ -n "$keeper" ]; then
      use "$h"; echo "$h running $at $cpu $now $peak"
    elif [ -s "$d/result" ]; then
      read -r line <"$d/result"; asked=0; if [ -e "$d/asked" ]; then asked=1; fi
      echo "$h end $at $up $asked $line"
    elif ! [ -e "$d/once" ]; then
      echo "$h making"
    elif [ "$began" = "$boot" ]; then echo "$h lost $at keeper"
    else echo "$h lost $at boot"
    fi
  done 2>/dev/null
  echo ". $1"
}}
use() {{
  cpu=0; now=0; peak=0
  g=/sys/fs/cgroup/system.slice/usina-$1.service
  if [ -r "$g/cpu.stat" ]; then
    while read -r name value; do if [ "$name" = usage_usec ]; then cpu=$value; fi; done <"$g/cpu.stat"
  fi
  if [ -r "$g/memory.current" ]; then read -r now <"$g/memory.current"; fi
  if [ -r "$g/memory.peak" ]; then read -r peak <"$g/memory.peak"; fi
}}
look hello
while read -r word <&3; do
  if [ "$word" = quit ]; then exit 0; fi
  look "$word"
done
"""

# Arguments: handle, a signal. Its end is seen by the watch.
END: Final = f"""
cd -- "{RUNS}/$1" 2>/dev/null || exit 0
if [ -s end ] || ! [ -e once ]; then exit 0; fi
: >asked
n=0
until systemctl kill -s "$2" "usina-$1.service" 2>/dev/null; do
  n=$((n + 1)); if [ -s end ] || [ $n -gt 20 ]; then exit 0; fi
  sleep 0.1
done
"""

# Argument: handle.
REMOVE: Final = f"""
cd {RUNS} 2>/dev/null || exit 0
[ -d "$1" ] || exit 0
if ! [ -s "$1/end" ] && ! mkdir "$1/once" 2>/dev/null; then
  systemctl kill -s KILL "usina-$1.service" 2>/dev/null
  systemctl stop "usina-$1.service" "usina-$1-keeper.service" 2>/dev/null
  n=0
  while systemctl is-active -q "usina-$1.service"; do
    n=$((n + 1)); if [ $n -gt 100 ]; then echo "its processes do not end" >&2; exit 6; fi
    sleep 0.1
  done
fi
rm -rf -- "./$1"
"""

# Arguments: handle, how much of o, e and t is known. A line of what follows, then as much of t, o and e.
LOG: Final = f"""
cd -- "{RUNS}/$1" 2>/dev/null || exit 0
if ! [ -e say/o ]; then exit 0; fi
over=0; began=; boot=
if [ -s at ]; then read -r at up began <at; read -r boot </proc/sys/kernel/random/boot_id; fi
if [ -s end ] || [ "$began" != "$boot" ]; then over=1; fi
gone_o=0 gone_e=0; if [ -r say/dropped ]; then read -r gone_o gone_e <say/dropped; fi
now=$(date +%s%3N)
set -- "$2" "$3" "$4" $(stat -c %s say/o say/e say/t)
of=$1; if [ "$of" -lt "$gone_o" ]; then of=$gone_o; fi
ef=$2; if [ "$ef" -lt "$gone_e" ]; then ef=$gone_e; fi
tf=$3; on=$(($4 - of)); en=$(($5 - ef)); tn=$(($6 - tf))
if [ $on -gt {READ} ]; then on={READ}; fi
if [ $en -gt {READ} ]; then en={READ}; fi
if [ $tn -gt {READ} ]; then tn={READ}; fi
echo "$now $over $of $on $ef $en $tf $tn $4 $5 $6"
part() {{
  if [ "$3" -gt 0 ]; then
    dd status=none iflag=skip_bytes,count_bytes,fullblock bs=64K skip="$2" count="$3" if="say/$1"
  fi
}}
part t $tf $tn; part o $of $on; part e $ef $en
"""

# As the login user. Arguments: the working directory, then a path below it or an absolute one, and a mode.
PUT: Final = """
umask 077; cd -- "$1" || exit 1
mkdir -p -- "$(dirname -- "$2")" && cat >"$2" && chmod -- "$3" "$2"
"""
UNPACK: Final = 'umask 022; cd -- "$1" && mkdir -p -- "$2" && exec tar -xzf - --no-same-owner -C "$2"'
LIST: Final = 'cd -- "$1" && exec find . -type f -print0'
PACK: Final = 'cd -- "$1" && exec tar -cf - --no-recursion --null --verbatim-files-from -T -'

# As root. Arguments: handle, user, the working directory, the environment, the command. In the control group of the
# run, so that its limits hold, and it ends with it.
BESIDE: Final = f"""
h=$1 user=$2 work=$3; shift 3
if [ -s "{RUNS}/$h/end" ] || ! [ -e "{RUNS}/$h/once" ]; then echo "the task does not run" >&2; exit 127; fi
group=/sys/fs/cgroup/system.slice/usina-$h.service
if [ -w "$group/cgroup.procs" ]; then echo $$ >"$group/cgroup.procs"; fi
home=$(getent passwd "$user" | cut -d: -f6)
export HOME="$home" USER="$user" LOGNAME="$user"
unset SUDO_USER SUDO_UID SUDO_GID SUDO_COMMAND MAIL
cd -- "$work" || exit 126
exec setpriv --reuid="$user" --regid="$(id -g -- "$user")" --init-groups -- \\
  /bin/sh -c '. "$0"; exec "$@"' "{RUNS}/$h/environment" "$@"
"""
