"""Rules about the dense shape (Llama, Qwen2) and how the layout cuts it."""

from r1train.config.schema_model import DenseModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.errors import Problem


def key_value_heads_divide_heads(model: DenseModelConfig) -> list[Problem]:
    """Every key-value head serves the same number of query heads (GQA, arXiv 2305.13245)."""
    if model.num_attention_heads % model.num_key_value_heads == 0:
        return []
    what = f"does not divide the {model.num_attention_heads} attention heads"
    return [
        Problem("model.num_key_value_heads", model.num_key_value_heads, what, "a divisor of model.num_attention_heads")
    ]


def key_value_heads_divisible_by_tp(model: DenseModelConfig, parallel: ParallelConfig) -> list[Problem]:
    if model.num_key_value_heads % parallel.tp == 0:
        return []
    what = f"not divisible by parallel.tp = {parallel.tp}"
    fix = f"a tp that divides {model.num_key_value_heads}"
    return [Problem("model.num_key_value_heads", model.num_key_value_heads, what, fix)]


def head_dimension_is_even(model: DenseModelConfig) -> list[Problem]:
    if model.head_dim % 2 == 0:
        return []
    return [Problem("model.head_dim", model.head_dim, "rotary positions turn pairs of dimensions", "an even number")]


def rope_scaling_has_a_band(model: DenseModelConfig) -> list[Problem]:
    """Between the two factors the frequencies are blended, so they have to differ."""
    scaling, problems = model.rope_scaling, []
    if scaling is None:
        return []
    if scaling.factor < 1:
        what = "would shrink the context"
        problems.append(Problem("model.rope_scaling.factor", scaling.factor, what, "1.0 or more"))
    if not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        what = f"must lie between 0 and high_freq_factor = {scaling.high_freq_factor}"
        problems.append(Problem("model.rope_scaling.low_freq_factor", scaling.low_freq_factor, what, "Llama 3.1: 1.0"))
    return problems


def no_experts_to_spread(model: DenseModelConfig, parallel: ParallelConfig) -> list[Problem]:
    return [
        Problem(f"parallel.{axis}", size, f"the model {model.name} has no experts", "1")
        for axis, size in (("ep", parallel.ep), ("etp", parallel.etp))
        if size != 1
    ]


RULES = (
    key_value_heads_divide_heads,
    head_dimension_is_even,
    rope_scaling_has_a_band,
)
LAYOUT_RULES = (key_value_heads_divisible_by_tp, no_experts_to_spread)
