# SPDX-License-Identifier: MIT
"""Find the mirrors for the guest's packages: those of this machine's apt, with its settings for reaching them."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ghostbox.errors import ImageError, ProgramError
from ghostbox.system import processes

_log = logging.getLogger(__name__)
_FORMAT = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(LABEL)"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ARCHIVE_URI = re.compile(r".*/debian/?")
_INDEX_URI = re.compile(r"^'(?P<uri>[^']+/)dists/(?P<release>[^/']+)/[^']*'", re.MULTILINE)
_SECURITY_RELEASE = re.compile(r"[a-z]+-security")
_SECURITY_URI = re.compile(r".*/debian-security/?|.*//security\..*")
# These are apt's settings of how to reach a mirror, and whether this machine's clock is reliable.
_PASSED_ON = re.compile(r"Acquire::(https?::|ftp::|Retries|Check-Valid-Until|Check-Date|ForceIPv[46])", re.IGNORECASE)


def sources_list(suite: str, components: tuple[str, ...], mirror: str | None = None) -> list[str]:
    """Return apt source lines for ``suite``: the archive, its updates and its security updates.

    Args:
        suite: Debian release name, such as ``trixie``.
        components: archive areas, such as ``main``.
        mirror: URI of a Debian archive to use instead of those that apt knows.

    Raises:
        ImageError: apt knows no Debian archive.
    """
    if mirror is not None:
        return [_line(mirror, suite, components)]
    archive, security = known_archives(f"{_index_targets()}\n{_configured()}")
    lines = [_line(archive, release, components) for release in (suite, f"{suite}-updates")]
    if security is None:
        _log.warning("apt on this machine knows no archive of security updates: the guest will not get any either")
    else:
        lines.append(_line(security, f"{suite}-security", components))
    return lines


def apt_options() -> list[str]:
    """Return this machine's apt settings on proxies, retries and dates, as ``Name "value";``."""
    return passed_on(processes.run(["apt-config", "dump"], timeout_s=30))


def passed_on(dump: str) -> list[str]:
    """Return the lines of ``apt-config dump`` that also apply when the guest's packages are fetched."""
    return [line for line in dump.splitlines() if _PASSED_ON.match(line) and '""' not in line]


def _index_targets() -> str:
    try:
        return processes.run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"], timeout_s=30)
    except ProgramError as err:
        raise ImageError(
            "cannot ask apt for its mirrors", why=err.message, hint="name a mirror: ghostbox image build --mirror URI"
        ) from err


def _configured() -> str:
    """Return what apt would fetch, like `_index_targets`, which has only archives whose lists were fetched."""
    try:
        planned = processes.run(["apt-get", "update", "--print-uris"], timeout_s=30)
    except ProgramError as err:
        _log.debug("apt does not say what it would fetch: %s", err.why or err.message)
        return ""
    return configured(planned)


def configured(planned: str) -> str:
    """Return the archives in the lines of ``apt-get update --print-uris``, in the form that `known_archives` takes."""
    return "\n".join(f"{found['uri']}|{found['release']}||" for found in _INDEX_URI.finditer(planned))


def known_archives(targets: str) -> tuple[str, str | None]:
    """Return the URIs of the Debian archive and of its security updates.

    Args:
        targets: lines of ``apt-get indextargets``: URI, release, origin, label; the last two are empty if apt has not
            fetched the lists yet.

    Raises:
        ImageError: no Debian archive is among them.
    """
    archive = security = None
    for line in targets.splitlines():
        uri, release, origin, label = [*line.split("|"), "", "", ""][:4]
        if origin not in ("", "Debian"):
            continue
        if label == "Debian-Security" or _SECURITY_URI.fullmatch(uri) or _is_security(release, uri):
            security = security or uri
        elif (origin, label) == ("Debian", "Debian") or _ARCHIVE_URI.fullmatch(uri):
            archive = archive or uri
    if archive is None:
        raise ImageError(
            "apt on this machine knows no Debian archive, and the guest is made of Debian's packages",
            hint="name a mirror: ghostbox image build --mirror URI",
        )
    return archive, security


def _is_security(release: str, uri: str) -> bool:
    """Tell whether a release whose lists were never fetched is Debian's security archive, at whatever URI."""
    return _SECURITY_RELEASE.fullmatch(release) is not None and "debian" in uri


def _line(uri: str, release: str, components: tuple[str, ...]) -> str:
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return f"deb {signed}{uri} {release} {' '.join(components)}"
