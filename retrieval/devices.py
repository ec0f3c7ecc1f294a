"""Which device and number format a model runs in, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from retrieval.errors import ModelError


@dataclass(frozen=True)
class Device:
    name: str
    """"cpu", "cuda", "cuda:1" ..."""
    dtype: torch.dtype
    reason: str
    """One sentence for `forelabel doctor`."""


def choose_device(wanted: str = "auto") -> Device:
    """CUDA when torch sees it; bfloat16 where the hardware multiplies it fast, float32 elsewhere.

    A CPU without bfloat16 instructions emulates them: 3.6 times slower than float32 on a Cascade Lake Xeon.

    Raises:
        ModelError: the device asked for is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        because = "CUDA was found" if wanted == "cuda" else "no CUDA device was found"
    else:
        because = "asked for"
    if wanted == "cpu":
        fast = _cpu_bfloat16()
        return (
            Device("cpu", torch.bfloat16, f"cpu ({because}), bfloat16: {fast}")
            if fast
            else Device("cpu", torch.float32, f"cpu ({because}), float32: this CPU has no bfloat16 instructions")
        )
    if wanted.split(":")[0] == "cuda":
        if not torch.cuda.is_available():
            raise ModelError(f"FORELABEL_DEVICE is {wanted!r} but torch sees no CUDA device; use auto or cpu")
        if torch.cuda.is_bf16_supported():
            return Device(wanted, torch.bfloat16, f"{wanted} ({because}), bfloat16: the GPU supports it")
        return Device(wanted, torch.float16, f"{wanted} ({because}), float16: the GPU has no bfloat16")
    raise ModelError(f"FORELABEL_DEVICE is {wanted!r}; use auto, cpu, cuda or cuda:N")


def _cpu_bfloat16() -> str:
    """The instruction set that makes bfloat16 fast on this CPU, or "" when there is none."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512_BF16"), ("bf16", "Arm BF16")):
        if flag in flags:
            return f"this CPU has {name}"
    return ""
