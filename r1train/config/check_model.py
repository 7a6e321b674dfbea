"""Rules about the model's shape alone."""

from r1train.config.schema import RunConfig
from r1train.errors import Problem


def dense_layers_within_layers(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    if model.num_dense_layers <= model.num_layers:
        return []
    what = f"more dense layers than the {model.num_layers} layers of the model"
    return [Problem("model.num_dense_layers", model.num_dense_layers, what, f"at most {model.num_layers}")]


def groups_divide_experts(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    if model.num_experts % model.num_expert_groups == 0:
        return []
    what = f"does not divide the {model.num_experts} experts"
    return [Problem("model.num_expert_groups", model.num_expert_groups, what, "choose a divisor of model.num_experts")]


def groups_per_token_exist(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    if model.num_groups_per_token <= model.num_expert_groups:
        return []
    what = f"a token cannot go to more groups than the {model.num_expert_groups} there are"
    return [Problem("model.num_groups_per_token", model.num_groups_per_token, what, "at most model.num_expert_groups")]


def chosen_groups_hold_enough_experts(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    reachable = model.num_groups_per_token * (model.num_experts // model.num_expert_groups)
    if model.num_experts_per_token <= reachable:
        return []
    what = f"the groups open to a token hold only {reachable} experts"
    fix = "lower it, or raise model.num_groups_per_token"
    return [Problem("model.num_experts_per_token", model.num_experts_per_token, what, fix)]


def group_score_is_top_two(cfg: RunConfig) -> list[Problem]:
    """V3 scores a group by its top K/M affinities (report section 2.1.2), the released code by its top 2."""
    model = cfg.model
    if model.num_expert_groups == 1 or model.num_experts_per_token == 2 * model.num_groups_per_token:
        return []
    what = (
        f"with {model.num_groups_per_token} groups per token a group would not be scored by its top 2 experts, "
        "as DeepSeek-V3 does"
    )
    fix = f"num_experts_per_token={2 * model.num_groups_per_token}, or num_expert_groups=1"
    return [Problem("model.num_experts_per_token", model.num_experts_per_token, what, fix)]


def group_has_two_experts(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    if model.num_expert_groups == 1 or model.num_experts // model.num_expert_groups >= 2:
        return []
    what = f"leaves fewer than 2 of {model.num_experts} experts in a group, but a group's score is its top 2"
    return [Problem("model.num_expert_groups", model.num_expert_groups, what, f"at most {model.num_experts // 2}")]


def bias_needs_sigmoid(cfg: RunConfig) -> list[Problem]:
    """The load-balancing bias is defined on sigmoid scores (V3 report equations 13-16; megatron-core asserts it)."""
    if not cfg.model.router_bias or cfg.model.router_score == "sigmoid":
        return []
    what = "the expert bias works on sigmoid scores only"
    return [Problem("model.router_bias", True, what, "router_score=sigmoid or router_bias=false")]


def rope_dimension_is_even(cfg: RunConfig) -> list[Problem]:
    if cfg.model.qk_rope_head_dim % 2 == 0:
        return []
    what = "rotary positions turn pairs of dimensions"
    return [Problem("model.qk_rope_head_dim", cfg.model.qk_rope_head_dim, what, "an even number")]


def model_numbers_in_range(cfg: RunConfig) -> list[Problem]:
    model = cfg.model
    problems = [
        Problem(f"model.{name}", value, "must be above 0", "write a positive number")
        for name, value in (
            ("routed_scaling_factor", model.routed_scaling_factor),
            ("rope_base", model.rope_base),
            ("rms_norm_eps", model.rms_norm_eps),
            ("init_std", model.init_std),
        )
        if value <= 0
    ]
    if model.sequence_loss_coef < 0:
        problems.append(Problem("model.sequence_loss_coef", model.sequence_loss_coef, "below 0", "0 switches it off"))
    if model.yarn is not None and model.yarn.factor < 1:
        problems.append(Problem("model.yarn.factor", model.yarn.factor, "would shrink the context", "1.0 or more"))
    return problems


def vocabulary_holds_the_tokenizer(cfg: RunConfig) -> list[Problem]:
    if cfg.model.vocab_size >= cfg.data.tokenizer_vocab_size:
        return []
    what = f"smaller than the tokenizer's {cfg.data.tokenizer_vocab_size} entries"
    return [Problem("model.vocab_size", cfg.model.vocab_size, what, "at least data.tokenizer_vocab_size")]


RULES = (
    dense_layers_within_layers,
    groups_divide_experts,
    groups_per_token_exist,
    chosen_groups_hold_enough_experts,
    group_score_is_top_two,
    group_has_two_experts,
    bias_needs_sigmoid,
    rope_dimension_is_even,
    model_numbers_in_range,
    vocabulary_holds_the_tokenizer,
)
