"""What a served model should say: Hugging Face transformers on the same weights, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from checkpoints import MINI_V2, ROOT, SPECIAL_IDS, TRAINED
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

LOGPROB_TOLERANCE = 5e-4
"""fp32 on both sides; the random models' large weights magnify its rounding (1.5e-4 was seen)."""
NEAR_TIE = 2 * LOGPROB_TOLERANCE
"""Where the reference's two best logits are closer than this, either token is right: each may be off by the half."""


Na = int | Sequence[int]
"""Experts per token: one number for all MoE layers, or one for each."""


class Reference:
    """A transformers model whose experts, and their number per token, can be set layer by layer."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        self._gates = [layer.mlp.gate for layer in self.model.model.layers if hasattr(layer.mlp, "gate")]
        self.top_k: int = self._gates[0].top_k

    @contextmanager
    def keeping(self, na: Na) -> Iterator[None]:
        """The model with another top-k: one number, or one per MoE layer."""
        per_layer = [na] * len(self._gates) if isinstance(na, int) else list(na)
        assert len(per_layer) == len(self._gates)
        for gate, value in zip(self._gates, per_layer, strict=True):
            gate.top_k = value
        try:
            yield
        finally:
            for gate in self._gates:
                gate.top_k = self.top_k

    @contextmanager
    def dropping(self, rule: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """The model without the slots that ``rule`` refuses; it sees a token's weights, largest first."""

        def drop(gate: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, ids = output
            weights, order = weights.sort(dim=-1, descending=True)
            return logits, weights * rule(weights), ids.gather(1, order)

        handles = [gate.register_forward_hook(drop) for gate in self._gates]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def pruned(self, kept: Mapping[int, Sequence[int]]) -> Iterator[None]:
        """The model with the router logits of other experts at -inf, by layer id.

        A sigmoid router's choice score is then the bias alone: there the bias becomes -inf as well.
        """
        masks, biases = {}, []
        for layer_id, experts in kept.items():
            gate = self.model.model.layers[layer_id].mlp.gate
            removed = torch.tensor(sorted(set(range(gate.num_experts)) - set(experts)), dtype=torch.long)
            masks[gate.weight.data_ptr()] = removed
            if (bias := getattr(gate, "e_score_correction_bias", None)) is not None:
                biases.append((bias, bias.clone()))
                bias[removed] = float("-inf")
        try:
            with _MaskedLogits(masks):
                yield
        finally:
            for bias, before in biases:
                bias.copy_(before)

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """float32 [len(ids), vocabulary]."""
        result: Tensor = self.model(torch.tensor([ids]), use_cache=False).logits[0].float()
        return result

    @torch.inference_mode()
    def phased_logits(self, ids: list[int], answer: list[int], prefill: Na, decode: Na) -> Tensor:
        """Logits after the prompt and after each token of the answer, each part under its own top-k."""
        with self.keeping(prefill):
            prompt_pass = self.model(torch.tensor([ids]), use_cache=True)
        with self.keeping(decode):
            answer_pass = self.model(torch.tensor([answer]), past_key_values=prompt_pass.past_key_values)
        result: Tensor = torch.cat([prompt_pass.logits[0, -1:], answer_pass.logits[0]]).float()
        return result

    def logprobs(self, ids: list[int]) -> Tensor:
        return self.logits(ids).log_softmax(-1)

    def check_greedy(self, ids: list[int], tokens: list[int]) -> int:
        """Assert that ``tokens`` are this model's greedy continuation; returns how many of them are beyond doubt.

        One forward pass over prompt and answer: if every token is the best one after those before it, the answer is
        what generation token by token gives.
        """
        return check_best(self.logits(ids + tokens[:-1])[len(ids) - 1 :], tokens)

    @torch.inference_mode()
    def greedy(self, ids: list[int], new_tokens: int) -> list[int]:
        """transformers' own generation loop."""
        out = self.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = out[0, len(ids) :].tolist()
        return tokens


class _MaskedLogits(TorchFunctionMode):
    """Puts results of ``F.linear`` at -inf, by the address of the weight that they come from."""

    def __init__(self, masks: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._masks = masks

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is linear and (removed := self._masks.get(args[1].data_ptr())) is not None:
            return result.index_fill(-1, removed, float("-inf"))
        return result


def check_best(logits: Tensor, tokens: list[int]) -> int:
    """Assert that each token is the best of its row or within a near-tie of it; returns how many rows have no tie.

    Each row follows the served tokens, so a tie that rounding decided does not end the comparison.
    """
    best = logits.topk(2).values
    behind = best[:, 0] - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    worst = int(behind.argmax())
    assert behind[worst] < NEAR_TIE, f"token {worst} of {len(tokens)} is {behind[worst]:.1e} behind the best"
    return int((best[:, 0] - best[:, 1] >= NEAR_TIE).sum())


def assert_logprobs(served: list[dict[int, float]], expected: Tensor) -> None:
    """Compare ``Server.prompt_logprobs`` with the reference's rows of the whole prompt, aligned at the end."""
    rows = expected[len(expected) - 1 - len(served) : -1]
    for position, (by_token, row) in enumerate(zip(served, rows, strict=True)):
        tokens = torch.tensor(list(by_token))
        error = (torch.tensor(list(by_token.values())) - row[tokens]).abs().max().item()
        assert error < LOGPROB_TOLERANCE, f"position {position} of {len(served)}: off by {error:.1e}"


@lru_cache(maxsize=4)
def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Reference:
    """The model of a checkpoint, loaded once."""
    return Reference(folder, dtype)


def prompt(model: str, length: int, seed: int = 0) -> list[int]:
    """A prompt of exactly this many tokens: text for the trained models, random tokens for the others."""
    if model in TRAINED:
        ids = _text_ids()
        # Prompts of different lengths share no beginning, else they would share the prefix cache.
        start = (seed * 613 + length * 7) % (len(ids) - length)
        return ids[start : start + length]
    generator = torch.Generator().manual_seed(1000 * seed + length)
    # The borrowed tokenizer has 4096 ids: more could not be turned into text.
    return torch.randint(SPECIAL_IDS, 4096, (length,), generator=generator).tolist()


@lru_cache(maxsize=1)
def _text_ids() -> list[int]:
    from tokenizers import Tokenizer

    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    ids: list[int] = Tokenizer.from_file(str(MINI_V2 / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return ids
