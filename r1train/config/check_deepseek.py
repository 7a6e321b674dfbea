"""Rules about the DeepSeek shape and how expert parallelism cuts it."""

from r1train.config.schema_model import ModelConfig
from r1train.config.schema_parallel import ParallelConfig
from r1train.errors import Problem


def dense_layers_within_layers(model: ModelConfig) -> list[Problem]:
    if model.num_dense_layers <= model.num_layers:
        return []
    what = f"more dense layers than the {model.num_layers} layers of the model"
    return [Problem("model.num_dense_layers", model.num_dense_layers, what, f"at most {model.num_layers}")]


def groups_divide_experts(model: ModelConfig) -> list[Problem]:
    if model.num_experts % model.num_expert_groups == 0:
        return []
    what = f"does not divide the {model.num_experts} experts"
    return [Problem("model.num_expert_groups", model.num_expert_groups, what, "choose a divisor of model.num_experts")]


def groups_per_token_exist(model: ModelConfig) -> list[Problem]:
    if model.num_groups_per_token <= model.num_expert_groups:
        return []
    what = f"a token cannot go to more groups than the {model.num_expert_groups} there are"
    return [Problem("model.num_groups_per_token", model.num_groups_per_token, what, "at most model.num_expert_groups")]


def chosen_groups_hold_enough_experts(model: ModelConfig) -> list[Problem]:
    reachable = model.num_groups_per_token * (model.num_experts // model.num_expert_groups)
    if model.num_experts_per_token <= reachable:
        return []
    what = f"the groups open to a token hold only {reachable} experts"
    fix = "lower it, or raise model.num_groups_per_token"
    return [Problem("model.num_experts_per_token", model.num_experts_per_token, what, fix)]


def group_score_is_top_two(model: ModelConfig) -> list[Problem]:
    """V3 scores a group by its top K/M affinities (report section 2.1.2), the released code by its top 2."""
    if model.num_expert_groups == 1 or model.num_experts_per_token == 2 * model.num_groups_per_token:
        return []
    what = (
        f"with {model.num_groups_per_token} groups per token a group would not be scored by its top 2 experts, "
        "as DeepSeek-V3 does"
    )
    fix = f"num_experts_per_token={2 * model.num_groups_per_token}, or num_expert_groups=1"
    return [Problem("model.num_experts_per_token", model.num_experts_per_token, what, fix)]


def group_has_two_experts(model: ModelConfig) -> list[Problem]:
    if model.num_expert_groups == 1 or model.num_experts // model.num_expert_groups >= 2:
        return []
    what = f"leaves fewer than 2 of {model.num_experts} experts in a group, but a group's score is its top 2"
    return [Problem("model.num_expert_groups", model.num_expert_groups, what, f"at most {model.num_experts // 2}")]


def bias_needs_sigmoid(model: ModelConfig) -> list[Problem]:
    """The load-balancing bias is defined on sigmoid scores (V3 report equations 13-16; megatron-core asserts it)."""
    if not model.router_bias or model.router_score == "sigmoid":
        return []
    what = "the expert bias works on sigmoid scores only"
    return [Problem("model.router_bias", True, what, "router_score=sigmoid or router_bias=false")]


def rope_dimension_is_even(model: ModelConfig) -> list[Problem]:
    if model.qk_rope_head_dim % 2 == 0:
        return []
    what = "rotary positions turn pairs of dimensions"
    return [Problem("model.qk_rope_head_dim", model.qk_rope_head_dim, what, "an even number")]


def deepseek_numbers_in_range(model: ModelConfig) -> list[Problem]:
    problems = []
    if model.routed_scaling_factor <= 0:
        what = "must be above 0"
        problems.append(Problem("model.routed_scaling_factor", model.routed_scaling_factor, what, "a positive number"))
    if model.sequence_loss_coef < 0:
        problems.append(Problem("model.sequence_loss_coef", model.sequence_loss_coef, "below 0", "0 switches it off"))
    if model.yarn is not None and model.yarn.factor < 1:
        problems.append(Problem("model.yarn.factor", model.yarn.factor, "would shrink the context", "1.0 or more"))
    return problems


def windows_fit_the_layers(model: ModelConfig) -> list[Problem]:
    windows = model.attention_windows
    if windows is None or len(windows) == model.num_layers:
        return []
    what = f"{len(windows)} entries for {model.num_layers} layers"
    fix = "one per layer, null where a layer sees everything"
    return [Problem("model.attention_windows", list(windows), what, fix)]


def windows_without_context_ranks(model: ModelConfig, parallel: ParallelConfig) -> list[Problem]:
    """Transformer Engine's ring attention knows no windows."""
    if parallel.cp == 1 or model.attention_windows is None or not any(model.attention_windows):
        return []
    what = "ring attention has no windows"
    return [Problem("model.attention_windows", list(model.attention_windows), what, "parallel.cp=1, or no windows")]


def expert_widths_divisible(model: ModelConfig, parallel: ParallelConfig) -> list[Problem]:
    """Widths of routed experts (cut by etp) and of the shared ones (cut by tp)."""
    width = model.moe_ffn_hidden_size
    return [
        Problem(
            "model.moe_ffn_hidden_size", width, f"not divisible by parallel.{axis} = {size}", f"a multiple of {size}"
        )
        for axis, size in (("etp", parallel.etp), ("tp", parallel.tp))
        if width % size
    ]


def experts_divisible_by_ep(model: ModelConfig, parallel: ParallelConfig) -> list[Problem]:
    if model.num_experts % parallel.ep == 0:
        return []
    what = f"does not divide the {model.num_experts} experts"
    return [Problem("parallel.ep", parallel.ep, what, "choose a divisor of model.num_experts")]


def groups_align_with_expert_ranks(model: ModelConfig, parallel: ParallelConfig) -> list[Problem]:
    """A group of experts stands for a node: whole groups per rank, or whole ranks per group (V3 section 2.1.2)."""
    groups, ep = model.num_expert_groups, parallel.ep
    if groups % ep == 0 or ep % groups == 0:
        return []
    what = f"cuts across the {groups} expert groups, so the node limit of routing would mean nothing"
    return [Problem("parallel.ep", ep, what, "a multiple or a divisor of model.num_expert_groups")]


RULES = (
    dense_layers_within_layers,
    groups_divide_experts,
    groups_per_token_exist,
    chosen_groups_hold_enough_experts,
    group_score_is_top_two,
    group_has_two_experts,
    bias_needs_sigmoid,
    rope_dimension_is_even,
    deepseek_numbers_in_range,
    windows_fit_the_layers,
)
LAYOUT_RULES = (
    expert_widths_divisible,
    experts_divisible_by_ep,
    groups_align_with_expert_ranks,
    windows_without_context_ranks,
)
