"""The machine that a benchmark measures: its description, and the processor time of all its programs."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil


def surroundings(threads: int | None) -> dict[str, Any]:
    """Return the machine, the date and the versions, without which a figure says little."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads or torch.get_num_threads(),
        "capabilities": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("rungpt", "torch", "transformers")},
        },
    }


def busy_seconds() -> float:
    """Return the processor time of all programs, plus the time that the host of a virtual machine took."""
    times = psutil.cpu_times()._asdict()
    return float(
        sum(seconds for name, seconds in times.items() if name not in ("idle", "iowait", "guest", "guest_nice"))
    )
