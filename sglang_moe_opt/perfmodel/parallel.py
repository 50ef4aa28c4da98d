"""How a model is split over devices, what they say to each other, and how uneven experts make their load."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from sglang_moe_opt.fields import FieldError, is_int
from sglang_moe_opt.perfmodel.hardware import Hardware


@dataclass(frozen=True)
class Parallelism:
    """`tp` devices share every layer. With `ep` > 1 they form that many groups that hold whole experts: each expert is
    then split over tp / ep devices, and tokens travel to their experts and back (all-to-all). Raises FieldError."""

    tp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "ep"):
            if not is_int(value := getattr(self, name)) or not 1 <= value <= 1024:
                raise FieldError(f"--{name}", value, "an integer from 1 to 1024")
        if self.tp % self.ep:
            raise FieldError("--ep", self.ep, f"a divisor of --tp, {self.tp}")

    @property
    def expert_shards(self) -> int:
        """Devices that share one expert."""
        return self.tp // self.ep


def largest_of(groups: int, mean: float, variance: float, most: float) -> float:
    """Expected load of the fullest of `groups` groups: normal order statistics (Blom, 1958), at most `most`."""
    if groups == 1:
        return mean
    above = NormalDist().inv_cdf((groups - 0.375) / (groups + 0.25))
    return min(mean + above * math.sqrt(variance), max(most, mean))


def all_reduce_s(hardware: Hardware, devices: int, message_bytes: float, efficiency: float) -> float:
    """Time of a ring all-reduce: 2 (d - 1) / d of the message over each link; latency grows with log2 d."""
    return _transfer_s(hardware, devices, 2 * message_bytes * (devices - 1) / devices, efficiency)


def gather_s(hardware: Hardware, devices: int, message_bytes: float, efficiency: float) -> float:
    """Time in which every device gets the whole message, of which each had its share."""
    return _transfer_s(hardware, devices, message_bytes * (devices - 1) / devices, efficiency)


def all_to_all_s(hardware: Hardware, devices: int, sent_bytes: float, efficiency: float) -> float:
    """Time in which every device sends `sent_bytes` to others."""
    return _transfer_s(hardware, devices, sent_bytes, efficiency)


def _transfer_s(hardware: Hardware, devices: int, link_bytes: float, efficiency: float) -> float:
    if devices == 1:
        return 0.0
    if hardware.link_bytes_s is None:
        raise FieldError("--tp", devices, f"1: {hardware.name} stands alone")
    inside = devices <= hardware.node_devices
    speed = hardware.link_bytes_s if inside else hardware.network_bytes_s
    latency = hardware.link_latency_s if inside else hardware.network_latency_s
    return latency * math.log2(devices) + link_bytes / (speed * efficiency)
