"""Hugging Face's config.json -> our model config; what would change the maths and is not ours is refused by name.

Families: deepseek_v3 (DeepSeek-V3, R1, Moonlight), deepseek_v2 (V2-Lite), llama, qwen2. The way back is in
convert/hf_export_config.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1train.config.schema_model import DenseModelConfig, Llama3RopeConfig, ModelConfig, YarnConfig
from r1train.errors import CheckpointError

FP8_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
# As DeepSeek-V3 was trained (report section 4.2). The released files' 0.02 and 0.001 are leftovers.
DEEPSEEK_INIT_STD = 0.006
SEQUENCE_LOSS_COEF = 1e-4
DENSE_INIT_STD = 0.02
# Fields that never change what the model computes from given weights; the last two are the leftovers above.
_HARMLESS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "auto_map"),
    *("_name_or_path", "_model_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("pretraining_tp", "ep_size", "id2label"),
    *(
        "label2id",
        "return_dict",
        "output_router_logits",
        "output_attentions",
        "output_hidden_states",
        "tokenizer_class",
    ),
    *("max_window_layers", "seq_aux", "is_llama_config", "transformers.js_config", "chunk_size_feed_forward"),
    *("_attn_implementation", "unsloth_fixed", "task_specific_params", "problem_type"),
    *("initializer_range", "aux_loss_alpha"),
}


@dataclass
class _Reader:
    """The fields of one config.json: taken one by one; what is left at the end is unknown."""

    fields: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def take(self, name: str, kind: Callable[[Any], Any], **default: Any) -> Any:
        """A field as int or float; a problem where it is missing and has no `default`, or is something else."""
        value = self.fields.pop(name, default.get("default"))
        if value is None and "default" in default:
            return default["default"]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (kind is int and value != int(value)):
            self.problems.append(f"{name} = {value!r}: " + ("missing" if value is None else f"not {kind.__name__}"))
            return kind(1)
        return kind(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.fields.pop(name, default)
        if not isinstance(value, bool):
            self.problems.append(f"{name} = {value!r}: not true or false")
        return bool(value)

    def only(self, name: str, *allowed: Any, why: str) -> Any:
        """A field that has to be one of `allowed`; the first of them stands for a missing field."""
        value = self.fields.pop(name, allowed[0])
        if value not in allowed:
            self.problems.append(f"{name} = {value!r}: {why} (can be {' or '.join(map(repr, allowed))})")
            return allowed[0]
        return value

    def refuse_unknown(self) -> None:
        unknown = sorted(name for name in self.fields if name not in _HARMLESS)
        self.problems += [f"{name} = {self.fields[name]!r}: a field that r1train does not know" for name in unknown]


def read_hf_config(path: Path) -> tuple[ModelConfig | DenseModelConfig, dict[str, Any]]:
    """Our config of a config.json, and its raw fields. Raises CheckpointError with everything that is wrong with it."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Fix: name a folder as Hugging Face stores a model") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}). Fix: fetch the file again") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: not a JSON object. Fix: fetch the file again")
    try:
        return model_from_hf(fields), fields
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def model_from_hf(fields: dict[str, Any]) -> ModelConfig | DenseModelConfig:
    """Raises CheckpointError that lists every field which is missing, unknown, or means another model than ours."""
    kind = str(fields.get("model_type"))
    readers: dict[Any, Callable[[_Reader, str, str], ModelConfig | DenseModelConfig]]
    readers = {"deepseek_v3": _deepseek, "deepseek_v2": _deepseek, "llama": _dense, "qwen2": _dense}
    if kind not in readers:
        raise CheckpointError(f"model_type = {kind!r} is not supported. Fix: one of {', '.join(readers)}")
    reader = _Reader(dict(fields))
    quantisation = reader.fields.pop("quantization_config", None)
    if quantisation is not None and {k: quantisation.get(k) for k in FP8_CONFIG} != FP8_CONFIG:
        reader.problems.append(f"quantization_config = {quantisation!r}: can be {FP8_CONFIG!r} or absent")
    reader.only("hidden_act", "silu", why="the feed-forward is SwiGLU")
    reader.only("attention_dropout", 0, 0.0, why="there is no dropout")
    model = readers[kind](reader, kind, kind)
    reader.refuse_unknown()
    if reader.problems:
        lines = "".join(f"\n  - {problem}" for problem in reader.problems)
        raise CheckpointError(
            f"this {kind} model cannot be represented exactly:{lines}\n"
            "Fix: take a checkpoint without these; delete a field only if you know that it does not change the model"
        )
    return model


def not_trusted(fields: dict[str, Any]) -> list[str]:
    """Sentences about fields that were read over, with what is used instead."""
    dense = fields.get("model_type") in ("llama", "qwen2")
    used = {"initializer_range": ("init_std", DENSE_INIT_STD if dense else DEEPSEEK_INIT_STD)}
    if not dense:
        used["aux_loss_alpha"] = ("sequence_loss_coef", SEQUENCE_LOSS_COEF)
    return [
        f"{name} = {fields[name]} of config.json is a leftover, not a training value: {ours} is {value}"
        for name, (ours, value) in used.items()
        if name in fields and fields[name] != value
    ]


def _rope(reader: _Reader) -> tuple[float, dict[str, Any]]:
    """Base, and the scaling's fields: from rope_theta and rope_scaling, or transformers 5's rope_parameters."""
    new = dict(reader.fields.pop("rope_parameters", None) or {})
    old = dict(reader.fields.pop("rope_scaling", None) or {})
    base = new.pop("rope_theta", None)
    written = reader.take("rope_theta", float, default=10000.0)
    scaling = new or old
    scaling["rope_type"] = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if "partial_rotary_factor" in scaling and scaling["partial_rotary_factor"] == 1.0:
        del scaling["partial_rotary_factor"]
    return float(base) if base is not None else written, scaling


def _scaling(reader: _Reader, scaling: dict[str, Any], kind: str, names: dict[str, str], defaults: dict) -> dict | None:
    """Our fields of a scaling of type `kind`; None for plain RoPE; problems for another type and unknown fields."""
    found = scaling.pop("rope_type")
    if found == "default":
        reader.problems += [f"rope_scaling.{name}: a field that r1train does not know" for name in sorted(scaling)]
        return None
    if found != kind:
        reader.problems.append(f"rope_scaling.rope_type = {found!r}: can be {kind!r} or absent")
        return None
    values = {}
    for hf, ours in names.items():
        value = scaling.pop(hf, defaults.get(ours))
        if value is None:
            reader.problems.append(f"rope_scaling.{hf}: missing")
        values[ours] = value
    reader.problems += [f"rope_scaling.{name}: a field that r1train does not know" for name in sorted(scaling)]
    return None if None in values.values() else values


def _yarn(reader: _Reader, scaling: dict[str, Any]) -> YarnConfig | None:
    # Without both mscales transformers multiplies cos and sin by mscale(factor, 1) and leaves the softmax scale alone.
    neither = "mscale" not in scaling and "mscale_all_dim" not in scaling
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0} | ({"mscale": 1.0, "mscale_all_dim": 0.0} if neither else {})
    names = {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    }
    values = _scaling(reader, scaling, "yarn", names, defaults)
    if values is None:
        return None
    positions = int(values.pop("original_max_positions"))
    return YarnConfig(original_max_positions=positions, **{name: float(value) for name, value in values.items()})


def _gate(reader: _Reader, kind: str) -> tuple[int, int, int, bool]:
    """Groups, groups open to a token, experts per token, whether their weights are normalised."""
    v3 = kind == "deepseek_v3"
    take, only = reader.take, reader.only
    groups = take("n_group", int, default=1)
    only("scoring_func", "sigmoid" if v3 else "softmax", why=f"the gate of {kind}")
    only("topk_method", *(("noaux_tc",) if v3 else ("greedy",)), why="the only choice of experts that is exact here")
    if not v3 and groups != 1:
        reader.problems.append(f"n_group = {groups}: deepseek_v2 scores a group by its best expert, we do not")
    chosen, open_groups = take("num_experts_per_tok", int), take("topk_group", int, default=1)
    if groups > 1 and chosen != 2 * open_groups:
        # Transformers always scores a group by its best two experts, megatron-core by num_experts_per_tok / topk_group.
        reader.problems.append(
            f"topk_group = {open_groups}: has to be half of num_experts_per_tok = {chosen}, as in V3"
        )
    normalised = reader.flag("norm_topk_prob", default=v3)
    if normalised != v3:
        reader.problems.append(f"norm_topk_prob = {normalised}: {kind} is supported with {str(v3).lower()}")
    return groups, open_groups, chosen, normalised


def _deepseek(reader: _Reader, kind: str, name: str) -> ModelConfig:
    v3 = kind == "deepseek_v3"
    take, only = reader.take, reader.only
    heads = take("num_attention_heads", int)
    rope = take("qk_rope_head_dim", int)
    nope = take("qk_nope_head_dim", int)
    only("num_key_value_heads", heads, None, why="latent attention has one key per head")
    only("head_dim", rope, None, why="transformers writes qk_rope_head_dim here")
    only("qk_head_dim", nope + rope, None, why="the sum of the nope and rope widths")
    only("attention_bias", False, why="no projection has a bias")
    only("mlp_bias", False, why="no feed-forward has a bias")
    only("tie_word_embeddings", False, why="embedding and head are two matrices")
    only("moe_layer_freq", 1, why="every layer after the dense ones has experts")
    only("rope_interleave", True, why="rotary pairs are neighbours in the released weights")
    groups, open_groups, chosen, normalised = _gate(reader, kind)
    base, scaling = _rope(reader)
    mtp = reader.fields.pop("num_mtp_layers", None)
    return ModelConfig(
        name=name,
        vocab_size=take("vocab_size", int),
        hidden_size=take("hidden_size", int),
        num_layers=take("num_hidden_layers", int),
        num_dense_layers=take("first_k_dense_replace", int),
        ffn_hidden_size=take("intermediate_size", int),
        num_attention_heads=heads,
        q_lora_rank=take("q_lora_rank", int, default=None),
        kv_lora_rank=take("kv_lora_rank", int),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=take("v_head_dim", int),
        num_experts=take("n_routed_experts", int),
        num_experts_per_token=chosen,
        num_shared_experts=take("n_shared_experts", int),
        moe_ffn_hidden_size=take("moe_intermediate_size", int),
        num_expert_groups=groups,
        num_groups_per_token=open_groups,
        router_score="sigmoid" if v3 else "softmax",
        router_bias=v3,
        norm_topk_prob=normalised,
        routed_scaling_factor=take("routed_scaling_factor", float),
        mtp_depth=take("num_nextn_predict_layers", int, default=mtp or 0),
        rope_base=base,
        yarn=_yarn(reader, scaling),
        max_position_embeddings=take("max_position_embeddings", int),
        rms_norm_eps=take("rms_norm_eps", float),
        init_std=DEEPSEEK_INIT_STD,
        sequence_loss_coef=SEQUENCE_LOSS_COEF,
    )


def _dense(reader: _Reader, kind: str, name: str) -> DenseModelConfig:
    take, only = reader.take, reader.only
    heads, hidden = take("num_attention_heads", int), take("hidden_size", int)
    only("attention_bias", kind == "qwen2", *((None,) if kind == "qwen2" else ()), why=f"fixed in {kind}")
    only("mlp_bias", False, why="no feed-forward has a bias")
    only("rope_interleaved", False, why="rotary pairs are half a head apart")
    only("use_sliding_window", False, why="attention sees the whole context")
    reader.fields.pop("sliding_window", None)  # without use_sliding_window it means nothing
    for layer in set(reader.fields.pop("layer_types", None) or ["full_attention"]) - {"full_attention"}:
        reader.problems.append(f"layer_types: {layer!r}, but attention sees the whole context")
    base, scaling = _rope(reader)
    names = {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")}
    names["original_max_position_embeddings"] = "original_max_positions"
    values = _scaling(reader, scaling, "llama3", names, {})
    return DenseModelConfig(
        name=name,
        vocab_size=take("vocab_size", int),
        hidden_size=hidden,
        num_layers=take("num_hidden_layers", int),
        ffn_hidden_size=take("intermediate_size", int),
        num_attention_heads=heads,
        num_key_value_heads=take("num_key_value_heads", int, default=heads),
        head_dim=take("head_dim", int, default=hidden // heads),
        qkv_bias=kind == "qwen2",
        tie_embeddings=reader.flag("tie_word_embeddings", default=False),
        rope_base=base,
        rope_scaling=None if values is None else Llama3RopeConfig(**values),
        max_position_embeddings=take("max_position_embeddings", int),
        rms_norm_eps=take("rms_norm_eps", float),
        init_std=DENSE_INIT_STD,
    )
