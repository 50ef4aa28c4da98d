"""The inputs of MoE layers that a calibration sampled."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sglang_moe_opt.pruning.statistics import INPUTS_FILE, input_name


def sampled_inputs(statistics: Path, layer_id: int, at_most: int | None = None) -> Tensor:
    """Inputs float32 [N, H] of a layer's experts from a calibration's folder, the first `at_most` of them.

    Raises ValueError, one line that begins with the file, where there are none.
    """
    from safetensors import SafetensorError, safe_open

    file = statistics / INPUTS_FILE
    try:
        with safe_open(file, framework="pt") as tensors:
            inputs: Tensor = tensors.get_slice(input_name(layer_id))[:at_most]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: {error}; moe-opt calibrate --sample writes it") from None
    if not len(inputs):
        raise ValueError(f"{file}: no inputs of layer {layer_id}; calibrate with --sample")
    return inputs.float()
