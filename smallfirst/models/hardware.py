"""The hardware that makes models fast: processor features, cores and GPUs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from smallfirst.base.records import Record

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
"""Features that speed up models, by their flags in /proc/cpuinfo."""


class Hardware(Record):
    """The parts of this machine that engines may use."""

    processor: str = ""
    """Model name."""
    cores: int = 1
    """Cores that this process may use."""
    features: tuple[str, ...] = ()
    """Those of CPU_FEATURES that it has; known on Linux only."""
    gpus: int = 0
    """CUDA GPUs that this process may use."""


def detect_hardware(cpuinfo: Path = Path("/proc/cpuinfo"), devices: Path = Path("/dev")) -> Hardware:
    """Return what the operating system reports."""
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "-").strip() in ("", "-1")
    return Hardware(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=cores,
        features=tuple(name for flag, name in CPU_FEATURES.items() if flag in flags),
        gpus=0 if gpus_hidden else len(list(devices.glob("nvidia[0-9]*"))),
    )
