#!/usr/bin/env bash
# Installs the gateway as a service on Debian or Raspberry Pi OS, from the folder that this script
# is in; run it again to upgrade. docs/operations.md has what it does and what it leaves alone.
set -euo pipefail

usage() {
  cat <<'END'
usage: sudo ./systemd/install.sh [--prefix FOLDER] [--no-restart] [--mask-brltty | --keep-brltty]
       sudo ./systemd/install.sh --uninstall [--purge] [--prefix FOLDER]

  --prefix FOLDER  where the program goes, /opt/esp-gateway if not given
  --no-restart     upgrade the files, but let the old program run until its next start
  --mask-brltty    stop brltty, which takes USB serial adapters for braille displays, for good
  --keep-brltty    leave it alone and do not ask
  --uninstall      stop the service and remove the program; configuration, state and logs stay
  --purge          remove these too

Environment: PYTHON, the interpreter (python3); pip's own variables (PIP_INDEX_URL, ...);
DESTDIR, a folder that stands for / (for trying this script).
END
}

readonly SERVICE=esp-gateway
readonly CONFIG=/etc/esp-gateway/gateway.yaml
# Beside it, since its first line names it for editors; each version has its own.
readonly SCHEMA=/etc/esp-gateway/gateway.schema.json
readonly COMMAND=/usr/local/bin/esp-gateway
# A service on a Raspberry Pi takes 3 s; one that waits for an address takes for ever.
readonly RESTART_LIMIT_S=20

prefix=/opt/esp-gateway
restart=yes
uninstall=no
purge=no
brltty=ask
new_config=no
was_active=no
new_venv=
old_venv=
backup=
backed_up=no
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
    build_program
    check_configuration
    switch_over
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
      --mask-brltty) brltty=mask ;;
      --keep-brltty) brltty=keep ;;
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

# Each version gets a virtual environment of its own, `venv-XXXXXX`, and `current` is a link to the
# one in use. `bin`, `lib` and pyvenv.cfg lead through `current`, so that the prefix itself is a
# virtual environment: `PREFIX/bin/python -m pip install esptool` puts it where the service looks.
readonly LINKS=(bin include lib lib64 pyvenv.cfg)

# While an upgrade downloads, and when it fails, the version in use is untouched.
build_program() {
  local root=$destdir$prefix build name
  for name in current "${LINKS[@]}"; do
    if [ -e "$root/$name" ] && [ ! -L "$root/$name" ]; then
      fail "$root/$name exists and is not a link of this script: choose another --prefix"
    fi
  done
  mkdir -p "$root"
  old_venv=$(venv_in_use)
  new_venv=$(mktemp -d "$root/venv-XXXXXX")
  # pip builds in the folder it is given, which is somebody's checkout.
  build=$(mktemp -d)
  # shellcheck disable=SC2064 # the names as they are now
  trap "rm -rf '$build' '$new_venv'" EXIT
  (cd "$source_dir" && cp -R pyproject.toml README.md LICENSE gateway packaging "$build")
  say "installing into $root"
  chmod 755 "$new_venv"
  "$python" -m venv "$new_venv"
  "$new_venv/bin/python" -m pip install --quiet --disable-pip-version-check "${build}[$(extras)]"
  "$new_venv/bin/esp-gateway" --version
  rm -rf "$build"
}

# The folder's name; empty before the first installation. Earlier versions had no `current`, and
# `bin` was a link to venv-XXXXXX/bin.
venv_in_use() {
  local target
  target=$(readlink "$destdir$prefix/current" || readlink "$destdir$prefix/bin" || true)
  echo "${target%/bin}"
}

# With what `http:` and `mdns:` need: a configuration that has them would be refused after an upgrade.
# What was put beside the version in use stays: esptool for flashing, uvloop.
extras() {
  local extras=web,mdns
  if has_package esptool; then extras+=,flash; fi
  if has_package uvloop; then extras+=,fast; fi
  echo "$extras"
}

# Looks at the files: after an upgrade of Debian, the old environment's Python may be gone or be
# another version, which does not look there.
has_package() {
  [ -n "$old_venv" ] &&
    compgen -G "$destdir$prefix/$old_venv/lib/python3*/site-packages/$1-*.dist-info" >/dev/null
}

# Before anything is replaced: with a file that the new version refuses, the next start would fail.
check_configuration() {
  if [ -e "$destdir$CONFIG" ] &&
    ! "$new_venv/bin/esp-gateway" check --quiet "$destdir$CONFIG"; then
    fail "$CONFIG has these mistakes for the new version; the old one stays in use." \
      "Mend the file and run this script again"
  fi
}

switch_over() {
  backup=$(mktemp -d)
  trap roll_back EXIT
  back_up_files
  install_files
  use_venv "${new_venv##*/}"
  activate
  trap - EXIT
  rm -rf "$backup"
  if [ "$restart" = yes ] || [ "$new_config" = yes ]; then
    remove_old_programs
  fi
  handle_conflicts
  say_what_is_next
}

use_venv() {
  local root=$destdir$prefix name
  # Each link is replaced in one step, and none ever leads nowhere.
  if [ ! -L "$root/current" ]; then
    replace_link "${old_venv:-$1}" "$root/current"
  fi
  for name in "${LINKS[@]}"; do
    if [ -e "$root/$1/$name" ]; then
      replace_link "current/$name" "$root/$name"
    fi
  done
  replace_link "$1" "$root/current"
}

replace_link() {
  ln -sfn "$1" "$2.new"
  mv -T "$2.new" "$2"
}

# Whatever fails: all is as it was before.
roll_back() {
  local root=$destdir$prefix file name
  set +e
  say "the installation failed" >&2
  for file in "${INSTALLED[@]}"; do
    if [ "$backed_up" = no ]; then
      break
    elif [ -e "$backup$file" ] || [ -L "$backup$file" ]; then
      cp -a "$backup$file" "$destdir$file"
    else
      rm -f "$destdir$file"
    fi
  done
  if [ "$new_config" = yes ]; then rm -f "$destdir$CONFIG"; fi
  if [ -n "$old_venv" ]; then
    use_venv "$old_venv"
  else
    systemctl disable --quiet "$SERVICE.service"
    for name in current "${LINKS[@]}"; do rm -f "$root/$name" "$root/$name.new"; done
  fi
  rm -rf "$new_venv" "$backup"
  systemctl daemon-reload
  if [ "$was_active" = yes ]; then
    timeout "$RESTART_LIMIT_S" systemctl restart "$SERVICE.service"
  fi
  if [ -n "$old_venv" ]; then say "the old version is in use again" >&2; fi
}

readonly UNIT=/etc/systemd/system/$SERVICE.service
readonly RULES=/etc/udev/rules.d/99-esp-gateway.rules
readonly MODULES=/etc/modules-load.d/esp-gateway.conf
readonly INSTALLED=("$UNIT" "$RULES" "$MODULES" "$COMMAND" "$SCHEMA")

back_up_files() {
  local file
  for file in "${INSTALLED[@]}"; do
    if [ -e "$destdir$file" ] || [ -L "$destdir$file" ]; then
      mkdir -p "$backup${file%/*}"
      cp -a "$destdir$file" "$backup$file"
    fi
  done
  backed_up=yes
}

install_files() {
  local file unit
  for file in "${INSTALLED[@]}" "$CONFIG"; do
    mkdir -p "$destdir${file%/*}"
  done
  unit=$(sed "s|/opt/esp-gateway/|$prefix/|" "$source_dir/systemd/$SERVICE.service")
  printf '%s\n' "$unit" >"$destdir$UNIT"
  install -m 644 "$source_dir/systemd/99-esp-gateway.rules" "$destdir$RULES"
  install -m 644 "$source_dir/systemd/esp-gateway.conf" "$destdir$MODULES"
  install -m 644 "$source_dir/config/gateway.schema.json" "$destdir$SCHEMA"
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
  if [ "$new_config" = no ] && [ "$restart" = yes ]; then
    restart_if_running
  fi
}

# Starting lasts until every address can be bound: systemd goes on with it when nobody waits.
restart_if_running() {
  local code=0
  if systemctl --quiet is-active "$SERVICE.service"; then was_active=yes; fi
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
  current=$(readlink "$root/current")
  for venv in "$root"/venv-*; do
    if [ "${venv##*/}" != "$current" ]; then
      rm -rf "$venv"
    fi
  done
}

handle_conflicts() {
  if systemctl --quiet is-active ModemManager.service; then
    say "ModemManager runs here. The udev rule keeps it off known boards; if you don't need it:"
    say "  sudo systemctl disable --now ModemManager"
  fi
  handle_brltty
}

# Debian's brltty claims CP210x, CH340 and FTDI over libusb some seconds after they are plugged in:
# their ttys vanish. It does not go by udev, so no rule keeps it off.
handle_brltty() {
  local answer=
  # systemctl complains of a unit that is not there.
  if ! systemctl --quiet is-active brltty.service 2>/dev/null &&
    ! systemctl --quiet is-enabled brltty.service 2>/dev/null; then
    return
  fi
  say "brltty is installed. It drives braille displays, and takes CP210x, CH340 and FTDI adapters for"
  say "such: these boards lose their tty some seconds after they are plugged in."
  if [ "$brltty" = ask ] && [ -t 0 ]; then
    read -r -p "$SERVICE: mask brltty? Braille displays will not work on this machine. [y/N] " answer ||
      true
    if [[ $answer == [yY]* ]]; then brltty=mask; fi
  fi
  if [ "$brltty" = mask ] && systemctl mask --now brltty.service; then
    say "brltty is masked; plug the boards in again. Undo it with: sudo systemctl unmask brltty"
  else
    say "On a machine without a braille display: sudo systemctl mask --now brltty"
  fi
}

say_what_is_next() {
  if [ "$new_config" = no ] && [ "$restart" = no ]; then
    say "upgraded; the new version starts with: sudo systemctl restart $SERVICE"
  elif [ "$new_config" = no ]; then
    say "upgraded; see: systemctl status $SERVICE"
  else
    cat <<END

Installed, and started at each boot from now on. Next:

  esp-gateway devices                   # what is plugged in; --yaml for the configuration
  sudo nano $CONFIG
  esp-gateway check $CONFIG
  sudo systemctl start $SERVICE
  systemctl status $SERVICE
END
  fi
}

remove_all() {
  local root=$destdir$prefix
  systemctl disable --quiet --now "$SERVICE.service" || true
  rm -f "$destdir$UNIT" "$destdir$RULES" "$destdir$MODULES" "$destdir$SCHEMA"
  if [ "$(readlink "$destdir$COMMAND")" = "$prefix/bin/esp-gateway" ]; then
    rm -f "$destdir$COMMAND"
  fi
  # Only what this script has made: --prefix may name a folder with other things in it.
  local name
  for name in current "${LINKS[@]}"; do
    rm -f "$root/$name.new"
    if [ -L "$root/$name" ]; then
      rm -f "$root/$name"
    fi
  done
  rm -rf "$root"/venv-*
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
