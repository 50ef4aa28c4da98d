"""Where SGLang is hooked on a plain CPU: what it lacks to serve DeepSeek there, and the layers on our kernels."""

from __future__ import annotations

from sglang_moe_opt.engine.hooks import Hook

HOOKS = (
    Hook(
        "sglang.srt.layers.rotary_embedding.base.RotaryEmbedding.__init__",
        "AROUND",
        "cpu.support:rotary_init",
        "build rotary embeddings without vllm's CUDA kernel",
    ),
    Hook(
        "sglang.srt.layers.rotary_embedding.factory.get_rope_wrapper",
        "AROUND",
        "cpu.support:rope_wrapper",
        "serve models without rope scaling",
    ),
    Hook(
        "sglang.srt.distributed.parallel_state.init_model_parallel_group",
        "BEFORE",
        "cpu.support:plain_group",
        "let tensor-parallel ranks talk through gloo",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.DeepseekV2ForCausalLM.load_weights",
        "AFTER",
        "cpu.decoder:after_load_weights",
        "forget the addresses of weights that were replaced",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.load_model",
        "AFTER",
        "cpu.support:build_kernels",
        "compile the kernels while the server starts",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.DeepseekV2Model.forward",
        "AROUND",
        "cpu.decoder:model_forward",
        "all layers in one call",
    ),
    Hook(
        "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply",
        "AROUND",
        "cpu.layers:linear_apply",
        "projections on our kernel",
    ),
    Hook(
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head",
        "AROUND",
        "cpu.layers:compute_lm_head",
        "the language-model head on our kernel",
    ),
    Hook(
        "sglang.srt.models.deepseek_v2.MoEGate.forward",
        "AROUND",
        "cpu.layers:gate_forward",
        "router logits in float32",
    ),
    Hook(
        "sglang.srt.layers.layernorm.RMSNorm.forward_native",
        "AROUND",
        "cpu.layers:rms_norm",
        "norms on our kernel",
    ),
    Hook(
        "sglang.srt.layers.activation.SiluAndMul.forward_native",
        "AROUND",
        "cpu.layers:silu_and_mul",
        "the activation on our kernel",
    ),
    Hook(
        "sglang.srt.layers.moe.topk.grouped_topk",
        "AROUND",
        "cpu.router:grouped_topk",
        "DeepSeek-V2's router on our kernel",
    ),
    Hook(
        "sglang.srt.layers.moe.topk.biased_grouped_topk",
        "AROUND",
        "cpu.router:biased_grouped_topk",
        "DeepSeek-V3's router on our kernel",
    ),
    Hook(
        "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla"
        ".DeepseekMLAForwardMixin.forward_absorb_prepare",
        "AROUND",
        "cpu.attention:absorb_prepare",
        "attention's projections and cache on our kernels",
    ),
    Hook(
        "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla"
        ".DeepseekMLAForwardMixin.forward_absorb_core",
        "AROUND",
        "cpu.attention:absorb_core",
        "attention on our kernel",
    ),
)
