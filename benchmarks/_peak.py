"""Runs a module as `python -m` does, then prints the most memory that the process held, in bytes.

    python benchmarks/_peak.py faststy stylize photo.jpg -o painted.jpg

Where it used a CUDA device, the memory of that. Told by the process itself: what the system tells
its parent (ru_maxrss) is never less than what the parent held when it started the process.
"""

import contextlib
import os
import resource
import runpy
import sys
from pathlib import Path


def peak() -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    print(peak())
