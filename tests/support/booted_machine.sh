#!/usr/bin/env bash
# booted_machine.sh FOLDER SOURCE: systemd as process 1 of namespaces of its own, on a copy of this
# machine's files that is forgotten at the end, with SOURCE at /srv, read-only; no network but
# loopback. To be run as root, in a mount namespace of its own.
set -euo pipefail
folder=$1
source=$2

# A control group of its own, which is all that systemd shall see of them.
mkdir -p "$folder/cgroup"
mount -t cgroup2 none "$folder/cgroup"
group=$folder/cgroup/$(basename "$folder")
mkdir -p "$group"
echo $$ >"$group/cgroup.procs"

export folder source
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --pid --fork --kill-child --net --ipc --uts --cgroup bash -euo pipefail -c '
  mount --make-rprivate /
  umount "$folder/cgroup"
  mount -t tmpfs tmpfs "$folder"
  mkdir "$folder/upper" "$folder/work" "$folder/root"
  mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
  cd "$folder/root"
  mkdir -p old proc sys dev run tmp srv
  mount -t proc proc proc
  # Kernel settings and devices are this machine, not a copy: read-only.
  mount --bind proc/sys proc/sys
  mount -o remount,ro,bind proc/sys
  mount -t sysfs -o ro sysfs sys
  mount -t cgroup2 none sys/fs/cgroup
  mount -t tmpfs -o mode=755 tmpfs dev
  for device in null zero full random urandom tty; do
    cp --archive "/dev/$device" dev/
    chmod 666 "dev/$device"
  done
  mkdir dev/pts dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  mount -t tmpfs tmpfs dev/shm
  mount -t tmpfs -o mode=755 tmpfs run
  mount -t tmpfs tmpfs tmp
  mount --bind "$source" srv
  mount -o remount,ro,bind srv
  # What this machine would start is not wanted.
  mkdir -p etc/systemd/system
  mount -t tmpfs -o mode=755 tmpfs etc/systemd/system
  pivot_root . old
  cd /
  umount --lazy /old
  exec env --ignore-environment container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set \
    -sys_time,-sys_module,-sys_rawio,-syslog,-sys_boot,-mac_admin,-mac_override,-wake_alarm \
    /lib/systemd/systemd --system --unit=basic.target --log-target=console
'
