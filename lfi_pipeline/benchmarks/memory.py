"""Resident memory of this process.

On Linux from /proc, since `getrusage` there hands a process the peak of the one that started it.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path


def peak_rss() -> int:
    """Bytes of the largest resident set so far, or since `reset_peak`."""
    return _status("VmHWM") or _ru_maxrss()


def rss() -> int:
    """Bytes of the resident set now, where the system tells (Linux); else the peak so far."""
    return _status("VmRSS") or _ru_maxrss()


def reset_peak() -> None:
    """Let the peak start from the resident set of now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _ru_maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
