"""Model: what a transformer is, in Hugging Face's terms, and how many parameters it has.

What it models: decoder-only transformers with full or sliding-window attention (MHA, GQA, MQA; head_dim free
of hidden_size/heads), dense or mixture-of-experts feed-forward per layer, shared experts, RMSNorm, rotary
positions.
What it refuses (in ``hf_config``): latent attention (MLA), Mamba, linear attention — by name, never guessed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from simulator.formats.files import Name, Record
from simulator.rope_scaling import RopeScaling
from simulator.units import DTYPE_BYTES


class Experts(Record):
    """Routed feed-forward: ``num_experts`` of width ``intermediate_size``, ``top_k`` a token."""

    num_experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    shared_intermediate_size: int = Field(default=0, ge=0, description="all shared experts together; 0: none")
    capacity_factor: float | None = Field(default=None, gt=0, description="None: dropless")

    @model_validator(mode="after")
    def _top_k_within(self) -> Experts:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} exceeds num_experts {self.num_experts}")
        return self


class Layer(Record):
    """One layer: its attention window (0: full) and whether its feed-forward is routed."""

    window: int = Field(default=0, ge=0)
    routed: bool = False


class Model(Record):
    """A decoder-only transformer. ``layers`` lists every layer's kind, in order."""

    schema_version: Literal[1] = 1
    name: Name
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1, description="dense layers' feed-forward width")
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=10_000)
    experts: Experts | None = None
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(default=131072, ge=1)
    hidden_act: Literal["gelu", "silu"] = "silu"
    gated: bool = Field(default=True, description="gate and up matrices (SwiGLU) or up alone")
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_theta: float | None = Field(default=10000.0, gt=0, description="None: no rotary positions")
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    tie_word_embeddings: bool = False
    causal: bool = True
    weight_dtype: Literal["bf16", "fp16", "fp32", "fp8"] = "bf16"
    assumptions: tuple[str, ...] = ()
    source: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Model:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.experts is None and any(layer.routed for layer in self.layers):
            raise ValueError("a layer is routed but experts is missing")
        return self

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def heads_per_kv_head(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def attention_parameters(self) -> int:
        """Q and O are hidden × heads·head_dim, K and V hidden × kv_heads·head_dim; one layer's matrices."""
        return 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)

    def feed_forward_parameters(self, layer: Layer) -> int:
        """2 matrices (3 if gated) of hidden × width; routed: every expert, the shared ones and the gate."""
        matrices = 3 if self.gated else 2
        if not layer.routed:
            return matrices * self.hidden_size * self.intermediate_size
        experts = self.experts
        assert experts is not None
        width = experts.num_experts * experts.intermediate_size + experts.shared_intermediate_size
        return matrices * self.hidden_size * width + self.hidden_size * experts.num_experts

    def layer_parameters(self) -> int:
        """Matrix parameters of all layers, without embeddings and norms."""
        return sum(self.attention_parameters() + self.feed_forward_parameters(layer) for layer in self.layers)

    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def num_parameters(self) -> int:
        """All matrices; norm vectors (a ten-thousandth of them) are left out."""
        return self.layer_parameters() + self.embedding_parameters()

    def kv_bytes_per_token(self) -> int:
        """K and V of every layer, at the weight dtype (bf16 where weights are fp8)."""
        size = max(DTYPE_BYTES[self.weight_dtype], 2)
        return 2 * self.num_key_value_heads * self.head_dim * size * self.num_layers
