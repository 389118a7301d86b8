# SPDX-License-Identifier: MIT
"""What root runs in the guest at each boot, as shell scripts for cloud-init's ``bootcmd``. Pure.

It is the same for the image that we build and for those that are imported, whatever the age of a VM's disk.
"""

from __future__ import annotations

from ghostbox.tiering import Tiering

# Memory that was plugged in and that nothing has taken so far (domain_xml.py: the remote memory is a DIMM).
_MEMORY_ON = (
    "for block in /sys/devices/system/memory/memory*; do "
    "if grep -qs offline $block/state; then echo online_movable > $block/state; fi; done"
)
# With remote memory (node 1): what domain_xml.py has among the kernel's arguments, for images with a boot loader.
_FREE_IN_SMALL_PIECES = (
    "if test -d /sys/devices/system/node/node1; then "
    "echo 5 > /sys/module/page_reporting/parameters/page_reporting_order; "
    "echo 0 > /proc/sys/vm/compaction_proactiveness; fi"
)
# Emulated, who touches memory that is lost waits for ever, and its processor with it. khugepaged copies the memory of
# programs that sleep; this is its longest pause (khugepaged_wait_work, mm/khugepaged.c: it then waits without end).
_NO_COPIES_OF_SLEEPERS = (
    "if test -d /sys/devices/system/node/node1; then "
    "echo 4294967295 > /sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs; fi"
)
# Nobody has a password, so the console logs the user in. That is safe: it is a terminal of the host that belongs to
# QEMU's user and that libvirt hands to those alone who may also replace the VM's disk or its kernel.
# The built image has this drop-in already (images/debian.yaml), which saves the reload.
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
# While the VM is paused (a donor is silent, the host sleeps) its clock stands still and the host's goes on. By so much
# more than the time that the guest was up did the clock of the machine advance (RTC, QEMU's clock=host). By that much,
# and no more than the system's clock fell behind meanwhile, is it set forward: what a time service or the user did to
# it stays. All figures are whole seconds, so that one more or less is rounding.
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


# The name of another VM on a libvirt network is one word, and libvirt's own network hands out no domain to go with it.
# systemd-resolved asks a DNS server for such names only if it is told to (resolved.conf(5)).
_NAMES_OF_ONE_WORD = """
if test -d /run/systemd/system && command -v resolvectl > /dev/null; then
    mkdir -p /run/systemd/resolved.conf.d
    printf '[Resolve]\\nResolveUnicastSingleLabel=yes\\n' > /run/systemd/resolved.conf.d/ghostbox.conf
    systemctl --no-block try-restart systemd-resolved.service
fi
"""


# systemd mounts its own over the file where the kernel's command line has one (domain_xml.py); an image with a boot
# loader of its own is another machine from its next boot on.
_MACHINE_ID = "grep -qx ID /etc/machine-id || echo ID > /etc/machine-id"


def scripts(user: str, tiering: Tiering, *, emulated: bool, machine_id: str | None = None) -> list[str]:
    """Return the scripts for a guest whose login is ``user``, in their order.

    ``machine_id`` (machine-id(5)) is given where the guest's disk is a copy of another one's.
    """
    at_each_boot = [_MEMORY_ON, _FREE_IN_SMALL_PIECES, _CONSOLE_LOGIN.replace("USER", user), _CLOCK_SERVICE]
    at_each_boot.append(_NAMES_OF_ONE_WORD)
    if emulated:
        at_each_boot.append(_NO_COPIES_OF_SLEEPERS)
    if machine_id is not None:
        at_each_boot.append(_MACHINE_ID.replace("ID", machine_id))
    return [*at_each_boot, tiering.script]
