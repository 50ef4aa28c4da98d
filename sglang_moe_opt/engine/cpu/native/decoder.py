"""All decoder layers of a DeepSeek model in one call, and the C structs that it takes. Tensors go in by address."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sglang_moe_opt.engine.cpu import native

_LONG, _POINTER, _FLOAT, _INT = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_int32
_DROP = ctypes.CFUNCTYPE(None, ctypes.c_int64)


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Mla(ctypes.Structure):
    """One layer's attention: sizes in elements, and addresses of contiguous tensors of the model's dtype.

    ``kv_a`` [q_rank + rank + rope, hidden]: with a low-rank query (``q_rank`` > 0) its first rows are ``q_a_proj``.
    ``q`` [heads x (nope + rope), hidden or q_rank]; ``keys`` [heads, rank, nope]; ``values`` [heads, value, rank];
    ``output`` [hidden, heads x value]; ``angles`` float32 [positions, rope]; ``cache`` [slots, rank + rope].
    """

    _fields_ = [
        *_fields(_LONG, "hidden heads q_rank rank nope rope value"),
        *_fields(_POINTER, "input_norm kv_a q_a_norm q kv_a_norm keys values output post_norm angles cache"),
        *_fields(_FLOAT, "epsilon latent_epsilon scale"),
        *_fields(_INT, "interleaved"),
    ]


class Moe(ctypes.Structure):
    """One layer's router and experts, as :func:`native.route` and :func:`native.experts` have them.

    ``shared`` is the width of the shared experts together, 0 without; ``scale`` is applied to the routed sum.
    ``slots`` int32 [experts]: where each of the router's experts lies in ``w13`` and ``w2``, -1 = nowhere, and it is
    not chosen; null where that is its id.
    """

    _fields_ = [
        *_fields(_LONG, "hidden inner shared experts groups kept_groups"),
        *_fields(_POINTER, "gate w13 w2 shared_gate_up shared_down bias slots"),
        *_fields(_FLOAT, "scale"),
        *_fields(_INT, "sigmoid renormalize"),
    ]


class Layer(ctypes.Structure):
    """A decoder layer; ``gate_up`` [2 x inner, hidden] and ``down`` [hidden, inner] where its MLP is dense."""

    _fields_ = [("mla", Mla), ("moe", Moe), *_fields(_POINTER, "gate_up down"), ("inner", _LONG)]


class Batch(ctypes.Structure):
    """A step's tokens; see :func:`native.mla_attention` and :func:`native.mla_rope` for the tensors."""

    _fields_ = [
        *_fields(_LONG, "tokens sequences"),
        *_fields(_POINTER, "positions cache_slots pool_rows lengths query_lengths slots"),
        *_fields(_LONG, "slots_row"),
    ]


class _Routing(ctypes.Structure):
    _fields_ = [*_fields(_POINTER, "top_k logits weights ids"), ("drop", _DROP)]


Drop = Callable[[int, Tensor, Tensor, Tensor], None]
"""(layer, weights float32 [tokens, k], ids int32 [tokens, k], router logits float32 [tokens, experts])"""


class Decoder:
    """The layers of a model; whoever makes it keeps the tensors alive that the structs point to."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = (Layer * len(layers))(*layers)
        self._experts = [layer.moe.experts for layer in layers]

    def run(self, batch: Batch, hidden: Tensor, residual: Tensor, top_k: Sequence[int], drop: Drop | None) -> None:
        """Run the layers in place.

        Args:
            hidden: [tokens, n]: the embedding; then the last layer's output, still to be added to ``residual``.
            residual: [tokens, n], zeros.
            top_k: experts to route to, by layer; 0 where it is dense.
            drop: may change weights, and ids to -1, in place before a layer's experts run; what it raises is raised
                here, once the layers are through.
        """
        tokens = hidden.shape[0]
        logits, weights = torch.empty(tokens * max(self._experts)), torch.empty(tokens * max(top_k))
        ids = torch.empty(tokens * max(top_k), dtype=torch.int32)
        errors: list[BaseException] = []

        def drop_in_layer(index: int) -> None:
            widths = ((weights, top_k[index]), (ids, top_k[index]), (logits, self._experts[index]))
            try:
                assert drop is not None
                drop(index, *(flat[: tokens * width].view(tokens, width) for flat, width in widths))
            except BaseException as error:  # ctypes would print it and go on
                errors.append(error)

        counts = (_LONG * len(top_k))(*top_k)
        routing = _Routing(
            ctypes.addressof(counts),
            logits.data_ptr(),
            weights.data_ptr(),
            ids.data_ptr(),
            _DROP() if drop is None else _DROP(drop_in_layer),
        )
        native.functions["decoder"](
            hidden.dtype is torch.bfloat16,
            ctypes.addressof(self._layers),
            len(self._layers),
            ctypes.addressof(batch),
            ctypes.addressof(routing),
            hidden.data_ptr(),
            residual.data_ptr(),
        )
        if errors:
            raise errors[0]
