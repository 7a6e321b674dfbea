"""What the matrices of a model read and write, for the rules that cut and quantise them; no embedding and no head."""

from dataclasses import dataclass
from typing import Literal

from r1train.config.schema_model import DenseModelConfig, ModelConfig

# Transformer Engine's assert_dim_for_fp8_exec (pytorch/utils.py): tokens and widths of every operand.
TOKENS, WIDTH = 8, 16


@dataclass(frozen=True, kw_only=True)
class Width:
    """One side of matrices of the model.

    cut: what deals it out, tensor parallelism or the layout of routed experts; None: whole everywhere. has: of whose
    matrices it is a side; the trainer joins queries, keys and values, vLLM's loaders cut them apart. ends_block: FP8's
    blocks of a checkpoint end there, because a matrix reads it or it is joined with others; not what is written last.
    """

    name: str
    size: int
    cut: Literal["tp", "experts"] | None = None
    has: Literal["both", "trainer", "engine"] = "both"
    ends_block: bool = True

    @property
    def in_trainer(self) -> bool:
        return self.has != "engine"

    @property
    def in_engine(self) -> bool:
        return self.has != "trainer"


def matrix_widths(model: ModelConfig | DenseModelConfig, *, mtp: bool) -> list[Width]:
    """Of the layers that the model has; mtp: its MTP blocks, too, which have experts and which no engine gets."""
    widths = [Width(name="hidden_size", size=model.hidden_size)]
    if isinstance(model, DenseModelConfig):
        return widths + _dense(model)
    if model.num_dense_layers:
        widths.append(Width(name="ffn_hidden_size", size=model.ffn_hidden_size, cut="tp"))
    if model.num_moe_layers or (mtp and model.mtp_depth):
        widths += _experts(model)
    return widths + _latent_attention(model)


def _dense(model: DenseModelConfig) -> list[Width]:
    heads, groups = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    joined = heads + 2 * groups
    return [
        Width(name="ffn_hidden_size", size=model.ffn_hidden_size, cut="tp"),
        Width(name="num_attention_heads * head_dim", size=heads, cut="tp"),
        Width(name="num_key_value_heads * head_dim", size=groups, cut="tp", has="engine"),
        Width(name="queries, keys and values", size=joined, cut="tp", has="trainer", ends_block=False),
    ]


def _experts(model: ModelConfig) -> list[Width]:
    widths = [Width(name="moe_ffn_hidden_size", size=model.moe_ffn_hidden_size, cut="experts")]
    if model.num_shared_experts:
        shared = model.num_shared_experts * model.moe_ffn_hidden_size
        widths.append(Width(name="num_shared_experts * moe_ffn_hidden_size", size=shared, cut="tp"))
    return widths


def _latent_attention(model: ModelConfig) -> list[Width]:
    """MLA: down to the latents, which every rank has whole, and up to the heads."""
    heads, latent = model.num_attention_heads, model.kv_lora_rank
    key_value = heads * (model.qk_nope_head_dim + model.v_head_dim)
    widths = [
        Width(name="kv_lora_rank", size=latent),
        Width(name="kv_lora_rank + qk_rope_head_dim", size=latent + model.qk_rope_head_dim, ends_block=False),
        _of_heads("num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)", heads * model.qk_head_dim),
        _of_heads("num_attention_heads * (qk_nope_head_dim + v_head_dim)", key_value),
        Width(name="num_attention_heads * v_head_dim", size=heads * model.v_head_dim, cut="tp"),
    ]
    return widths + ([] if model.q_lora_rank is None else [Width(name="q_lora_rank", size=model.q_lora_rank)])


def _of_heads(name: str, size: int) -> Width:
    """What is written for all heads, with nothing behind it."""
    return Width(name=name, size=size, cut="tp", ends_block=False)
