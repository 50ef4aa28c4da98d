"""CPU kernels as functions of torch tensors: float32 or bfloat16, each output independent of the rest of the batch.

Weights are used as the checkpoint has them: nothing is packed, copied or held twice.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from typing import Any

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu.native.build import BuildError, library

__all__ = [
    "BuildError",
    "experts",
    "head_linear",
    "linear",
    "load",
    "mla_attention",
    "mla_rope",
    "ready",
    "rms_norm",
    "route",
    "silu_and_mul",
    "supports",
]

SWITCH = "SGLANG_MOE_OPT_CPU_KERNELS"
"""Environment variable; 0 = upstream's plain torch path."""

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16)
_SIGNATURES = {  # i: int, l: int64, f: float, p: pointer
    "linear": "iipllpppllllll",
    "experts": "iplppippfpplllll",
    "mla_attention": "ipppplpppllllf",
    "rms_norm": "iplpppllf",
    "silu_and_mul": "ippll",
    "mla_rope": "ipllpplpfpppplllli",
    "route": "ppppllllliif",
    "consolidate": "ppppppppllllillfppp",
    "decoder": "iplpppp",
    "read": "pl",
}
_TYPES = {"i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
functions: dict[str, Any] = {}


@functools.cache
def ready() -> bool:
    """Build and load the kernels on the first call; False, with a warning, where they are off or cannot be built."""
    if os.environ.get(SWITCH, "1") == "0":
        return False
    try:
        load()
    except BuildError as error:
        logger.warning("sglang-moe-opt: CPU kernels are not used (%s): expect a third of their speed", error)
        return False
    return True


def load() -> None:
    """Build and load the kernels.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    for name, signature in _SIGNATURES.items():
        function = getattr(library(), f"moe_opt_{name}")
        function.argtypes = [_TYPES[kind] for kind in signature]
        function.restype = None
        functions[name] = function


def supports(*tensors: Tensor) -> bool:
    """True where all are on the CPU, of one supported dtype, with rows that are contiguous."""
    dtype = tensors[0].dtype
    return dtype in _DTYPES and all(t.dtype == dtype and t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """``x @ weight.T + bias``: x [..., k], weight [n, k] contiguous; ``dtype`` of the result: x's, or float32."""
    rows = x.reshape(-1, x.shape[-1])
    n = weight.shape[0]
    out = torch.empty(rows.shape[0], n, dtype=dtype or x.dtype)
    functions["linear"](
        x.dtype is torch.bfloat16,
        dtype is torch.float32,
        rows.data_ptr(),
        rows.stride(0),
        0,
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        n,
        0,
        1,
        rows.shape[0],
        n,
        rows.shape[1],
    )
    return out if x.dim() == 2 else out.view(*x.shape[:-1], n)


def head_linear(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """``out[t, h] = x[t, h] @ weight[h].T``: x [tokens, heads, k], weight [heads, n, k] contiguous, out [.., n]."""
    heads, n, k = weight.shape
    functions["linear"](
        x.dtype is torch.bfloat16,
        False,
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        weight.data_ptr(),
        None,
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        heads,
        x.shape[0],
        n,
        k,
    )
    return out


def experts(x: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of SwiGLU experts.

    Args:
        x: [tokens, hidden].
        w13: [experts, 2 x inner, hidden] contiguous, gate rows first.
        w2: [experts, hidden, inner] contiguous.
        ids: int32 or int64 [tokens, k], -1 = dropped: costs nothing.
        weights: float32 [tokens, k].

    Returns:
        [tokens, hidden], summed in float32 in the order of the slots.
    """
    n_experts, hidden, inner = w2.shape
    ids, weights = ids.contiguous(), weights.contiguous()
    out = x.new_empty(x.shape)
    functions["experts"](
        x.dtype is torch.bfloat16,
        x.data_ptr(),
        x.stride(0),
        w13.data_ptr(),
        w2.data_ptr(),
        ids.dtype is torch.int64,
        ids.data_ptr(),
        weights.data_ptr(),
        1.0,
        None,
        out.data_ptr(),
        ids.shape[0],
        ids.shape[1],
        hidden,
        inner,
        n_experts,
    )
    return out


def mla_attention(
    q: Tensor,
    cache: Tensor,
    out: Tensor,
    slots: Tensor,
    pool_rows: Tensor,
    lengths: Tensor,
    query_lengths: Tensor | None,
    scale: float,
) -> Tensor:
    """Causal attention of each sequence's last tokens over its cached latents.

    Args:
        q: [tokens, heads, latent + rope] contiguous, the sequences' queries one after the other.
        cache: [slots, latent + rope] contiguous; the first ``latent`` columns are the values too.
        out: [tokens, heads, latent] contiguous, written.
        slots: int32 [pool, longest] contiguous rows: where position t of a request lies in the cache.
        pool_rows, lengths: int64 [batch]: each sequence's row of ``slots``, and its length with the new tokens.
        query_lengths: int64 [batch], new tokens of each sequence; None = 1.
        scale: of the scores.
    """
    functions["mla_attention"](
        q.dtype is torch.bfloat16,
        q.data_ptr(),
        cache.data_ptr(),
        out.data_ptr(),
        slots.data_ptr(),
        slots.stride(0),
        pool_rows.data_ptr(),
        lengths.data_ptr(),
        None if query_lengths is None else query_lengths.data_ptr(),
        lengths.shape[0],
        q.shape[1],
        q.shape[2],
        out.shape[2],
        scale,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None) -> Tensor:
    """Norm of the rows of x [..., n], or of x + residual, which then replaces ``residual`` (contiguous)."""
    rows = x.reshape(-1, x.shape[-1])
    out = x.new_empty(x.shape)
    functions["rms_norm"](
        x.dtype is torch.bfloat16,
        rows.data_ptr(),
        rows.stride(0),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        epsilon,
    )
    return out


def silu_and_mul(x: Tensor) -> Tensor:
    """``silu(gate) * up`` of x [..., 2n] contiguous, gate first."""
    n = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], n)
    functions["silu_and_mul"](x.dtype is torch.bfloat16, x.data_ptr(), out.data_ptr(), out.numel() // n, n)
    return out


def mla_rope(
    q: Tensor,
    q_out: Tensor,
    latent: Tensor,
    weight: Tensor,
    epsilon: float,
    angles: Tensor,
    positions: Tensor,
    cache: Tensor,
    cache_slots: Tensor,
    *,
    interleaved: bool,
) -> None:
    """Rotate the rotary parts of q and of the keys; write q_out's last columns and the tokens' cache entries.

    Args:
        q: [tokens, heads, rope], any strides but the last.
        q_out: [tokens, heads, latent + rope] contiguous; its last ``rope`` columns are written.
        latent: [tokens, latent + rope]: what ``kv_a_proj_with_mqa`` gives, not yet normalised.
        weight: [latent], ``kv_a_layernorm``.
        angles: float32 [positions, rope] contiguous: cosines, then sines.
        positions, cache_slots: int64 [tokens].
        cache: [slots, latent + rope] contiguous, written at ``cache_slots``.
        interleaved: neighbours are rotated together (DeepSeek), not halves (NeoX).
    """
    tokens, heads, rope = q.shape
    functions["mla_rope"](
        q.dtype is torch.bfloat16,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        q_out.data_ptr(),
        latent.data_ptr(),
        latent.stride(0),
        weight.data_ptr(),
        epsilon,
        angles.data_ptr(),
        positions.data_ptr(),
        cache.data_ptr(),
        cache_slots.data_ptr(),
        tokens,
        heads,
        q_out.shape[2] - rope,
        rope,
        interleaved,
    )


def route(
    logits: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    groups: int = 1,
    kept_groups: int = 1,
    scoring: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Weights (float32) and expert ids (int32), both [tokens, k], in falling order of the score that chooses.

    Args:
        logits: float32 [tokens, experts] contiguous.
        bias: float32 [experts]: added to the score for the choice only (DeepSeek-V3).
        groups, kept_groups: only the best groups stay in the choice, by their best expert, or by the sum of their two
            best where there is a bias.
        scoring: ``softmax`` or ``sigmoid``.
        scale: applied to the weights after renormalisation.
    """
    tokens, experts_ = logits.shape
    weights, ids = torch.empty(tokens, k), torch.empty(tokens, k, dtype=torch.int32)
    functions["route"](
        logits.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weights.data_ptr(),
        ids.data_ptr(),
        tokens,
        experts_,
        groups,
        kept_groups,
        k,
        scoring == "sigmoid",
        renormalize,
        scale,
    )
    return weights, ids
