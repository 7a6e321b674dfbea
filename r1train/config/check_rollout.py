"""Rules about generation engines and routing replay."""

from dataclasses import fields

from r1train.config.schema import GrpoStage, RunConfig
from r1train.config.schema_model import FP8_BLOCK, DenseModelConfig, ModelConfig
from r1train.config.schema_rl import RolloutConfig
from r1train.config.widths import matrix_widths
from r1train.errors import Problem

# Keys of rollout that the native engine does not read.
VLLM_ONLY = ("gpu_memory_share", "push_mib", "engine_tp", "engine_whole_experts")
VOCABULARY_ROWS = 64  # vLLM pads vocabularies to multiples


def vllm_can_serve(cfg: RunConfig) -> list[Problem]:
    """What vLLM needs, and what its numbers would mean something else with."""
    rollout = cfg.rollout
    if rollout.engine != "vllm" or not cfg.generates:
        return []
    problems = []
    if cfg.cluster.device == "cpu":
        what = "vLLM needs a GPU, but cluster.device is cpu"
        problems.append(Problem("rollout.engine", "vllm", what, "native, or a cluster with cuda"))
    if cfg.optim.precision.startswith("fp8") and not rollout.fp8:
        what = "the trainer computes in FP8, and vLLM would in BF16 with what is pushed to it"
        problems.append(Problem("rollout.engine", "vllm", what, "rollout.fp8=true, native, or optim.precision=bf16"))
    if not 0 < rollout.gpu_memory_share < 1:
        what = "not a share of the GPU's memory"
        problems.append(Problem("rollout.gpu_memory_share", rollout.gpu_memory_share, what, "above 0, below 1"))
    return problems


def vllm_has_the_class(cfg: RunConfig) -> list[Problem]:
    """What convert/hf_export_config.py refuses of what other rules let pass: vLLM starts from the exported config."""
    if cfg.rollout.engine != "vllm" or not cfg.generates:
        return []
    found = (
        _deepseek_without_class(cfg.model) if isinstance(cfg.model, ModelConfig) else _dense_without_class(cfg.model)
    )
    fix = "rollout.engine=native, or what {} has"
    return [Problem(f"model.{name}", value, what, fix.format(classes)) for name, value, what, classes in found]


def _deepseek_without_class(model: ModelConfig) -> list[tuple[str, object, str, str]]:
    """(field, value, what is wrong, which classes are right)."""
    windows, found = model.attention_windows, list[tuple[str, object, str, str]]()
    if windows is not None and any(windows):
        what = "DeepSeek's classes in vLLM have no windows and would compute something else"
        found.append(("attention_windows", list(windows), what, "DeepSeek (null)"))
    gate = (model.router_score, model.router_bias, model.norm_topk_prob)
    v2 = gate == ("softmax", False, False) and model.num_expert_groups == 1 and model.mtp_depth == 0
    if gate != ("sigmoid", True, True) and not v2:
        what = f"no class for this gate (router_bias={model.router_bias}, norm_topk_prob={model.norm_topk_prob}, "
        what += f"num_expert_groups={model.num_expert_groups}, mtp_depth={model.mtp_depth})"
        classes = "DeepSeek-V3 (sigmoid, bias, normalised) or V2-Lite (softmax, neither of them, one group, no MTP)"
        found.append(("router_score", model.router_score, what, classes))
    return found


def _dense_without_class(model: DenseModelConfig) -> list[tuple[str, object, str, str]]:
    free_heads = model.head_dim * model.num_attention_heads != model.hidden_size
    if not model.qkv_bias or not (model.rope_scaling or free_heads):
        return []
    what = "Qwen2's class has neither rope_scaling of Llama 3 nor a free head_dim"
    return [("qkv_bias", True, what, "Llama (qkv_bias=false) or Qwen2")]


def vllm_settings_are_read(cfg: RunConfig) -> list[Problem]:
    rollout = cfg.rollout
    if rollout.engine == "vllm" or not cfg.generates:
        return []
    defaults = {field.name: field.default for field in fields(RolloutConfig)}
    return [
        Problem(
            f"rollout.{name}",
            vars(rollout)[name],
            "the native engine does not read it",
            "rollout.engine=vllm, or drop it",
        )
        for name in VLLM_ONLY
        if vars(rollout)[name] != defaults[name]
    ]


def grpo_draws_from_all_tokens(cfg: RunConfig) -> list[Problem]:
    """Of a value within its range: check_rl.py reports another."""
    top_p = cfg.rollout.top_p
    if not isinstance(cfg.stage, GrpoStage) or not 0 < top_p < 1:
        return []
    what = (
        "samples would come from the likeliest tokens alone while the trainer's probabilities are over all of them, "
        "and the engines do not report the same of the two"
    )
    return [Problem("rollout.top_p", top_p, what, "1.0; rollout.temperature makes samples likelier")]


def fp8_engine_fits(cfg: RunConfig) -> list[Problem]:
    """vLLM's FP8 kernels take whole blocks, and CUDA graphs would keep what MLA derives from the weights before."""
    rollout, key = cfg.rollout, "rollout.fp8"
    if not rollout.fp8 or not cfg.generates:
        return []
    if rollout.engine != "vllm":
        what = "the native engine computes with the training weights as they are"
        return [Problem(key, True, what, "false, or rollout.engine=vllm")]
    problems = []
    if cfg.optim.precision == "fp32":
        what = "vLLM's FP8 kernels compute BF16 activations"
        problems.append(Problem(key, True, what, "false, or optim.precision=bf16"))
    if rollout.cuda_graphs:
        what = "vLLM's CUDA graphs would go on with what it made of the weights that were loaded first"
        problems.append(Problem(key, True, what, "rollout.cuda_graphs=false"))
    widths = [one for one in matrix_widths(cfg.model, mtp=False) if one.in_engine and one.ends_block]
    ragged = {one.name: one.size for one in widths if one.size % FP8_BLOCK}
    if ragged:
        name = next(iter(ragged))
        what = f"vLLM's FP8 blocks are of {FP8_BLOCK}, which does not divide {name} = {ragged[name]}"
        problems.append(Problem(key, True, what, f"false, or a model whose {', '.join(ragged)} are multiples"))
    return problems


def engine_ranks_fit(cfg: RunConfig) -> list[Problem]:
    """Of an engine that several ranks share: they are of one pipeline stage, and vLLM can cut the model over them."""
    rollout, n, key = cfg.rollout, cfg.rollout.engine_tp, "rollout.engine_tp"
    if rollout.engine != "vllm" or not cfg.generates:
        return []
    problems = []
    if rollout.engine_whole_experts and (n == 1 or not isinstance(cfg.model, ModelConfig)):
        what = "there are no experts to deal out" if n > 1 else "an engine of one rank has all experts whole"
        problems.append(Problem("rollout.engine_whole_experts", True, what, "false, or rollout.engine_tp above 1"))
    dp, per_node = cfg.parallel.dp, cfg.cluster.processes_per_node
    if dp % n:
        what = f"the {dp} data-parallel ranks of a pipeline stage are not whole engines of {n}"
        problems.append(Problem(key, n, what, f"a divisor of {dp}"))
    elif per_node % n and n % per_node:
        what = f"nodes have {per_node} processes, so some engines would have parts of nodes"
        problems.append(Problem(key, n, what, f"a divisor of {per_node}, or whole nodes"))
    uncut = {} if n == 1 else {name: size for name, (size, unit) in _cut_sizes(cfg).items() if size % (n * unit)}
    if uncut:
        name, size = next(iter(uncut.items()))
        block = f" into FP8's blocks of {FP8_BLOCK}" if rollout.fp8 else ""
        what = f"vLLM cannot cut {name} = {size} over {n} ranks{block}"
        problems.append(Problem(key, n, what, f"a number that divides {', '.join(uncut)}"))
    return problems


def _cut_sizes(cfg: RunConfig) -> dict[str, tuple[int, int]]:
    """What vLLM cuts over the ranks of an engine: name -> (size, what every cut is a multiple of)."""
    model, block = cfg.model, FP8_BLOCK if cfg.rollout.fp8 else 1
    rows = -(-model.vocab_size // VOCABULARY_ROWS) * VOCABULARY_ROWS
    sizes = {"num_attention_heads": (model.num_attention_heads, 1), f"vocab_size in {VOCABULARY_ROWS}s": (rows, 1)}
    whole_experts = cfg.rollout.engine_whole_experts
    if isinstance(model, DenseModelConfig):
        # Keys and values of fewer heads than ranks would be there several times, and the sums over weights off.
        sizes["num_key_value_heads"] = (model.num_key_value_heads, 1)
    elif whole_experts and model.num_moe_layers:
        sizes["num_experts"] = (model.num_experts, 1)
    kinds = ("tp",) if whole_experts else ("tp", "experts")
    cut = [one for one in matrix_widths(model, mtp=False) if one.in_engine and one.cut in kinds]
    return sizes | {one.name: (one.size, block) for one in cut}


def routing_can_be_replayed(cfg: RunConfig) -> list[Problem]:
    rl = cfg.rl
    if not isinstance(cfg.stage, GrpoStage):
        return []
    problems = []
    key, value = "rl.routing_replay", rl.routing_replay
    if value != "none" and not isinstance(cfg.model, ModelConfig):
        problems.append(Problem(key, value, "the model has no experts", "none"))
    if value == "engine" and not rl.record_routing:
        problems.append(Problem(key, value, "the engine's experts are not recorded", "rl.record_routing=true"))
    if value != "none" and cfg.parallel.overlap_expert_all_to_all:
        what = "the overlap runs two micro-batches at once, and a router would not know which it has"
        problems.append(Problem(key, value, what, "none, or parallel.overlap_expert_all_to_all=false"))
    if rl.replay_reference and (value == "none" or rl.kl_coef == 0):
        what = "there is nothing to replay" if value == "none" else "without a KL term there is no reference policy"
        problems.append(Problem("rl.replay_reference", True, what, "false, or change that"))
    limit, recorded = rl.stop_if.flipped_experts_share_above, rl.record_routing and isinstance(cfg.model, ModelConfig)
    if limit is not None and not recorded:
        what = "experts are not recorded, so flips are not known"
        fix = "null, or rl.record_routing=true with a model that has experts"
        problems.append(Problem("rl.stop_if.flipped_experts_share_above", limit, what, fix))
    return problems


def asynchrony_fits(cfg: RunConfig) -> list[Problem]:
    asynchrony, budget, key = cfg.rollout.asynchrony, cfg.rollout.max_response_tokens, "rollout.asynchrony"
    if not isinstance(cfg.stage, GrpoStage):
        return []
    if asynchrony.mode != "partial":
        read = {"new_tokens": asynchrony.new_tokens is not None, "in_flight": asynchrony.in_flight != 1.0}
        what, fix = f"mode {asynchrony.mode} does not read it", f"drop it, or {key}.mode=partial"
        return [Problem(f"{key}.{name}", vars(asynchrony)[name], what, fix) for name, is_set in read.items() if is_set]
    problems = []
    new_tokens = asynchrony.new_tokens
    if new_tokens is None or not 0 < new_tokens < budget or budget % new_tokens:
        what = f"every piece of a response is as long, so it divides rollout.max_response_tokens = {budget}"
        problems.append(Problem(f"{key}.new_tokens", new_tokens, what, "such as an eighth of the budget"))
    if asynchrony.in_flight <= 1:
        what = "with no group more than a rollout trains on, each would wait for its last sample"
        problems.append(Problem(f"{key}.in_flight", asynchrony.in_flight, what, "above 1, such as 1.5"))
    if cfg.rl.sampling.keep != "all":
        what = "groups are trained on in the order of their prompts once they are whole; none is left out"
        problems.append(Problem("rl.sampling.keep", cfg.rl.sampling.keep, what, f"all, or another {key}.mode"))
    return problems


RULES = (
    vllm_can_serve,
    vllm_has_the_class,
    vllm_settings_are_read,
    grpo_draws_from_all_tokens,
    fp8_engine_fits,
    engine_ranks_fit,
    asynchrony_fits,
    routing_can_be_replayed,
)
