"""What a child process may use, and what it gets to see of the node's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

_PASSED = {"HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TZ", "VIRTUAL_ENV"}
_FAMILIES = ("CUDA_", "KMP_", "LC_", "MKL_", "NVIDIA_", "OMP_", "OPENBLAS_", "ORT_", "PYTORCH_", "TORCH_")


class Limits(Struct, frozen=True, kw_only=True):
    """What a child may use at most; `None` is no limit of its own. Its children inherit them.

    Attributes:
        memory: Bytes of private memory of each of its processes, the heap and the stacks of threads (RLIMIT_DATA): what
            a GPU's driver merely reserves does not count.
        files: Files open at a time in each process.
        processes: Processes and threads at a time of this user on this machine, not only the child's (RLIMIT_NPROC).
        cpu_s: Seconds of computing of each process.
        file_bytes: The size of a file that it writes.
    """

    memory: int | None = None
    files: int | None = 65_536
    processes: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None

    def as_resources(self) -> dict[str, int]:
        """The same by the names of getrlimit(2)."""
        named = {
            "RLIMIT_DATA": self.memory,
            "RLIMIT_NOFILE": self.files,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_FSIZE": self.file_bytes,
        }
        return {name: value for name, value in named.items() if value is not None}


def environment(given: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """What a child sees: the few variables of ours that programs need to run at all, and what is given.

    Args:
        given: More variables; they win.
        temporary: The child's own temporary folder.
    """
    passed = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith(_FAMILIES)}
    return {"PATH": os.defpath, **passed, "TMPDIR": str(temporary), **given}
