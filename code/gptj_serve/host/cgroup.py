"""Reads what a container may use of its host: its control group's limits (``docker run --cpus, --memory``).

Both versions of control groups are read, as a container sees its own below /sys/fs/cgroup.
"""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as a number near 2**63."""


def cpu_limit(root: Path = ROOT) -> float | None:
    """How many CPUs' worth of time may be used, for example 1.5; None without a limit."""
    quota, period = _read(root / "cpu.max"), ""
    if quota:
        quota, _, period = quota.partition(" ")
    else:
        quota, period = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # no limit is "max", or -1 in version 1
    return int(quota) / int(period)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """How many bytes of memory may be used; None without a limit."""
    limit = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    if not limit.isdigit() or int(limit) >= UNLIMITED_BYTES:
        return None
    return int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
