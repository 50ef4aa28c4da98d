"""The options `--hardware`, `--tp` and `--ep`: the devices that the cost model predicts for."""

from __future__ import annotations

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.hardware import Hardware, find_hardware
from sglang_moe_opt.perfmodel.parallel import Parallelism


def find_devices(hardware: str, tp: int, ep: int = 1) -> tuple[Hardware, Parallelism]:
    """The device and how a model is split over `tp` of them. Raises FieldError."""
    device = find_hardware(hardware)
    if tp > 1 and device.link_bytes_s is None:
        raise FieldError("--tp", tp, f"1: {device.name} stands alone")
    return device, Parallelism(tp, ep)
