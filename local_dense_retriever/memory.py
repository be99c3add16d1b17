"""Measures free memory, so that a file that is too large gives an error message instead of a killed process."""

from pathlib import Path

from local_dense_retriever.errors import InputError

RESERVE_BYTES = 256 << 20  # for queries and results


def available_bytes() -> int | None:
    """The bytes that this process may still allocate in its machine and container; None if Linux does not say."""
    bounds = []
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            bounds.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        cached = sum(
            int(line.split()[1]) for line in _text(group / "memory.stat").splitlines() if line.startswith("file ")
        )
        bounds.append(int(limit) - int(used) + cached)
    return min(bounds, default=None)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raises InputError if fewer bytes than `needed` are free."""
    available = available_bytes()
    if available is not None and needed + RESERVE_BYTES > available:
        raise InputError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are free: {remedy}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
