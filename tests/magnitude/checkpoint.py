"""A small checkpoint with a calibration's sampled inputs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.pruning.corpus import Corpus
from sglang_moe_opt.pruning.statistics import CORPUS_FILE, INPUTS_FILE, input_name
from tests.pruning.evidence import make_statistics
from tests.pruning.export_models import MODELS, make_model

TOKENS = 60


def make_calibrated(folder: Path, router: str, **changed: Any) -> Path:
    """A model with two MoE layers and top-3 in `folder/model`; its statistics are in `folder/statistics`."""
    model = make_model(folder / "model", MODELS[router] | {"num_experts_per_tok": 3} | changed)
    shape = MoEShape.from_path(model)
    make_statistics(shape).save(folder / "statistics")
    generator = torch.Generator().manual_seed(3)
    inputs = {input_name(one): torch.randn(TOKENS, 16, generator=generator) for one in shape.moe_layer_ids}
    save_file(inputs, folder / "statistics" / INPUTS_FILE)
    pieces = tuple(np.arange(length, dtype=np.int32) for length in (10, 20, 30))
    Corpus(pieces).save(folder / "statistics" / CORPUS_FILE)
    return model
