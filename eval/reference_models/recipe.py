"""The recipe: everything that determines a reference model, loaded from one YAML file and validated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

PACKAGE_DIR = Path(__file__).resolve().parent
DEFAULT_DATA_DIR = PACKAGE_DIR.parents[2] / "shared" / "data"
"""Data folder beside the repository (`../shared/data` from its root)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(_Frozen):
    """Architecture; field names are those of the Hugging Face configuration."""

    model_type: Literal["deepseek_v2", "deepseek_v3"]
    vocab_size: int = Field(gt=256)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    first_k_dense_replace: int = Field(ge=0)
    n_routed_experts: int = Field(gt=1)
    num_experts_per_tok: int = Field(gt=0)
    n_shared_experts: int = Field(gt=0)
    moe_intermediate_size: int = Field(gt=0)
    n_group: int = Field(default=1, gt=0)
    topk_group: int = Field(default=1, gt=0)
    q_lora_rank: int | None = Field(default=None, gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    routed_scaling_factor: float = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds n_routed_experts={self.n_routed_experts}"
            )
        if self.n_routed_experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"n_group={self.n_group} must divide n_routed_experts={self.n_routed_experts} and be at least "
                f"topk_group={self.topk_group}"
            )
        if self.topk_group * (self.n_routed_experts // self.n_group) < self.num_experts_per_tok:
            raise ValueError(
                f"topk_group={self.topk_group} groups hold fewer than num_experts_per_tok={self.num_experts_per_tok}"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers={self.num_hidden_layers}"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim} must be even: rope turns pairs of channels")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        return self

    @property
    def qk_head_dim(self) -> int:
        """Width of one query/key head: the part without position and the rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the decoder layers that hold routed experts."""
        return list(range(self.first_k_dense_replace, self.num_hidden_layers))


class DataSpec(_Frozen):
    """The training mix: how many times per epoch each source is seen (fractions are sampled per epoch)."""

    weights: dict[str, float]
    sequence_length: int = Field(default=512, gt=1)
    holdout_every: int = Field(default=20, gt=1, description="of every so many groups of a text corpus, hold out one")
    holdout_every_gloss: int = Field(default=64, gt=1)

    @model_validator(mode="after")
    def _weights_positive(self) -> DataSpec:
        bad = {name: weight for name, weight in self.weights.items() if weight < 0}
        if bad or not any(self.weights.values()):
            raise ValueError(f"weights must be >= 0 and not all zero, got {bad or self.weights}")
        return self


class BalanceSpec(_Frozen):
    """Load balancing of the router."""

    aux_loss_alpha: float = Field(default=0.005, ge=0, description="expert-level balance loss, DeepSeek-V2 eq. 12-14")
    z_loss: float = Field(default=0.0, ge=0, description="weight of mean(logsumexp(router logits)^2)")
    bias_rate: float = Field(default=1e-3, ge=0, description="step of the V3 router's bias, DeepSeek-V3's gamma")


class OptimSpec(_Frozen):
    """Muon for the matrices inside the layers, AdamW for embeddings, head, router and norms."""

    muon_lr: float = Field(default=3e-3, gt=0)
    adam_lr: float = Field(default=3e-3, gt=0)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)


class TrainSpec(_Frozen):
    """Length and rhythm of training, in tokens: a shared machine makes wall-clock schedules meaningless."""

    total_tokens: int = Field(gt=0)
    warmup_tokens: int = Field(ge=0)
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    batch_tokens: int = Field(gt=0)
    eval_every_tokens: int = Field(gt=0)
    checkpoint_every_tokens: int = Field(gt=0)
    threads: int = Field(default=2, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = Field(default=False, description="fuse the small operations of a layer with torch.compile")


class Recipe(_Frozen):
    """One reference model."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    seed: int = 0
    model: ModelSpec
    data: DataSpec
    balance: BalanceSpec
    optim: OptimSpec
    train: TrainSpec

    @model_validator(mode="after")
    def _batch_is_whole_sequences(self) -> Recipe:
        if self.train.batch_tokens % self.data.sequence_length:
            raise ValueError(
                f"batch_tokens={self.train.batch_tokens} must be a multiple of "
                f"sequence_length={self.data.sequence_length}"
            )
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ValueError(f"sequence_length={self.data.sequence_length} exceeds max_position_embeddings")
        return self

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Read a YAML recipe; a bare file name is looked up in this package as well."""
        file = Path(path)
        if not file.exists() and (PACKAGE_DIR / file).exists():
            file = PACKAGE_DIR / file
        if not file.exists():
            shipped = sorted(p.name for p in PACKAGE_DIR.glob("*.yaml"))
            raise FileNotFoundError(f"no recipe at {path}; shipped: {shipped}")
        return cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))

    @property
    def run_dir(self) -> Path:
        """Working files: token cache, training checkpoints, log. Ignored by git."""
        return PACKAGE_DIR / "runs" / self.name

    @property
    def unfinished_dir(self) -> Path:
        """A run that another machine may continue, committed until the model is finished."""
        return PACKAGE_DIR / "unfinished" / self.name

    @property
    def checkpoint_dir(self) -> Path:
        """The exported, committed model."""
        return PACKAGE_DIR / "checkpoints" / self.name
