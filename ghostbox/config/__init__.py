# SPDX-License-Identifier: MIT
"""The configuration: what can be set, what it means, where each value came from."""

from ghostbox.config.load import file_candidates, from_settings, load, validate_file, with_origins
from ghostbox.config.schema import (
    Config,
    ExtraDisk,
    GuestConfig,
    ImageConfig,
    Key,
    LibvirtConfig,
    MemserverConfig,
    NetworkChoice,
    PagerConfig,
    PoolConfig,
    PortForward,
    SharedFolder,
    VmConfig,
    keys,
)

__all__ = [
    "Config",
    "ExtraDisk",
    "GuestConfig",
    "ImageConfig",
    "Key",
    "LibvirtConfig",
    "MemserverConfig",
    "NetworkChoice",
    "PagerConfig",
    "PoolConfig",
    "PortForward",
    "SharedFolder",
    "VmConfig",
    "file_candidates",
    "from_settings",
    "keys",
    "load",
    "validate_file",
    "with_origins",
]
