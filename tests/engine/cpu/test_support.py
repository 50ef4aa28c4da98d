"""What lets the CUDA wheel serve DeepSeek models where there is no accelerator."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from sglang_moe_opt.engine.cpu import support

base = pytest.importorskip("sglang.srt.layers.rotary_embedding.base")
factory = pytest.importorskip("sglang.srt.layers.rotary_embedding.factory")


def test_a_machine_with_an_accelerator_is_no_plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    uncached = support.is_plain_cpu.__wrapped__
    monkeypatch.setattr("sglang.srt.utils.is_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert uncached()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not uncached()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sglang.srt.utils.is_cpu", lambda: True)  # upstream's own CPU engine
    assert not uncached()


@pytest.mark.parametrize("fails", [False, True])
def test_the_module_flag_is_set_for_one_constructor_only(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    monkeypatch.setattr(base, "_is_cpu", False)
    seen: list[Any] = []

    def original(*args: Any, **kwargs: Any) -> None:
        seen.append((base._is_cpu, args, kwargs))
        if fails:
            raise ValueError("bad rotary size")

    if fails:
        with pytest.raises(ValueError, match="bad rotary size"):
            support.rotary_init(original, 1, b=2)
    else:
        support.rotary_init(original, 1, b=2)
    assert seen == [(True, (1,), {"b": 2})]
    assert base._is_cpu is False


def test_a_model_without_rope_scaling_gets_the_generic_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_factory(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return args, kwargs

    monkeypatch.setattr(factory, "get_rope", lambda *args, **kwargs: ("generic", args, kwargs))
    sizes = (64, 64, 4096, 10000, False)
    generic = support.rope_wrapper(cpu_factory, *sizes, rope_scaling=None, device="cpu")
    assert generic == ("generic", sizes, {"rope_scaling": None})
    yarn = {"rope_type": "deepseek_yarn"}
    assert support.rope_wrapper(cpu_factory, *sizes, rope_scaling=yarn, device="cpu") == (
        sizes,
        {"rope_scaling": yarn, "device": "cpu"},
    )


def test_the_generic_embedding_is_built_and_turns_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    original = base.RotaryEmbedding.__init__
    monkeypatch.setattr(
        base.RotaryEmbedding, "__init__", lambda self, *args, **kwargs: support.rotary_init(original, self, *args)
    )
    rope = base.RotaryEmbedding(16, 16, 32, 10000, False, torch.float32)
    query, key = torch.randn(2, 3, 4 * 16)
    turned, _ = rope.forward_native(torch.tensor([0, 1, 2]), query.clone(), key.clone())
    torch.testing.assert_close(turned[0], query[0])
    torch.testing.assert_close(turned.norm(dim=-1), query.norm(dim=-1))
    assert not torch.allclose(turned[1], query[1])


def test_the_hooks_and_the_attention_path_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = pytest.importorskip("sglang.srt.models.deepseek_common.attention_backend_handler")
    methods = pytest.importorskip("sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods")
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(
        handlers.AttentionBackendRegistry, "_handlers", dict(handlers.AttentionBackendRegistry._handlers)
    )
    support.register_cpu_hooks()
    assert set(HookRegistry._hooks) == {hook.target for hook in support.HOOKS}
    handler = handlers.AttentionBackendRegistry.get_handler("torch_native")
    assert handler(None, None) == methods.AttnForwardMethod.MLA


def test_ranks_get_no_communicator_made_for_cuda() -> None:
    state = pytest.importorskip("sglang.srt.distributed.parallel_state")
    given = {"group_ranks": [[0, 1]], "use_pynccl": True, "group_name": "tp"}
    args, kwargs = support.plain_group(1, **given)
    assert args == (1,)
    assert kwargs["group_name"] == "tp"
    switches = {name for name, value in kwargs.items() if value is False}
    assert switches == {"use_pynccl", "use_custom_allreduce", "use_mscclpp", "use_torch_symm_mem_allreduce"}
    assert switches <= set(inspect.signature(state.init_model_parallel_group).parameters)
