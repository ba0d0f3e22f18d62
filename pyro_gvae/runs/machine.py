"""Describe what makes a run, for its config.json: processor and cores, the time, and the commit of the package."""

import json
import os
import platform
import subprocess
from datetime import datetime
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

PACKAGE = "pyro-gvae"
#: Where Linux names the processor.
CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Return the processor's name and the number of cores that this process may use."""
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {"processor": processor(), "cores": len(own)}


def processor() -> str:
    """Return the name of the processor, or of its architecture if the system does not tell more."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()


def now() -> str:
    """Return the local time with its distance from UTC, such as 2026-03-01T14:05:00+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@cache
def commit() -> str | None:
    """Return the commit of the package: that of its checkout, or the one that pip installed; None if unknown."""
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        return _commit_in(checkout)
    source = distribution(PACKAGE).read_text("direct_url.json")
    found = json.loads(source).get("vcs_info", {}).get("commit_id") if source else None
    return found if isinstance(found, str) else None


def _commit_in(checkout: Path) -> str | None:
    """Ask git for the commit; "-dirty" follows it if files differ from it."""
    words = ["git", "-C", str(checkout), "describe", "--always", "--exclude=*", "--abbrev=9", "--dirty"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
    except OSError:  # there is no git
        return None
    return done.stdout.strip() or None
