# SPDX-License-Identifier: MIT
"""Hold the shell scripts that root runs in the guest at each boot, for cloud-init's ``bootcmd``. All is pure.

The scripts are the same for the image that GhostBox builds and for imported images, whatever the age of a VM's disk.
"""

from __future__ import annotations

from ghostbox.plan.tiering import Tiering

# This brings plugged-in memory online that is still offline (domain_xml.py: the remote memory is a DIMM).
_MEMORY_ON = (
    "for block in /sys/devices/system/memory/memory*; do "
    "if grep -qs offline $block/state; then echo online_movable > $block/state; fi; done"
)
# With remote memory (node 1), this sets what domain_xml.py sets by kernel arguments, for images with a boot loader.
_FREE_IN_SMALL_PIECES = (
    "if test -d /sys/devices/system/node/node1; then "
    "echo 5 > /sys/module/page_reporting/parameters/page_reporting_order; "
    "echo 0 > /proc/sys/vm/compaction_proactiveness; fi"
)
# In an emulated guest, a program that touches lost memory waits forever, and its processor with it. khugepaged copies
# memory also of sleeping programs; this is its longest pause (khugepaged_wait_work, mm/khugepaged.c: an endless one).
_NO_COPIES_OF_SLEEPERS = (
    "if test -d /sys/devices/system/node/node1; then "
    "echo 4294967295 > /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs; fi"
)
# No user has a password, so the console logs vm.user in. That is safe: the console is a terminal of the host that
# belongs to QEMU's user, and libvirt gives it only to users who may also replace the VM's disk or its kernel. The built
# image has this drop-in already (images/debian.yaml), which saves the reload.
_CONSOLE_LOGIN = r"""
if test -d /run/systemd/system; then
    mkdir -p /run/ghostbox
    echo 'AUTOLOGIN="--autologin USER"' > /run/ghostbox/console
    dropin=systemd/system/serial-getty@ttyS0.service.d
    if ! test -e /etc/$dropin/ghostbox.conf; then
        mkdir -p /run/$dropin
        printf '%s\n' '[Service]' 'EnvironmentFile=-/run/ghostbox/console' 'ExecStart=' \
            'ExecStart=-/sbin/agetty $AUTOLOGIN --noclear --keep-baud 115200,57600,38400,9600 %I $TERM' \
            > /run/$dropin/ghostbox.conf
        systemctl daemon-reload
    fi
fi
"""
# While the VM is paused (a donor is down, the host sleeps), the guest's clock stops and the host's does not. The
# machine's clock (RTC, QEMU's clock=host) then has advanced more than the guest's uptime. The script sets the system's
# clock forward by that difference, at most by what the clock fell behind meanwhile: changes by a time service or the
# user stay. All figures are whole seconds, so a difference of one second may be rounding.
CLOCK = r"""
look() {
    read -r rtc < /sys/class/rtc/rtc0/since_epoch
    read -r up _ < /proc/uptime
    up=${up%.*}
    printf -v now '%(%s)T' -1
}
look
while before_up=$((rtc - up)) before_now=$((rtc - now)); sleep "${1:-10}"; do
    look
    late=$((rtc - up - before_up))
    behind=$((rtc - now - before_now))
    if [ $((behind < late ? behind : late)) -ge 2 ]; then
        second=$rtc
        until look; [ "$rtc" != "$second" ]; do :; done
        date -s "@$((rtc - (before_now * before_now > 1 ? before_now : 0)))" > /dev/null
        echo "this machine stood still for $late s: its clock is set forward"
        look
    fi
done
"""
_CLOCK_SERVICE = (
    "if test -d /run/systemd/system && test -e /sys/class/rtc/rtc0/since_epoch && command -v bash > /dev/null; then\n"
    "mkdir -p /run/ghostbox\n"
    f"cat > /run/ghostbox/clock << 'END'\n{CLOCK.strip()}\nEND\n"
    "systemd-run --quiet --no-block --unit=ghostbox-clock bash /run/ghostbox/clock\n"
    "fi\n"
)


# On a libvirt network another VM's name is a single label, and libvirt's DHCP gives no search domain. systemd-resolved
# sends such names to a DNS server only with this setting (resolved.conf(5)). The built image has it already.
_NAMES_OF_ONE_WORD = """
if test -d /run/systemd/system && command -v resolvectl > /dev/null &&
    ! test -e /etc/systemd/resolved.conf.d/ghostbox.conf; then
    mkdir -p /run/systemd/resolved.conf.d
    printf '[Resolve]\\nResolveUnicastSingleLabel=yes\\n' > /run/systemd/resolved.conf.d/ghostbox.conf
    systemctl --no-block try-restart systemd-resolved.service
fi
"""


# If the kernel's command line has an id (domain_xml.py), systemd mounts it over the file. An image with a boot loader
# of its own has the new id from its next boot on.
_MACHINE_ID = "grep -qx ID /etc/machine-id || echo ID > /etc/machine-id"


def scripts(user: str, tiering: Tiering, *, emulated: bool, machine_id: str | None = None) -> list[str]:
    """Return the scripts for a guest with the login ``user``, in the order in which they run.

    ``machine_id`` (machine-id(5)) is given if the guest's disk is a copy of another VM's.
    """
    at_each_boot = [_MEMORY_ON, _FREE_IN_SMALL_PIECES, _CONSOLE_LOGIN.replace("USER", user), _CLOCK_SERVICE]
    at_each_boot.append(_NAMES_OF_ONE_WORD)
    if emulated:
        at_each_boot.append(_NO_COPIES_OF_SLEEPERS)
    if machine_id is not None:
        at_each_boot.append(_MACHINE_ID.replace("ID", machine_id))
    return [*at_each_boot, tiering.script]
