"""The one list of tensor names: ours (megatron-core's sharded keys) beside Hugging Face's, per family, as data.

Import, export and the push of weights into an engine all read these tables; model/sharded.py makes the names of every
backend those of the left column. Sources: DeepSeek-V3's released checkpoint, transformers' Llama and Qwen2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from r1train.config.schema_model import DenseModelConfig, ModelConfig

AnyModel = ModelConfig | DenseModelConfig
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One Hugging Face tensor. copies: further names under which Hugging Face stores the same values."""

    name: str
    shape: Shape
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """count rows of part number `part` from `start` are rows of our tensor from `ours`."""

    part: int
    start: int
    ours: int
    count: int


@dataclass(frozen=True)
class Entry:
    """One of our tensors (or one expert's slice of it) and the Hugging Face tensors that its rows come from.

    groups: our rows are, group by group, that group's rows of every part; 1 puts the parts one after another, the
    number of key/value heads gives megatron-core's order of query, key and value. fp8: stored in FP8 in an FP8
    checkpoint. fp32: always stored in fp32.
    """

    key: str
    parts: tuple[Part, ...]
    expert: int | None = None
    num_experts: int = 0
    groups: int = 1
    fp8: bool = False
    fp32: bool = False

    @property
    def shape(self) -> Shape:
        """Of the slice that the parts make, without the expert axis."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def global_shape(self) -> Shape:
        return self.shape if self.expert is None else (self.num_experts, *self.shape)

    def offset(self, row: int) -> Shape:
        """Place of a row of this slice in the whole tensor."""
        place = (row, *(0 for _ in self.shape[1:]))
        return place if self.expert is None else (self.expert, *place)

    def runs(self) -> list[Run]:
        """All rows of ours in order."""
        found, ours = [], 0
        for group in range(self.groups):
            for number, part in enumerate(self.parts):
                count = part.shape[0] // self.groups
                found.append(Run(number, group * count, ours, count))
                ours += count
        return found


@dataclass(frozen=True)
class Row:
    """One line of a table. Names are below a prefix (the layer's); shapes gives one shape per Hugging Face name."""

    ours: str
    hf: tuple[str, ...]
    shapes: Callable[[Any], tuple[Shape, ...]]
    groups: Callable[[Any], int] = lambda _model: 1
    fp8: bool = False
    fp32: bool = False
    when: Callable[[Any], bool] = lambda _model: True


def _gated(ours: str, hf: str, width: Callable[[Any], int]) -> tuple[Row, ...]:
    """A gated feed-forward: gate over up in one matrix of ours, and down."""
    up = (f"{hf}gate_proj.weight", f"{hf}up_proj.weight")
    return (
        Row(f"{ours}linear_fc1.weight", up, lambda m: ((width(m), m.hidden_size),) * 2, fp8=True),
        Row(f"{ours}linear_fc2.weight", (f"{hf}down_proj.weight",), lambda m: ((m.hidden_size, width(m)),), fp8=True),
    )


def _hidden(m: Any) -> tuple[Shape, ...]:
    return ((m.hidden_size,),)


def _vocabulary(m: Any) -> tuple[Shape, ...]:
    return ((m.vocab_size, m.hidden_size),)


def _query_rows(m: ModelConfig) -> int:
    return m.num_attention_heads * m.qk_head_dim


def _key_value_rows(m: ModelConfig) -> int:
    return m.num_attention_heads * (m.qk_nope_head_dim + m.v_head_dim)


def _qkv_rows(m: DenseModelConfig) -> tuple[int, int, int]:
    return (m.num_attention_heads * m.head_dim, *(m.num_key_value_heads * m.head_dim,) * 2)


def _kv_groups(m: DenseModelConfig) -> int:
    return m.num_key_value_heads


_NORMS = (
    Row("input_layernorm.weight", ("input_layernorm.weight",), _hidden),
    Row("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), _hidden),
)
_A, _H = "self_attention.", "self_attn."
_MLA = (
    Row(
        f"{_A}linear_q_proj.weight",
        (f"{_H}q_proj.weight",),
        lambda m: ((_query_rows(m), m.hidden_size),),
        fp8=True,
        when=lambda m: m.q_lora_rank is None,
    ),
    Row(
        f"{_A}linear_q_down_proj.weight",
        (f"{_H}q_a_proj.weight",),
        lambda m: ((m.q_lora_rank, m.hidden_size),),
        fp8=True,
        when=lambda m: m.q_lora_rank is not None,
    ),
    Row(
        f"{_A}q_layernorm.weight",
        (f"{_H}q_a_layernorm.weight",),
        lambda m: ((m.q_lora_rank,),),
        when=lambda m: m.q_lora_rank is not None,
    ),
    Row(
        f"{_A}linear_q_up_proj.weight",
        (f"{_H}q_b_proj.weight",),
        lambda m: ((_query_rows(m), m.q_lora_rank),),
        fp8=True,
        when=lambda m: m.q_lora_rank is not None,
    ),
    Row(
        f"{_A}linear_kv_down_proj.weight",
        (f"{_H}kv_a_proj_with_mqa.weight",),
        lambda m: ((m.kv_lora_rank + m.qk_rope_head_dim, m.hidden_size),),
        fp8=True,
    ),
    Row(f"{_A}kv_layernorm.weight", (f"{_H}kv_a_layernorm.weight",), lambda m: ((m.kv_lora_rank,),)),
    Row(
        f"{_A}linear_kv_up_proj.weight",
        (f"{_H}kv_b_proj.weight",),
        lambda m: ((_key_value_rows(m), m.kv_lora_rank),),
        fp8=True,
    ),
    Row(
        f"{_A}linear_proj.weight",
        (f"{_H}o_proj.weight",),
        lambda m: ((m.hidden_size, m.num_attention_heads * m.v_head_dim),),
        fp8=True,
    ),
)
_GQA = (
    Row(
        f"{_A}linear_qkv.weight",
        tuple(f"{_H}{x}_proj.weight" for x in "qkv"),
        lambda m: tuple((rows, m.hidden_size) for rows in _qkv_rows(m)),
        groups=_kv_groups,
        fp8=True,
    ),
    Row(
        f"{_A}linear_qkv.bias",
        tuple(f"{_H}{x}_proj.bias" for x in "qkv"),
        lambda m: tuple((rows,) for rows in _qkv_rows(m)),
        groups=_kv_groups,
        when=lambda m: m.qkv_bias,
    ),
    Row(
        f"{_A}linear_proj.weight",
        (f"{_H}o_proj.weight",),
        lambda m: ((m.hidden_size, m.num_attention_heads * m.head_dim),),
        fp8=True,
    ),
)
_DENSE = _gated("mlp.", "mlp.", lambda m: m.ffn_hidden_size)
_MOE = (
    Row("mlp.router.weight", ("mlp.gate.weight",), lambda m: ((m.num_experts, m.hidden_size),)),
    Row(
        "mlp.router.expert_bias",
        ("mlp.gate.e_score_correction_bias",),
        lambda m: ((m.num_experts,),),
        fp32=True,
        when=lambda m: m.router_bias,
    ),
    *_gated("mlp.shared_experts.", "mlp.shared_experts.", lambda m: m.num_shared_experts * m.moe_ffn_hidden_size),
)
_EXPERT = _gated("mlp.experts.experts.", "", lambda m: m.moe_ffn_hidden_size)  # below mlp.experts.{expert}.
_MTP = (
    Row("enorm.weight", ("enorm.weight",), _hidden),
    Row("hnorm.weight", ("hnorm.weight",), _hidden),
    Row("eh_proj.weight", ("eh_proj.weight",), lambda m: ((m.hidden_size, 2 * m.hidden_size),)),
    Row("final_layernorm.weight", ("shared_head.norm.weight",), _hidden),
)
_EMBEDDING = Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), _vocabulary)
_FINAL_NORM = Row("decoder.final_layernorm.weight", ("model.norm.weight",), _hidden)
_HEAD = Row("output_layer.weight", ("lm_head.weight",), _vocabulary)
# What an MTP layer stores a second time.
_MTP_COPIES = {_EMBEDDING.ours: "embed_tokens.weight", _HEAD.ours: "shared_head.head.weight"}


def _entry(row: Row, model: AnyModel, ours: str, hf: str, **fields: Any) -> Entry:
    shapes = row.shapes(model)
    parts = tuple(Part(hf + name, shape) for name, shape in zip(row.hf, shapes, strict=True))
    return Entry(ours + row.ours, parts, groups=row.groups(model), fp8=row.fp8, fp32=row.fp32, **fields)


def _rows(rows: tuple[Row, ...], model: AnyModel, ours: str, hf: str) -> Iterator[Entry]:
    yield from (_entry(row, model, ours, hf) for row in rows if row.when(model))


def _experts(model: ModelConfig, ours: str, hf: str) -> Iterator[Entry]:
    for expert in range(model.num_experts):
        for row in _EXPERT:
            prefix = f"{hf}mlp.experts.{expert}."
            yield _entry(row, model, ours, prefix, expert=expert, num_experts=model.num_experts)


def _moe_layer(model: ModelConfig, ours: str, hf: str) -> Iterator[Entry]:
    yield from _rows(_NORMS + _MLA + _MOE, model, ours, hf)
    yield from _experts(model, ours, hf)


def _outer(row: Row, model: AnyModel) -> Entry:
    """Embedding, head or final norm, with the names under which MTP layers or a tied head repeat it."""
    entry = _entry(row, model, "", "")
    copies = tuple(
        f"model.layers.{model.num_layers + depth}.{_MTP_COPIES[row.ours]}"
        for depth in range(model.mtp_depth if row.ours in _MTP_COPIES else 0)
    )
    part = entry.parts[0]
    return Entry(entry.key, (Part(part.name, part.shape, copies),))


def entries(model: AnyModel) -> list[Entry]:
    """All tensors of a model, outer ones first, then layer by layer."""
    found = [_outer(_EMBEDDING, model)]
    for layer in range(model.num_layers):
        ours, hf = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        if isinstance(model, DenseModelConfig):
            found += _rows(_NORMS + _GQA + _DENSE, model, ours, hf)
        elif layer < model.num_dense_layers:
            found += _rows(_NORMS + _MLA + _DENSE, model, ours, hf)
        else:
            found += _moe_layer(model, ours, hf)
    found.append(_outer(_FINAL_NORM, model))
    if not (isinstance(model, DenseModelConfig) and model.tie_embeddings):
        found.append(_outer(_HEAD, model))
    for depth in range(model.mtp_depth):
        assert isinstance(model, ModelConfig)
        ours, hf = f"mtp.layers.{depth}.", f"model.layers.{model.num_layers + depth}."
        found += _rows(_MTP, model, ours, hf)
        found += _moe_layer(model, f"{ours}transformer_layer.", hf)
    return found


def tied_head(model: AnyModel) -> set[str]:
    """Names under which a file may repeat a tied embedding; empty where the head has weights of its own."""
    return set(_HEAD.hf) if isinstance(model, DenseModelConfig) and model.tie_embeddings else set()


def stale_names(model: AnyModel) -> set[str]:
    """Leftovers that some checkpoints carry (Moonlight: 27 inverse frequencies): read over, never written."""
    return {f"model.layers.{layer}.{_H}rotary_emb.inv_freq" for layer in range(model.num_layers)}


def mtp_prefixes(model: AnyModel, *, depth: int) -> tuple[str, ...]:
    """How the names of `depth` MTP layers begin in Hugging Face's checkpoint."""
    return tuple(f"model.layers.{model.num_layers + number}." for number in range(depth))
