# SPDX-License-Identifier: MIT
"""Define the tables of the file of clients (`clients` makes and opens it; `role_store` and `requests` use it, too).

A file has `FIRST` from its beginning. `ADDED` came later: it is made at each opening, where it is missing, so that a
file of an earlier GhostBox has it, too.
"""

from __future__ import annotations

APPLICATION_ID = 0x47427431  # "GBt1"
VERSION = 1
FIRST = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE donor (id TEXT NOT NULL) STRICT;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, made REAL NOT NULL, expires REAL NOT NULL, boot TEXT NOT NULL,
    since_boot_s REAL NOT NULL, max_memory INTEGER, role TEXT NOT NULL, used_by TEXT
) STRICT;
CREATE TABLE clients (
    id TEXT PRIMARY KEY, host TEXT NOT NULL, host_id TEXT NOT NULL, credential_sha256 TEXT NOT NULL,
    state TEXT NOT NULL, role TEXT NOT NULL, max_memory INTEGER, paired REAL NOT NULL, seen REAL NOT NULL, address TEXT
) STRICT;
"""
"""Whose file it is, tokens, and clients."""
ADDED = """
CREATE TABLE IF NOT EXISTS roles (
    name TEXT PRIMARY KEY, memory_bytes INTEGER, leases INTEGER, connections INTEGER, bytes_per_s INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS client_limits (
    client TEXT PRIMARY KEY, memory_bytes INTEGER, leases INTEGER, connections INTEGER, bytes_per_s INTEGER
) STRICT;
CREATE TRIGGER IF NOT EXISTS paired_again AFTER UPDATE OF credential_sha256 ON clients BEGIN
    DELETE FROM client_limits WHERE client = new.id;
END;
CREATE TRIGGER IF NOT EXISTS struck_out AFTER DELETE ON clients BEGIN
    DELETE FROM client_limits WHERE client = old.id;
END;
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, commitment TEXT NOT NULL, credential_sha256 TEXT NOT NULL,
    donor_nonce TEXT NOT NULL, nonce_sha256 TEXT NOT NULL, code TEXT NOT NULL, host TEXT NOT NULL,
    host_id TEXT NOT NULL, address TEXT, network TEXT NOT NULL, client TEXT, made REAL NOT NULL, expires REAL NOT NULL,
    boot TEXT NOT NULL, since_boot_s REAL NOT NULL
) STRICT;
"""
"""Limits of roles and of single clients (a pairing that is made anew begins with what its token says), and requests."""
