# SPDX-License-Identifier: MIT
"""Define the configuration: its keys, their meaning, and where each value comes from."""

from ghostbox.config.load import file_candidates, from_settings, load, split_local, validate_file, with_origins
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
    settable,
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
    "settable",
    "split_local",
    "validate_file",
    "with_origins",
]
