"""What the machine has that makes models fast: its processor's features, its cores, its GPUs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from smallfirst.records import Record

CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_bf16": "AVX512-BF16",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimddp": "NEON-DOTPROD",
    "bf16": "NEON-BF16",
    "i8mm": "NEON-I8MM",
}
"""What speeds up a model, by the name in /proc/cpuinfo."""


class Hardware(Record):
    """What engines may use of this machine."""

    processor: str = ""
    """Its name."""
    cores: int = 1
    """Cores that this process may use."""
    features: tuple[str, ...] = ()
    """Of FEATURES those that it has."""
    gpus: int = 0
    """CUDA GPUs that this process may use."""


def detect_hardware(cpuinfo: Path = Path("/proc/cpuinfo"), devices: Path = Path("/dev")) -> Hardware:
    """What the system says of itself; features are known on Linux only."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "-").strip() in ("", "-1")
    return Hardware(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=cores,
        features=tuple(shown for flag, shown in CPU_FEATURES.items() if flag in flags),
        gpus=0 if hidden else len(list(devices.glob("nvidia[0-9]*"))),
    )
