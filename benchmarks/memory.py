"""What a node weighs that serves a model of 1 MB, and what it costs while nothing happens. Linux only.

    python -m benchmarks.memory [--seconds 10]

PSS is the process's own memory and its share of what it shares. CPU is user and system time of all its threads.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

from benchmarks.small_model import running_node, write_model

GOAL_MB = 140
GOAL_PERCENT = 1.0
SETTLE_S = 2.0


def pss_mb(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match
    return int(match[1]) / 1000


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model")
        with running_node(Path(scratch) / "node") as (node, _):
            time.sleep(SETTLE_S)
            before, start = cpu_s(node.pid), time.perf_counter()
            time.sleep(seconds)
            percent = 100 * (cpu_s(node.pid) - before) / (time.perf_counter() - start)
            weight = pss_mb(node.pid)
    print("| | measured | goal |")
    print("|---|---|---|")
    print(f"| PSS after the first answer | {weight:.0f} MB | {GOAL_MB} MB |")
    print(f"| CPU of the idle node over {seconds:.0f} s | {percent:.1f} % of a core | {GOAL_PERCENT:.0f} % |")


if __name__ == "__main__":
    main()
