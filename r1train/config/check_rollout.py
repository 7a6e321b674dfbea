"""Rules about generation engines and routing replay."""

from r1train.config.schema import EvaluateStage, GrpoStage, RejectStage, RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.errors import Problem


def vllm_can_serve(cfg: RunConfig) -> list[Problem]:
    """What vLLM needs, and what its numbers would mean something else with."""
    rollout = cfg.rollout
    if rollout.engine != "vllm" or not _generates(cfg):
        return []
    problems = []
    if cfg.cluster.device == "cpu":
        what = "vLLM needs a GPU, but cluster.device is cpu"
        problems.append(Problem("rollout.engine", "vllm", what, "native, or a cluster with cuda"))
    if cfg.optim.precision.startswith("fp8"):
        what = "weights are pushed to vLLM in BF16 or FP32; quantising them on the way is not written"
        problems.append(Problem("rollout.engine", "vllm", what, "native, or optim.precision=bf16"))
    if rollout.top_p < 1:
        what = "vLLM reports log-probabilities after top-p, the trainer computes them before it"
        problems.append(Problem("rollout.top_p", rollout.top_p, what, "1.0, or rollout.engine=native"))
    if not 0 < rollout.gpu_memory_share < 1:
        what = "not a share of the GPU's memory"
        problems.append(Problem("rollout.gpu_memory_share", rollout.gpu_memory_share, what, "above 0, below 1"))
    return problems


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


def graphs_are_vllms(cfg: RunConfig) -> list[Problem]:
    if not cfg.rollout.cuda_graphs or cfg.rollout.engine == "vllm":
        return []
    what = "the native engine's expert layers ask the host how many tokens each expert gets, which no graph can hold"
    return [Problem("rollout.cuda_graphs", True, what, "false, or rollout.engine=vllm")]


def _generates(cfg: RunConfig) -> bool:
    return isinstance(cfg.stage, GrpoStage | RejectStage | EvaluateStage) or cfg.evaluate_after


RULES = (vllm_can_serve, graphs_are_vllms, asynchrony_fits, routing_can_be_replayed)
