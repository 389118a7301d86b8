# SPDX-License-Identifier: MIT
"""Use the operating system: processes, SSH, SFTP, systemd, libvirt. One module here owns each."""
