# SPDX-License-Identifier: MIT
"""Boot a Debian guest for tests: the shared image in a plain QEMU (no libvirt, no pager) under TCG."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ghostbox import paths
from ghostbox.images import Image, ImageStore, load_recipe
from ghostbox.plan import cloudinit
from ghostbox.plan.tiering import Tiering
from ghostbox.system import processes, ssh, ssh_keys
from ghostbox.units import MIB
from helpers.ports import free_port

BOOT_TIMEOUT_S = 280.0
NODE0_BYTES = 768 * MIB
NODE1_BYTES = 512 * MIB
DISK_BYTES = 6 * 1024 * MIB
USER = "users"
"""A group of every Debian system has this name, and it is a login name like any other."""


def shared_image() -> Image:
    """Return this machine's own image; build it (40 s, once) if it is missing or its recipe has changed."""
    return ImageStore(paths.find().images).build(load_recipe())


def share_images(cache_dir: Path) -> None:
    """Let a test with its own cache directory use the shared image; call this before it sets the directory."""
    (cache_dir / "images").symlink_to(shared_image().directory.parent)


@dataclass(frozen=True)
class Guest:
    """Is a booted guest; ``ssh`` is logged in."""

    directory: Path
    image: Image
    host_key: ssh_keys.KeyPair
    port: int
    ssh: ssh.GuestSsh

    def run(self, command: str, timeout_s: float = 60.0) -> str:
        """Return a command's stdout; if the command fails, the test fails."""
        done = self.ssh.run(command, timeout_s)
        assert done.status == 0, f"{command}: status {done.status}: {done.stderr}"
        return done.stdout

    def console(self) -> str:
        """Return the guest's console output so far."""
        return (self.directory / "console.log").read_text(errors="replace")


@contextmanager
def booted(directory: Path, image: Image, *, user_data: str | None = None, tiering: bool = True) -> Iterator[Guest]:
    """Boot ``image`` with two NUMA nodes, of which the second has no processors and is far; end it afterwards."""
    host, client, port = ssh_keys.generate_key("guest"), ssh_keys.generate_key("test"), free_port()
    ssh_keys.write_key(client, directory / "id_ed25519")
    (directory / "known_hosts").write_text(cloudinit.render_known_hosts("127.0.0.1", port, host.public))
    spec = cloudinit.SeedSpec(
        hostname="testbox",
        user=USER,
        ssh_authorized_keys=(client.public,),
        host_key_private=host.private,
        host_key_public=host.public,
        tiering=Tiering(on=tiering, why="test"),
        extra_user_data=user_data,
    )
    cloudinit.write_seed_iso(cloudinit.render(spec), directory / "seed.iso")
    ImageStore(image.directory.parent).create_overlay(image, directory / "disk.qcow2", DISK_BYTES)
    process = subprocess.Popen(_qemu_argv(directory, image, port), stderr=subprocess.PIPE)
    try:
        connection = ssh.GuestSsh("127.0.0.1", port, USER, directory / "id_ed25519", directory / "known_hosts")
        guest = Guest(directory, image, host, port, connection)
        with connection:
            connection.wait_ready(BOOT_TIMEOUT_S, alive=lambda: process.poll() is None)
            yield guest
    finally:
        if process.poll() is None:
            processes.terminate(process.pid)
        process.communicate()


def _qemu_argv(directory: Path, image: Image, port: int) -> list[str]:
    boot = [] if image.kernel is None else ["-kernel", str(image.kernel), "-append", image.kernel_args]
    boot += [] if image.initrd is None else ["-initrd", str(image.initrd)]
    return [
        "qemu-system-x86_64",
        "-nodefaults",
        *("-display", "none"),
        *("-machine", "q35,hmat=on"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "max,la57=off,svm=off"),  # with svm the guest would load all of KVM, which takes seconds
        *("-smp", str(min(2, os.cpu_count() or 1))),
        *numa_options(),
        *boot,
        *("-drive", f"if=none,id=disk,file={directory / 'disk.qcow2'},format=qcow2"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-drive", f"if=none,id=seed,file={directory / 'seed.iso'},format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
        *("-serial", f"file:{directory / 'console.log'}"),
    ]


def numa_options() -> list[str]:
    """Return QEMU's options for the two nodes: SLIT by ``-numa dist``, HMAT by ``-numa hmat-lb`` (ns, bytes/s)."""
    options = ["-m", f"{(NODE0_BYTES + NODE1_BYTES) // MIB}M"]
    for node, size_bytes in ((0, NODE0_BYTES), (1, NODE1_BYTES)):
        share = "on" if node else "off"
        options += ["-object", f"memory-backend-memfd,id=node{node},size={size_bytes},share={share}"]
        cpus = "" if node else ",cpus=0-1"
        options += ["-numa", f"node,nodeid={node},memdev=node{node}{cpus},initiator=0"]
    options += ["-numa", "dist,src=0,dst=1,val=40", "-numa", "dist,src=1,dst=0,val=40"]
    for target, ns, bandwidth in ((0, 100, "20G"), (1, 50000, "1G")):
        common = f"hmat-lb,initiator=0,target={target},hierarchy=memory"
        options += ["-numa", f"{common},data-type=access-latency,latency={ns}"]
        options += ["-numa", f"{common},data-type=access-bandwidth,bandwidth={bandwidth}"]
    return options
