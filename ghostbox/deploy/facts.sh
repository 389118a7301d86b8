#!/bin/sh
# SPDX-License-Identifier: MIT
# Prints facts about a machine that is to lend memory, one NAME=VALUE a line. It changes nothing.
# `ghostbox donor deploy` has the machine's sh read it, since nothing else is certain to be there.
LC_ALL=C
export LC_ALL

say() { printf '%s=%s\n' "$1" "$2"; }

free_kib() { # directory, which need not exist
    place=$1
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    df -Pk "$place" 2>/dev/null | awk 'NR == 2 { print $4 }'
}

# An installation of ours has a file of this name. Its arguments are those of the memserver, one a line.
installation() { # beginning of the names, directory, unit of systemd
    say "$1" "$2"
    say "$1_free_kib" "$(free_kib "$2")"
    if [ -e "$2" ]; then say "$1_exists" yes; fi
    if [ -e "$3" ]; then say "$1_unit" yes; fi
    if [ ! -f "$2/deployed.json" ]; then return; fi
    say "$1_ours" yes
    current=$(readlink "$2/current" 2>/dev/null)
    say "$1_current" "${current##*/}"
    for version in "$2"/versions/*; do
        if [ -d "$version" ]; then say "$1_version" "${version##*/}"; fi
    done
    if [ -f "$2/arguments" ]; then sed "s/^/$1_argument=/" "$2/arguments"; fi
}

say kernel "$(uname -s)"
say machine "$(uname -m)"
say host "$(uname -n)"
say user "$(id -un)"
say uid "$(id -u)"
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 | head -n 1)"

if command -v python3 >/dev/null 2>&1; then
    python3 -I -c 'import sys
print("python=%d.%d.%d" % sys.version_info[:3])
print("python_path=" + sys.executable)' 2>/dev/null </dev/null
    # Debian's python3-minimal has only a part of the standard library.
    say python_lacks "$(python3 -I -c 'import asyncio, ctypes, hashlib, json, sqlite3, ssl, tarfile, uuid, zipfile, zlib' 2>&1 </dev/null | tail -n 1)"
fi

if [ "$(id -u)" = 0 ]; then
    say sudo root
elif ! command -v sudo >/dev/null 2>&1; then
    say sudo missing
elif sudo -n true >/dev/null 2>&1 </dev/null; then
    say sudo free
else
    say sudo asks
fi

if [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; then
    say systemd yes
    if systemctl --user show-environment >/dev/null 2>&1 </dev/null; then say user_systemd yes; fi
fi
say home_directory "$HOME"
installation system /opt/ghostbox /etc/systemd/system/ghostbox-donor.service
installation home "$HOME/.local/lib/ghostbox" "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/ghostbox-donor.service"
say end yes
