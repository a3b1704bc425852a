#!/usr/bin/env bash
# Installs the gateway as a service on Debian or Raspberry Pi OS, from the folder that this script
# is in; run it again to upgrade. docs/operations.md has what it does and what it leaves alone.
set -euo pipefail

usage() {
  cat <<'END'
usage: sudo ./systemd/install.sh [--prefix FOLDER] [--no-restart]
       sudo ./systemd/install.sh --uninstall [--purge] [--prefix FOLDER]

  --prefix FOLDER  where the program goes, /opt/esp-gateway if not given
  --no-restart     upgrade the files, but let the old program run until its next start
  --uninstall      stop the service and remove the program; configuration, state and logs stay
  --purge          remove these too

Environment: PYTHON, the interpreter (python3); pip's own variables (PIP_INDEX_URL, ...);
DESTDIR, a folder that stands for / (for trying this script).
END
}

readonly SERVICE=esp-gateway
readonly CONFIG=/etc/esp-gateway/gateway.yaml
readonly COMMAND=/usr/local/bin/esp-gateway
# A service on a Raspberry Pi takes 3 s; one that waits for an address takes for ever.
readonly RESTART_LIMIT_S=20

prefix=/opt/esp-gateway
restart=yes
uninstall=no
purge=no
new_config=no
python=${PYTHON:-python3}
destdir=${DESTDIR:-}
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

main() {
  parse_arguments "$@"
  if [ -z "$destdir" ] && [ "$(id -u)" -ne 0 ]; then
    fail "this must be run as root: sudo $0"
  fi
  # Both only matter here: files are for everybody to read, and sudo may have kept a home's.
  umask 022
  unset PYTHONPATH PYTHONHOME
  if [ "$uninstall" = yes ]; then
    remove_all
  else
    check_machine
    install_program
    install_files
    activate
  fi
}

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      --prefix)
        [ $# -ge 2 ] || fail "--prefix needs a folder"
        prefix=${2%/}
        shift
        ;;
      --prefix=*) prefix=${1#--prefix=} prefix=${prefix%/} ;;
      --no-restart) restart=no ;;
      --uninstall) uninstall=yes ;;
      --purge) purge=yes ;;
      -h | --help)
        usage
        exit 0
        ;;
      *)
        usage >&2
        exit 2
        ;;
    esac
    shift
  done
  # It goes into the unit and into sed as it is.
  if [[ ! $prefix =~ ^(/[A-Za-z0-9_][A-Za-z0-9._+-]*)+$ ]]; then
    fail "--prefix needs an absolute folder without spaces, found: $prefix"
  fi
  if [ "$purge" = yes ] && [ "$uninstall" = no ]; then
    fail "--purge goes with --uninstall"
  fi
}

say() { echo "$SERVICE: $*"; }

fail() {
  echo "$SERVICE: $*" >&2
  exit 1
}

check_machine() {
  command -v systemctl >/dev/null || fail "systemctl not found: this machine does not run systemd"
  command -v "$python" >/dev/null || fail "$python not found: sudo apt install python3 python3-venv"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed (PYTHON=/path/to/it)"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python can't make virtual environments: sudo apt install python3-venv"
  getent group dialout >/dev/null ||
    fail "there is no group dialout, which serial ports belong to on Debian"
}

# Each version gets a virtual environment of its own, and `bin` is a link to that in use: while an
# upgrade downloads, and when it fails, the old one is untouched.
install_program() {
  local root=$destdir$prefix venv build
  mkdir -p "$root"
  venv=$(mktemp -d "$root/venv-XXXXXX")
  # pip builds in the folder it is given, which is somebody's checkout.
  build=$(mktemp -d)
  # shellcheck disable=SC2064 # the names as they are now
  trap "rm -rf '$build' '$venv'" EXIT
  (cd "$source_dir" && cp -R pyproject.toml README.md LICENSE gateway packaging "$build")
  say "installing into $root"
  chmod 755 "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${build}[$(extras)]"
  "$venv/bin/esp-gateway" --version
  ln -sfn "${venv##*/}/bin" "$root/bin.new"
  mv -T "$root/bin.new" "$root/bin"
  trap - EXIT
  rm -rf "$build"
}

# With what `http:` and `mdns:` need: a configuration that has them would be refused after an upgrade.
# What was put beside the version in use stays: esptool for flashing, uvloop.
extras() {
  local extras=web,mdns
  if has_module esptool; then extras+=,flash; fi
  if has_module uvloop; then extras+=,fast; fi
  echo "$extras"
}

has_module() {
  "$destdir$prefix/bin/python" -c "import importlib.util as u, sys
sys.exit(u.find_spec('$1') is None)" 2>/dev/null
}

install_files() {
  local unit
  unit=$(sed "s|/opt/esp-gateway/|$prefix/|" "$source_dir/systemd/$SERVICE.service")
  mkdir -p "$destdir/etc/systemd/system" "$destdir/etc/udev/rules.d" "$destdir/etc/modules-load.d" \
    "$destdir/etc/esp-gateway" "$destdir/usr/local/bin"
  printf '%s\n' "$unit" >"$destdir/etc/systemd/system/$SERVICE.service"
  install -m 644 "$source_dir/systemd/99-esp-gateway.rules" "$destdir/etc/udev/rules.d/"
  install -m 644 "$source_dir/systemd/esp-gateway.conf" "$destdir/etc/modules-load.d/"
  ln -sfn "$prefix/bin/esp-gateway" "$destdir$COMMAND"
  if [ ! -e "$destdir$CONFIG" ]; then
    install -m 644 "$source_dir/config/gateway.yaml" "$destdir$CONFIG"
    new_config=yes
  fi
}

activate() {
  # These two fail in a container, whose kernel and devices are somebody else's.
  systemctl restart systemd-modules-load.service ||
    say "the kernel modules usbserial and cdc-acm could not be loaded"
  if command -v udevadm >/dev/null; then
    udevadm control --reload || say "udev's rules could not be loaded again"
    udevadm trigger --action=change --subsystem-match=usb || true
  fi
  systemctl daemon-reload
  systemctl enable --quiet "$SERVICE.service"
  warn_of_others
  if [ "$new_config" = yes ]; then
    remove_old_programs
    say_what_is_next
  elif ! "$destdir$prefix/bin/esp-gateway" check "$destdir$CONFIG" >/dev/null; then
    fail "$CONFIG has these mistakes for the new version; a running service goes on with the old" \
      "one until you say: sudo systemctl restart $SERVICE"
  elif [ "$restart" = no ]; then
    say "upgraded; the new version starts with: sudo systemctl restart $SERVICE"
  else
    restart_if_running
    remove_old_programs
    say "upgraded; see: systemctl status $SERVICE"
  fi
}

# Starting lasts until every address can be bound: systemd goes on with it when nobody waits.
restart_if_running() {
  local code=0
  timeout "$RESTART_LIMIT_S" systemctl try-restart "$SERVICE.service" || code=$?
  if [ "$code" -eq 124 ]; then
    say "the service is still starting"
  elif [ "$code" -ne 0 ]; then
    fail "the service does not start; see: journalctl -u $SERVICE -e"
  fi
}

# Those that nothing runs from any more.
remove_old_programs() {
  local root=$destdir$prefix current venv
  current=$(readlink "$root/bin")
  for venv in "$root"/venv-*; do
    if [ "${venv##*/}/bin" != "$current" ]; then
      rm -rf "$venv"
    fi
  done
}

warn_of_others() {
  local other
  for other in ModemManager brltty; do
    if systemctl --quiet is-active "$other.service"; then
      say "$other runs here. The udev rule keeps it off known boards; if you don't need it:"
      say "  sudo systemctl disable --now $other"
    fi
  done
}

say_what_is_next() {
  cat <<END

Installed, and started at each boot from now on. Next:

  ls -l /dev/serial/by-path/            # what is plugged in
  sudo nano $CONFIG
  esp-gateway check $CONFIG
  sudo systemctl start $SERVICE
  systemctl status $SERVICE
END
}

remove_all() {
  local root=$destdir$prefix
  systemctl disable --quiet --now "$SERVICE.service" || true
  rm -f "$destdir/etc/systemd/system/$SERVICE.service" \
    "$destdir/etc/udev/rules.d/99-esp-gateway.rules" \
    "$destdir/etc/modules-load.d/esp-gateway.conf"
  if [ "$(readlink "$destdir$COMMAND")" = "$prefix/bin/esp-gateway" ]; then
    rm -f "$destdir$COMMAND"
  fi
  # Only what this script has made: --prefix may name a folder with other things in it.
  rm -rf "$root/bin.new" "$root"/venv-*
  if [ -L "$root/bin" ]; then
    rm -f "$root/bin"
  fi
  if [ -d "$root" ]; then
    rmdir --ignore-fail-on-non-empty "$root"
  fi
  systemctl daemon-reload
  if command -v udevadm >/dev/null; then
    udevadm control --reload || true
  fi
  if [ "$purge" = yes ]; then
    rm -rf "$destdir/etc/esp-gateway" "$destdir/etc/systemd/system/$SERVICE.service.d" \
      "$destdir"/var/{lib,log}/{private/esp-gateway,esp-gateway}
    say "removed, with configuration, state and logs"
  else
    say "removed; --purge also removes /etc/esp-gateway, /var/lib/esp-gateway, /var/log/esp-gateway"
  fi
}

main "$@"
