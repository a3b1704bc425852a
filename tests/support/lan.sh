#!/bin/sh
# Runs a command in a network that leads nowhere, as root of namespaces of its own (lan.py makes
# them): one end of a cable, `lan0`, has the address 10.99.0.1. With "avahi" as the first argument,
# Avahi's daemon runs on it, with a message bus of its own.
set -eu
mount -t tmpfs none /run
mount -t proc none /proc
ip link set lo up
ip link add lan0 type veth peer name far0
ip address add 10.99.0.1/24 dev lan0
ip link set lan0 up
ip link set far0 up
if [ "$1" = avahi ]; then
  shift
  mkdir -p /run/dbus
  cat > /run/dbus.conf <<'CONF'
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
CONF
  dbus-daemon --config-file=/run/dbus.conf --nopidfile --fork
  avahi-daemon --no-drop-root --no-chroot --no-rlimits 2> /run/avahi.log &
fi
exec "$@"
