# SPDX-License-Identifier: MIT
"""Make, write and read SSH keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostbox.errors import ConfigError, GuestError
from ghostbox.system import state_files

_PUBLIC_KEY_KINDS = ("ssh-", "ecdsa-", "sk-")


@dataclass(frozen=True)
class KeyPair:
    """Is an ed25519 key in OpenSSH's text formats; ``public`` is one line without its end."""

    private: str
    public: str


def generate_key(comment: str) -> KeyPair:
    """Return a new ed25519 key."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), f"{public.decode()} {comment}")


def write_key(pair: KeyPair, path: Path) -> None:
    """Write the public key as ``.pub``, then the private key to ``path``, which its owner alone may read.

    Both are there once ``path`` is there, also after a kill in between.

    Raises:
        OSError: a file cannot be written.
    """
    state_files.replace(path.with_name(path.name + ".pub"), f"{pair.public}\n".encode(), mode=0o644)
    state_files.replace(path, pair.private.encode(), mode=0o600)


def read_key(path: Path) -> KeyPair:
    """Return the key that ``write_key`` wrote.

    Raises:
        GuestError: a file is missing or unreadable.
    """
    try:
        return KeyPair(path.read_text(), path.with_name(path.name + ".pub").read_text().strip())
    except OSError as err:
        raise GuestError(f"cannot read the key {err.filename}: {err.strerror}") from err


def user_public_keys(home: Path) -> tuple[str, ...]:
    """Return the public keys in a home directory (``~/.ssh/id_*.pub``); unusable files are left out."""
    found = []
    for path in sorted((home / ".ssh").glob("id_*.pub")):
        try:
            found.append(read_public_key(path))
        except ConfigError:
            continue
    return tuple(found)


def read_public_key(path: Path) -> str:
    """Return the first public key in a file, as one line.

    Raises:
        ConfigError: the file cannot be read, or holds no public key (it is a private key, most often).
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read the SSH key {path}: {getattr(err, 'strerror', None) or err}") from err
    for line in lines:
        if line.startswith(_PUBLIC_KEY_KINDS) and len(line.split()) >= 2:
            return line.strip()
    raise ConfigError(f"{path} holds no SSH public key", hint=f"the public key is usually in {path}.pub")
