# SPDX-License-Identifier: MIT
"""Keep a donor's key and self-signed certificate, by whose fingerprint hosts know the donor.

The certificate names the memserver's id, so that a new id (of a state directory that was copied to another machine, see
`identity`) brings a new certificate. It is valid at any time: hosts look at its SHA-256 and at nothing else, and no
clock that is wrong may part a donor from its hosts. The key is written first, and a certificate without its key is not
replaced: hosts know it, so its owner has to decide.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ghostbox.errors import GhostboxError, hint_for
from ghostbox.system import state_files

_log = logging.getLogger(__name__)
_NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # "no expiry" of RFC 5280


@dataclass(frozen=True)
class Certificate:
    """Holds the paths of a donor's certificate and key, and the SHA-256 of the certificate (DER)."""

    file: Path
    key: Path
    fingerprint: bytes


def ensure(state: Path, donor_id: str) -> Certificate:
    """Return the certificate of the memserver ``donor_id`` with this state directory; make it if there is none.

    Raises:
        GhostboxError: the certificate or its key cannot be read or written, or they do not belong together.
    """
    found = _load(state, donor_id)
    return _make(state, donor_id) if found is None else found


def server_context(certificate: Certificate) -> ssl.SSLContext:
    """Return the settings of a server that shows the certificate: TLS 1.3 only, no session tickets.

    Raises:
        GhostboxError: the files cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate.file, certificate.key)
    except OSError as err:
        raise _unusable(certificate.key, str(err)) from err
    return context


def _load(state: Path, donor_id: str) -> Certificate | None:
    """Return the certificate that is there, if it is of this memserver.

    Raises:
        GhostboxError: it is of this memserver and cannot be used.
    """
    file, key = state / "certificate.pem", state / "key.pem"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise _unusable(file, str(err)) from err
    if _named(certificate) != donor_id:
        _log.warning("%s is the certificate of another memserver: this one gets a certificate of its own", file)
        return None
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError) as err:
        raise _unusable(key, str(err)) from err
    if private.public_key() != certificate.public_key():
        raise _unusable(key, f"it is not the key of {file.name}")
    return Certificate(file, key, _fingerprint(certificate))


def _make(state: Path, donor_id: str) -> Certificate:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, donor_id)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    made = Certificate(state / "certificate.pem", state / "key.pem", _fingerprint(certificate))
    _write(made.key, pem)
    _write(made.file, certificate.public_bytes(serialization.Encoding.PEM))
    return made


def _named(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _fingerprint(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def _write(path: Path, content: bytes) -> None:
    try:
        state_files.replace(path, content)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {path}: {err.strerror}", hint=hint_for(err, "see that it can be written")
        ) from err


def _unusable(path: Path, why: str) -> GhostboxError:
    return GhostboxError(
        f"cannot use {path}",
        why=why,
        hint=f"bring it back from a copy; without one: rm {path.parent}/certificate.pem, and pair each host again"
        " (ghostbox token create)",
    )
