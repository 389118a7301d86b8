#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs as the chroot's root, outside it: makes the kernel, the initrd and the root file system of the guest image.
# usage: export.sh ROOT OUT DISK_BYTES MODULE…
set -eu
export LC_ALL=C

root=$1 out=$2 disk_bytes=$3
shift 3

# shellcheck disable=SC2012 # names of kernel versions have no blanks, and sort -V orders them
version=$(ls "$root/lib/modules" | sort -V | tail -n 1)
kernel=$root/boot/vmlinuz-$version

make_initrd() {
    tree=$root/tmp/initrd
    mkdir -p "$tree/bin" "$tree/modules" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/root"
    cp "$root/bin/busybox" "$tree/bin/busybox"
    ln -s busybox "$tree/bin/sh"
    for module in "$@"; do
        chroot "$root" modprobe --set-version "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' > "$out/modules"
    : > "$tree/modules/order"
    while read -r path; do
        name=$(basename "$path" .xz)
        case $path in
        *.xz) xz -dc "$root$path" > "$tree/modules/$name" ;;
        *) cp "$root$path" "$tree/modules/$name" ;;
        esac
        echo "$name" >> "$tree/modules/order"
    done < "$out/modules"
    write_init > "$tree/init"
    chmod 755 "$tree/init"
    chroot "$root" sh -c 'cd /tmp/initrd && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0' > "$out/initrd.img"
    rm -rf "$tree" "$out/modules"
}

write_init() {
    cat << 'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module" || echo "initrd: cannot load $module"
done < /modules/order
# Not by the kernel: in its eyes memory that is on before it has read HMAT is as near as all other (ghostbox/plan/domain_xml.py).
for block in /sys/devices/system/memory/memory*/state; do
    read -r state < "$block"
    if [ "$state" = offline ]; then echo online_movable > "$block"; fi
done
label=$($b sed -n 's/.*root=LABEL=\([^ ]*\).*/\1/p' /proc/cmdline)
tries=0
while ! disk=$($b findfs "LABEL=$label" 2> /dev/null); do
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then
        echo "initrd: no disk with the label $label; there are:"
        $b cat /proc/partitions
        exec $b sh
    fi
    $b sleep 0.05
done
$b mount -t ext4 -o rw,noatime "$disk" /root || exec $b sh
$b umount /proc /sys
$b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
INIT
}

cp "$kernel" "$out/vmlinuz"
make_initrd "$@"
rm -f "$root"/boot/initrd.img-* "$root"/boot/vmlinuz-*

# /proc, /sys and /dev are mounted in the root; a bind mount of it (in our own namespace) shows what lies below them.
mkdir "$out/below"
mount --bind "$root" "$out/below"
mke2fs -q -F -t ext4 -L ghostbox-root -m 1 -d "$out/below" "$out/disk.raw" "$((disk_bytes / 1024))k"
umount "$out/below"
chmod 644 "$out/vmlinuz" "$out/initrd.img" "$out/disk.raw"
