"""The tables of the file, version by version.

A migration is SQL that is run once, in order, each in a transaction of its own; its place in MIGRATIONS (from 1) is the
version that it makes. One that was released is never changed: add another at the end. `rows.py` says what the newest
version looks like, and a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outbid_node.history.damage import NewerFile

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VERSION_1 = """
CREATE TABLE jobs (
    job VARCHAR, capability VARCHAR, model VARCHAR, policy VARCHAR, submitter VARCHAR, durable BOOLEAN,
    priority VARCHAR, state VARCHAR, error_code VARCHAR, error VARCHAR, created_ms BIGINT, ended_ms BIGINT,
    node VARCHAR, name VARCHAR, attempts INTEGER, promised_s DOUBLE, promised_p90_s DOUBLE, took_s DOUBLE,
    waited_s DOUBLE, energy_j DOUBLE, cost_usd DOUBLE, work MAP(VARCHAR, DOUBLE), timings MAP(VARCHAR, DOUBLE)
);
CREATE TABLE attempts (
    job VARCHAR, attempt INTEGER, capability VARCHAR, model VARCHAR, node VARCHAR, name VARCHAR, started_ms BIGINT,
    ended_ms BIGINT, error_code VARCHAR, error VARCHAR, step INTEGER, promised_s DOUBLE, promised_p90_s DOUBLE,
    took_s DOUBLE, energy_j DOUBLE, cost_usd DOUBLE, warm BOOLEAN
);
CREATE TABLE auctions (
    job VARCHAR, attempt INTEGER, how VARCHAR, opened_ms BIGINT, took_ms DOUBLE, asked INTEGER, winner VARCHAR,
    why VARCHAR, waited_s DOUBLE, waited_for VARCHAR
);
CREATE TABLE bids (
    job VARCHAR, attempt INTEGER, made BOOLEAN, at_ms BIGINT, node VARCHAR, name VARCHAR, capability VARCHAR,
    model VARCHAR, decline_code VARCHAR, temporary BOOLEAN, start_s DOUBLE, finish_s DOUBLE, finish_p90_s DOUBLE,
    energy_j DOUBLE, cost_usd DOUBLE, warm BOOLEAN, zone VARCHAR, standing BOOLEAN, later BOOLEAN, score DOUBLE,
    parts MAP(VARCHAR, DOUBLE), stretch DOUBLE, excluded VARCHAR, won BOOLEAN, why VARCHAR
);
CREATE TABLE runs (
    job VARCHAR, attempt INTEGER, owner VARCHAR, submitter VARCHAR, capability VARCHAR, model VARCHAR, device VARCHAR,
    outcome VARCHAR, error_code VARCHAR, started_ms BIGINT, ended_ms BIGINT, warm BOOLEAN, beside INTEGER,
    work MAP(VARCHAR, DOUBLE), counts MAP(VARCHAR, DOUBLE), seconds MAP(VARCHAR, DOUBLE), promised_s DOUBLE,
    promised_p90_s DOUBLE, took_s DOUBLE, energy_j DOUBLE, cost_usd DOUBLE, power_source VARCHAR, part BOOLEAN,
    slower DOUBLE, cpu_share DOUBLE
);
CREATE TABLE loads (
    at_ms BIGINT, capability VARCHAR, model VARCHAR, device VARCHAR, load_s DOUBLE, memory_mib DOUBLE,
    gpu_memory_mib DOUBLE, rates MAP(VARCHAR, DOUBLE), fixed_s DOUBLE, error VARCHAR,
    cpu_share DOUBLE
);
CREATE TABLE samples (
    at_ms BIGINT, span_s DOUBLE, cpu_percent DOUBLE, memory_used_mib DOUBLE, storage_free_mib DOUBLE,
    disk_read_bytes_s DOUBLE, disk_write_bytes_s DOUBLE, network_in_bytes_s DOUBLE, network_out_bytes_s DOUBLE,
    gpu_percent DOUBLE, gpu_memory_used_mib DOUBLE, gpu_temperature_c DOUBLE, gpu_w DOUBLE, temperature_c DOUBLE,
    battery_percent DOUBLE, battery_w DOUBLE, power_w DOUBLE, power_source VARCHAR, running INTEGER, waiting INTEGER
);
CREATE TABLE events (at_ms BIGINT, kind VARCHAR, node VARCHAR, text VARCHAR);
CREATE TABLE calibrations (
    at_ms BIGINT, capability VARCHAR, model VARCHAR, device VARCHAR, load_s DOUBLE, fixed_s DOUBLE,
    rates MAP(VARCHAR, DOUBLE), crowding DOUBLE, cpu_share DOUBLE
);
CREATE TABLE usage (
    hour_ms BIGINT, submitter VARCHAR, owner VARCHAR, capability VARCHAR, model VARCHAR, jobs INTEGER, failed INTEGER,
    seconds DOUBLE, energy_j DOUBLE, cost_usd DOUBLE, units MAP(VARCHAR, DOUBLE)
);
CREATE TABLE _rolled_up (table_name VARCHAR, until_ms BIGINT);
"""

MIGRATIONS: tuple[str, ...] = (VERSION_1,)


def version_of(connection: DuckDBPyConnection) -> int:
    """0: a file without our tables."""
    known = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'schema_version'"
    if connection.execute(known).fetchone() is None:
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return int(row[0]) if row else 0


def migrate(connection: DuckDBPyConnection, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Bring the file to the newest version; returns the one it had. Raises NewerFile, having written nothing."""
    had = version_of(connection)
    if had > len(migrations):
        raise NewerFile(f"it is of version {had}, and this program knows versions up to {len(migrations)}")
    for version in range(had + 1, len(migrations) + 1):
        connection.begin()
        try:
            if version == 1:
                connection.execute("CREATE TABLE schema_version (version INTEGER, since TIMESTAMP)")
            connection.execute(migrations[version - 1])
            connection.execute("INSERT INTO schema_version VALUES (?, now()::TIMESTAMP)", [version])
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
    return had
