"""Where SGLang is hooked in a calibrating server, and what it refuses there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from sglang_moe_opt.engine.calibration import CALIBRATE_ENV
from sglang_moe_opt.engine.calibration.recorder import Recorder
from sglang_moe_opt.engine.hooks import Hook, verify_applied
from sglang_moe_opt.engine.setup import model_shape
from sglang_moe_opt.engine.unsupported import ServerFields
from sglang_moe_opt.model_shape import MoEShape

logger = logging.getLogger(__name__)

HOOKS = (
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.load_model",
        "AFTER",
        "calibration.hooks:after_load_model",
        "begin recording",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.DeepseekV2MoE.forward",
        "AROUND",
        "calibration.hooks:moe_forward",
        "know the layer's batch and residual stream where its experts run",
    ),
    Hook(
        "sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE.forward",
        "BEFORE",
        "calibration.hooks:experts_forward",
        "record what goes into the experts",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.expert_distribution_handle",
        "AROUND",
        "calibration.hooks:expert_distribution_handle",
        "write what was recorded when the client asks for it",
    ),
)

_ONE: ServerFields = ("tp_size", "pp_size", "ep_size", "dp_size", "attn_cp_size")
_OFF: ServerFields = ("enable_two_batch_overlap", "speculative_algorithm", "enable_eplb", "enable_lora")

_recorder: Recorder | None = None
_layer: tuple[Any, Any] | None = None
"""The MoE module that runs now, and its forward batch."""


def after_load_model(result: None, runner: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``ModelRunner.load_model``."""
    global _recorder
    verify_applied(HOOKS)
    shape = model_shape(runner.model_config)
    if reason := obstacle(runner.server_args, runner.model, shape):
        raise RuntimeError(f"sglang-moe-opt: calibration needs {reason}")
    _recorder = Recorder(Path(os.environ[CALIBRATE_ENV]), shape, runner.device)
    logger.info("sglang-moe-opt: calibrating %d MoE layers of %d experts", shape.num_moe_layers, shape.num_experts)


def moe_forward(original: Callable[..., Any], moe: Any, hidden_states: Tensor, forward_batch: Any = None, *args, **kw):
    """AROUND ``DeepseekV2MoE.forward``."""
    global _layer
    _layer = (moe, forward_batch)
    try:
        return original(moe, hidden_states, forward_batch, *args, **kw)
    finally:
        _layer = None


def experts_forward(experts: Any, hidden_states: Tensor, topk_output: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE ``FusedMoE.forward``: the experts may write into their input."""
    if _recorder is not None and _layer is not None and _layer[1] is not None:
        _recorder.record(*_layer, hidden_states, topk_output.topk_ids, topk_output.topk_weights)


def expert_distribution_handle(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    """AROUND ``Scheduler.expert_distribution_handle``: a dump is ours, upstream's own recorder is not used."""
    from sglang.srt.managers.io_struct import ExpertDistributionReqOutput, ExpertDistributionReqType

    if _recorder is None or recv_req.action != ExpertDistributionReqType.DUMP_RECORD:
        return original(scheduler, recv_req)
    _recorder.dump()
    return ExpertDistributionReqOutput()


def obstacle(server_args: Any, model: Any, shape: MoEShape) -> str | None:
    """What to change for the statistics to be exact; None where they are.

    Args:
        server_args: SGLang's.
        model: the loaded model.
        shape: what its config says.
    """
    for name in _ONE:
        if (value := getattr(server_args, name, None)) not in (None, 1):
            return f"one process: set --{name.replace('_', '-')} 1, not {value}"
    for name in _OFF:
        if value := getattr(server_args, name, None):
            return f"--{name.replace('_', '-')} off, not {value}"
    if not server_args.disable_radix_cache:
        return "every prompt token computed: set --disable-radix-cache"
    layers = {layer.layer_id: layer.mlp for layer in getattr(model.model, "layers", ()) if hasattr(layer, "mlp")}
    for layer_id in shape.moe_layer_ids:
        if reason := _unknown_layer(layers.get(layer_id), shape.num_experts):
            return f"{reason} in layer {layer_id}"
    return None


def _unknown_layer(moe: Any, num_experts: int) -> str | None:
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
    from sglang.srt.models.deepseek_v2 import DeepseekV2MoE

    if type(moe) is not DeepseekV2MoE or type(moe.experts) is not FusedMoE:
        return "SGLang's DeepseekV2MoE with its FusedMoE"
    experts, config = moe.experts, moe.experts.moe_runner_config
    if type(experts.quant_method) is not UnquantizedFusedMoEMethod:
        return f"unquantised experts, not {type(experts.quant_method).__name__},"
    biases = [getattr(experts, f"{name}_weight_bias", None) for name in ("w13", "w2")]
    variants = [*biases, config.gemm1_alpha, config.gemm1_clamp_limit, config.swiglu_limit]
    variants += [experts.quant_method.w13_swiglu_interleaved or None, config.apply_router_weight_on_input or None]
    if config.activation != "silu" or any(variant is not None for variant in variants):
        return "plain SwiGLU experts"
    expected = (moe.config.hidden_size, moe.config.moe_intermediate_size)
    if experts.w2_weight.shape[1:] != expected or experts.w13_weight.shape[1:] != (2 * expected[1], expected[0]):
        return f"experts as the checkpoint has them, not of shape {list(experts.w2_weight.shape)},"
    return None if moe.config.n_routed_experts == num_experts else f"{num_experts} experts"
