"""Locks under which DeepSpeed's C++ is compiled, once, into torch's extension folder. A process that is killed while it
does that leaves its lock, and every later one waits for it for ever, without a word (torch/utils/file_baton.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

QUIET_SECONDS = 600.0  # for which nothing was compiled: another machine, whose processes are not seen, may share it


def there(environ: Mapping[str, str]) -> frozenset[Path]:
    """Those of this Python (torch/utils/cpp_extension.py, `_get_build_directory`)."""
    if given := environ.get("TORCH_EXTENSIONS_DIR"):
        return frozenset(Path(given).glob("deepspeed_*/lock"))
    cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or Path.home(), ".cache"))
    version = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_*"
    return frozenset(Path(cache, "torch_extensions").glob(f"{version}/deepspeed_*/lock"))


def held(lock: Path) -> bool:
    """Whether a process of this machine has it open, as the one that compiles does."""
    real = lock.resolve()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == real:
                return True
        except OSError:
            continue
    return False


def left(environ: Mapping[str, str]) -> list[Path]:
    """Those that nobody will release."""
    limit = time.time() - QUIET_SECONDS
    return sorted(lock for lock in there(environ) if _newest(lock.parent) < limit and not held(lock))


def _newest(folder: Path) -> float:
    """When something in it was written last."""
    try:
        return max((path.lstat().st_mtime for path in folder.iterdir()), default=0.0)
    except OSError:  # something of it is gone meanwhile
        return time.time()
