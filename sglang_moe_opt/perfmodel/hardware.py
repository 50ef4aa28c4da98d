"""What a device can do at best: presets from data sheets, a JSON file of one's own, or this machine as it was measured.

Figures are dense (no sparsity), of one device, from the makers' data sheets:
Memory is what the driver reports (nvidia-smi, MiB), which is more than the round GB of the sheets.
A800 80GB PCIe: NVIDIA A100/A800 data sheet (HBM2e 1,935 GB/s, 312 TFLOP/s bf16, no fp8; PCIe 4.0 x16, 32 GB/s a way).
H100 SXM: NVIDIA H100 data sheet (HBM3 3.35 TB/s, 989 TFLOP/s bf16, 1,979 fp8; NVLink 4, 450 GB/s a way).
H200 SXM: NVIDIA H200 data sheet (HBM3e 4.8 TB/s, the rest as H100).
B200: NVIDIA HGX B200 data sheet, an eighth of the board (HBM3e 8 TB/s, 2.25 PFLOP/s bf16, 4.5 fp8; NVLink 5,
900 GB/s a way).
Between nodes: one 400 Gbit/s adapter for each GPU, 50 GB/s. Latencies are those of a small all-reduce between two
devices, typical of NCCL or a custom kernel: 12 us over PCIe, 4 us over NVLink, 20 us between nodes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from sglang_moe_opt.fields import FieldError, check_keys, is_int, is_number
from sglang_moe_opt.files import read_json, write_atomically

Kind = Literal["gpu", "cpu"]
THIS: Final = "this"
MIB: Final = 2.0**20


def _check_positive(name: str, value: object) -> None:
    if not is_number(value) or value <= 0:
        raise FieldError(f"hardware.{name}", value, "a number above 0")


@dataclass(frozen=True)
class Hardware:
    """Ceilings of one device. Raises FieldError where a figure is not a positive number.

    Attributes:
        kind: gpu or cpu: which parameters say how much of the ceilings an engine reaches.
        bandwidth_bytes_s: read bandwidth of its memory.
        flops_s, fp8_flops_s: dense operations per second in bf16 and in fp8; None where it has no fp8.
        memory_bytes: of its memory.
        link_bytes_s, link_latency_s: to another device of the node, each way; None where it stands alone.
        node_devices: devices that share that link.
        network_bytes_s, network_latency_s: to devices of other nodes.
    """

    name: str
    kind: Kind
    bandwidth_bytes_s: float
    flops_s: float
    memory_bytes: float
    fp8_flops_s: float | None = None
    link_bytes_s: float | None = None
    link_latency_s: float = 0.0
    node_devices: int = 8
    network_bytes_s: float = 50e9
    network_latency_s: float = 20e-6

    def __post_init__(self) -> None:
        if self.kind not in ("gpu", "cpu"):
            raise FieldError("hardware.kind", self.kind, "gpu, cpu")
        for name in ("bandwidth_bytes_s", "flops_s", "memory_bytes", "network_bytes_s"):
            _check_positive(name, getattr(self, name))
        for name in ("fp8_flops_s", "link_bytes_s"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        for name in ("link_latency_s", "network_latency_s"):
            if not is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise FieldError(f"hardware.{name}", getattr(self, name), "seconds from 0")
        if not is_int(self.node_devices) or self.node_devices < 1:
            raise FieldError("hardware.node_devices", self.node_devices, "an integer from 1")

    def peak_flops_s(self, bytes_per_param: float) -> float:
        """Operations per second on weights of this width: fp8's where it has them, else bf16's."""
        return self.fp8_flops_s if bytes_per_param == 1 and self.fp8_flops_s else self.flops_s

    def with_ceilings(self, bandwidth_bytes_s: float, flops_s: float) -> Hardware:
        """The same device as it was measured at another time."""
        return replace(self, bandwidth_bytes_s=bandwidth_bytes_s, flops_s=flops_s)


PRESETS: Final[dict[str, Hardware]] = {
    hardware.name: hardware
    for hardware in (
        Hardware("a800-pcie", "gpu", 1.935e12, 312e12, 81_920 * MIB, None, 32e9, 12e-6),
        Hardware("h100", "gpu", 3.35e12, 989e12, 81_559 * MIB, 1979e12, 450e9, 4e-6),
        Hardware("h200", "gpu", 4.8e12, 989e12, 143_771 * MIB, 1979e12, 450e9, 4e-6),
        Hardware("b200", "gpu", 8.0e12, 2250e12, 183_359 * MIB, 4500e12, 900e9, 4e-6),
    )
}


def find_hardware(name: str) -> Hardware:
    """A preset, `this` machine as calibrated, or a JSON file with the fields of `Hardware`. Raises FieldError."""
    if name in PRESETS:
        return PRESETS[name]
    if name == THIS:
        return _read(this_file(), "run moe-opt predict --calibrate-this-machine first")
    if name.endswith(".json"):
        return _read(Path(name), "a JSON file with the fields of a hardware")
    raise FieldError("--hardware", name, f"{', '.join(PRESETS)}, {THIS}, or a .json file")


def this_file() -> Path:
    """Where the calibration of this machine is kept: hardware/this.json in the cache folder."""
    base = os.environ.get("SGLANG_MOE_OPT_CACHE") or "~/.cache/sglang-moe-opt"
    return Path(base).expanduser() / "hardware" / "this.json"


def save(hardware: Hardware, path: Path) -> None:
    """Write a hardware as JSON. Raises OSError."""
    write_atomically(path, json.dumps(asdict(hardware), indent=2) + "\n")


def _read(path: Path, allowed: str) -> Hardware:
    if not path.is_file():
        raise FieldError("--hardware", str(path), allowed)
    content: Any = read_json(path, "--hardware")
    names = [field.name for field in fields(Hardware)]
    if not isinstance(content, dict):
        raise FieldError("--hardware", content, "an object with the keys " + ", ".join(names))
    check_keys(content, "--hardware", names)
    needed = ("kind", "bandwidth_bytes_s", "flops_s", "memory_bytes")
    for name in needed:
        if name not in content:
            raise FieldError(f"hardware.{name}", None, "a value: it is required")
    return Hardware(**{"name": path.stem, **content})
