"""Rules about generation, rewards, GRPO, rejection sampling and evaluation."""

from dataclasses import asdict

from r1train.config.schema import EvaluateStage, GrpoStage, RejectStage, RunConfig
from r1train.errors import Problem


def checkpoints_fall_between_rollouts(cfg: RunConfig) -> list[Problem]:
    """A step is one policy update; a rollout serves minibatches_per_step of them and is not kept in checkpoints."""
    stage = cfg.stage
    if not isinstance(stage, GrpoStage):
        return []
    what = f"in the middle of a rollout, which serves {stage.minibatches_per_step} steps (minibatches_per_step)"
    fix = f"a multiple of {stage.minibatches_per_step}"
    return [
        Problem(f"stage.{name}", value, what, fix)
        for name, value in (
            ("steps", stage.steps),
            ("save_every_steps", stage.save_every_steps),
            ("reference_refresh_steps", stage.reference_refresh_steps),
        )
        if value % max(stage.minibatches_per_step, 1) != 0
    ]


def own_forward_is_of_the_old_policy(cfg: RunConfig) -> list[Problem]:
    """Only a rollout's first update computes with the weights that the rollout began with."""
    stage, rl = cfg.stage, cfg.rl
    if not isinstance(stage, GrpoStage) or rl.old_logprobs == "pass":
        return []
    if stage.minibatches_per_step > 1:
        what = f"the later ones of {stage.minibatches_per_step} updates per rollout have other weights"
        return [Problem("rl.old_logprobs", rl.old_logprobs, what, "pass, or stage.minibatches_per_step=1")]
    if rl.routing_replay == "old":
        what = "rl.routing_replay=old replays what the pass recorded"
        return [Problem("rl.old_logprobs", rl.old_logprobs, what, "pass, or another rl.routing_replay")]
    if rl.stop_if.flipped_experts_share_above is not None:
        what = "rl.stop_if.flipped_experts_share_above reads what the pass counts"
        return [Problem("rl.old_logprobs", rl.old_logprobs, what, "pass, or no such limit")]
    return []


def vllm_without_tensor_parallelism(cfg: RunConfig) -> list[Problem]:
    if not cfg.generates or cfg.parallel.tp == 1 or cfg.rollout.engine == "native":
        return []
    what = "what is pushed to vLLM comes from data, expert and pipeline parallel ranks only"
    return [Problem("parallel.tp", cfg.parallel.tp, what, "1, or rollout.engine=native; checkpoints fit any layout")]


def group_has_two_samples(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage) or cfg.stage.samples_per_prompt >= 2:
        return []
    what = "an advantage compares the samples of one prompt, so a group needs two"
    return [Problem("stage.samples_per_prompt", cfg.stage.samples_per_prompt, what, "2 or more (R1: 16)")]


def clip_and_kl_not_negative(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage):
        return []
    return [
        Problem(f"rl.{name}", value, "below 0", "write 0 or more")
        for name, value in vars(cfg.rl).items()
        if name in ("clip_low", "clip_high", "kl_coef", "sequence_loss_coef") and value < 0
    ]


def kl_estimator_has_a_gradient(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage) or cfg.rl.kl_estimator != "k1" or cfg.rl.kl_coef == 0:
        return []
    what = "the gradient of k1 is that of ln pi, whose mean is zero: as a loss it holds nothing back"
    return [Problem("rl.kl_estimator", "k1", what, "k3 (R1), k2, unbiased (DeepSeek-V3.2), or rl.kl_coef=0")]


def sequence_ratio_takes_sequence_mean(cfg: RunConfig) -> list[Problem]:
    sequence_ratio = cfg.rl.policy_loss in ("gspo", "gspo-token")
    if not isinstance(cfg.stage, GrpoStage) or not sequence_ratio or cfg.rl.aggregation == "seq-mean-token-mean":
        return []
    what = f"{cfg.rl.policy_loss} is defined per sequence, so every sequence weighs the same"
    return [Problem("rl.aggregation", cfg.rl.aggregation, what, "seq-mean-token-mean")]


def sequence_rules_see_whole_sequences(cfg: RunConfig) -> list[Problem]:
    rules = cfg.rl.correction
    used = {
        "rl.policy_loss": cfg.rl.policy_loss in ("gspo", "gspo-token"),
        "rl.correction.weight": rules.weight == "sequence-tis",
        "rl.correction.sequence_mask": rules.sequence_mask != "none",
        "rl.correction.off_policy_delta": rules.off_policy_delta is not None,
    }
    if not isinstance(cfg.stage, GrpoStage) or cfg.parallel.cp == 1:
        return []
    what = "adds up whole sequences, and context parallelism cuts them"
    return [Problem(key, True, what, "a rule per token, or parallel.cp=1") for key, named in used.items() if named]


def corrections_have_their_bounds(cfg: RunConfig) -> list[Problem]:
    """Every bound that the named rule reads is there and above 0, low below high; one that nothing reads is absent."""
    if not isinstance(cfg.stage, GrpoStage):
        return []
    rules = cfg.rl.correction
    read = {
        "weight_low": rules.weight == "icepop",
        "weight_high": rules.weight != "none",
        "mask_low": rules.sequence_mask != "none",
        "mask_high": rules.sequence_mask != "none",
    }
    problems = []
    for name, wanted in read.items():
        key, value = f"rl.correction.{name}", vars(rules)[name]
        rule = "weight" if name.startswith("weight") else "sequence_mask"
        if wanted and (value is None or value <= 0):
            what = f"{rule} {vars(rules)[rule]} needs this bound, above 0"
            problems.append(Problem(key, value, what, "TIS: 2.0; IcePop: 0.5 to 5.0; geometric: 0.999 to 1.001"))
        elif value is not None and not wanted:
            what = f"{rule} {vars(rules)[rule]} does not read this bound"
            problems.append(Problem(key, value, what, f"null, or another rl.correction.{rule}"))
        elif name.endswith("_high") and value is not None and value < 1:
            what = "is below the ratio of an engine that agrees, so it would change every token"
            problems.append(Problem(key, value, what, "1 or more"))
    for rule, low, high in (
        ("weight", rules.weight_low, rules.weight_high),
        ("mask", rules.mask_low, rules.mask_high),
    ):
        if low is not None and high is not None and low >= high:
            problems.append(
                Problem(f"rl.correction.{rule}_low", low, f"not below {rule}_high = {high}", "a smaller one")
            )
    if rules.off_policy_delta is not None and rules.off_policy_delta <= 0:
        what = "every sequence that lost probability would be left out"
        problems.append(Problem("rl.correction.off_policy_delta", rules.off_policy_delta, what, "above 0, or null"))
    return problems


def overlong_buffer_fits(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage):
        return []
    key, rule, buffer = "rl.overlong.buffer_tokens", cfg.rl.overlong.rule, cfg.rl.overlong.buffer_tokens
    budget = cfg.rollout.max_response_tokens
    if rule != "penalty":
        what = f"rule {rule} does not read it"
        return [] if buffer is None else [Problem(key, buffer, what, "null, or rl.overlong.rule=penalty")]
    if buffer is None or buffer >= budget:
        what = f"the penalty grows over the last part of the budget of {budget} tokens (rollout.max_response_tokens)"
        return [Problem(key, buffer, what, f"below {budget}; DAPO: a fifth of the budget, {max(budget // 5, 1)}")]
    return []


def sampling_can_fill_a_rollout(cfg: RunConfig) -> list[Problem]:
    sampling = cfg.rl.sampling
    if not isinstance(cfg.stage, GrpoStage):
        return []
    if sampling.keep == "all" and (sampling.oversample, sampling.max_tries) != (1.0, 1):
        what = "every group is kept, so the first try fills the rollout"
        return [Problem("rl.sampling", str(sampling), what, "rl.sampling.keep=mixed, or drop oversample and max_tries")]
    if sampling.oversample < 1.0:
        what = "fewer prompts than are missing"
        return [Problem("rl.sampling.oversample", sampling.oversample, what, "1.0 or more")]
    if sampling.keep == "mixed" and cfg.reward.accuracy == 0:
        what = "groups are kept by their accuracy, which weighs nothing in the reward"
        return [Problem("rl.sampling.keep", sampling.keep, what, "all, or a reward.accuracy above 0")]
    return []


def stops_can_be_met(cfg: RunConfig) -> list[Problem]:
    problems = []
    if isinstance(cfg.stage, GrpoStage) and cfg.rl.stop_if.kl_above is not None and cfg.rl.kl_coef == 0:
        what = "without a KL term there is no reference policy, so the KL is not known"
        problems.append(Problem("rl.stop_if.kl_above", cfg.rl.stop_if.kl_above, what, "null, or rl.kl_coef above 0"))
    problems += [
        Problem(f"rl.stop_if.{name}", limit, "a share is never above 1, so this never stops", "below 1, or null")
        for name, limit in vars(cfg.rl.stop_if).items()
        if limit is not None and limit >= 1 and name.endswith("_share_above")
    ]
    return problems + [
        Problem(f"rl.stop_if.{name}", limit, "a gauge that is never below 0 would stop the first step", "0 or more")
        for name, limit in vars(cfg.rl.stop_if).items()
        # A reward has penalties and may be below 0.
        if limit is not None and limit < 0 and name != "reward_below"
    ]


def sampling_temperature_positive(cfg: RunConfig) -> list[Problem]:
    problems = []
    if cfg.rollout.temperature <= 0:
        what = (
            "sampling needs a temperature above 0: greedy samples of one prompt are all equal, so a group has no "
            "advantages to learn from, and rejection sampling no choice"
        )
        problems.append(Problem("rollout.temperature", cfg.rollout.temperature, what, "1.0 as in R1, or 0.7"))
    if cfg.eval.temperature < 0:
        problems.append(Problem("eval.temperature", cfg.eval.temperature, "below 0", "0 (greedy) or more"))
    return problems


def greedy_answers_once(cfg: RunConfig) -> list[Problem]:
    if cfg.eval.temperature != 0 or cfg.eval.samples_per_problem == 1:
        return []
    what = "eval.temperature is 0: greedy decoding gives the same answer every time"
    fix = "1, or an eval.temperature above 0"
    return [Problem("eval.samples_per_problem", cfg.eval.samples_per_problem, what, fix)]


def top_p_is_a_share(cfg: RunConfig) -> list[Problem]:
    return [
        Problem(f"{name}.top_p", value, "outside (0, 1]", "a share of the probability; 1.0 keeps every token")
        for name, value in (("rollout", cfg.rollout.top_p), ("eval", cfg.eval.top_p))
        if not 0 < value <= 1
    ]


def sample_fits_training_sequence(cfg: RunConfig) -> list[Problem]:
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    if not isinstance(cfg.stage, GrpoStage) or longest <= cfg.stage.seq_length:
        return []
    what = f"shorter than a sample may be: max_prompt_tokens + max_response_tokens = {longest}"
    fix = f"{longest} or more, or shorter rollouts"
    return [Problem("stage.seq_length", cfg.stage.seq_length, what, fix)]


def sample_fits_positions(cfg: RunConfig) -> list[Problem]:
    """Of the sampling that this stage does: a GRPO stage evaluates only where evaluate_after says so."""
    prompt, limit = cfg.rollout.max_prompt_tokens, cfg.model.distinct_positions
    samples = {
        "rollout": (isinstance(cfg.stage, GrpoStage | RejectStage), cfg.rollout.max_response_tokens),
        "eval": (isinstance(cfg.stage, EvaluateStage) or cfg.evaluate_after, cfg.eval.max_response_tokens),
    }
    what = f"with a prompt of {prompt} beyond the {limit} positions that the model can tell apart"
    fix = f"at most {limit - prompt}, or raise model.max_position_embeddings (and model.yarn.factor)"
    return [
        Problem(f"{name}.max_response_tokens", response, what, fix)
        for name, (is_done, response) in samples.items()
        if is_done and prompt + response > limit
    ]


def reward_weights_count(cfg: RunConfig) -> list[Problem]:
    weights = {"accuracy": cfg.reward.accuracy, "format": cfg.reward.format, "language": cfg.reward.language}
    problems = [
        Problem(f"reward.{name}", value, "a reward's weight below 0", "write 0 or more")
        for name, value in weights.items()
        if value < 0
    ]
    if not any(weights.values()):
        what = "every weight of the reward is 0, so nothing could be learned"
        problems.append(Problem("reward", weights, what, "give accuracy a weight"))
    if cfg.reward.repetition < 0:
        what = "a penalty's weight below 0 would reward repetition"
        problems.append(Problem("reward.repetition", cfg.reward.repetition, what, "write 0 or more"))
    if cfg.reward.repetition_words < 1:
        what = "the repeated n-grams need at least one word"
        problems.append(Problem("reward.repetition_words", cfg.reward.repetition_words, what, "1 or more"))
    problems += [
        Problem(f"reward.code.{name}", value, "a limit of the code sandbox that nothing can keep", "a number above 0")
        for name, value in asdict(cfg.reward.code).items()
        if not isinstance(value, bool) and value <= 0
    ]
    if cfg.reward.code.total_s < cfg.reward.code.time_s:
        what = f"all tests of a sample get less time than time_s = {cfg.reward.code.time_s:g} gives one of them"
        problems.append(Problem("reward.code.total_s", cfg.reward.code.total_s, what, "time_s or more"))
    if cfg.reward.grader_timeout_s <= 0:
        what = "a grader needs time to answer"
        problems.append(Problem("reward.grader_timeout_s", cfg.reward.grader_timeout_s, what, "seconds above 0"))
    return problems


RULES = (
    checkpoints_fall_between_rollouts,
    own_forward_is_of_the_old_policy,
    vllm_without_tensor_parallelism,
    group_has_two_samples,
    clip_and_kl_not_negative,
    kl_estimator_has_a_gradient,
    sequence_ratio_takes_sequence_mean,
    sequence_rules_see_whole_sequences,
    corrections_have_their_bounds,
    overlong_buffer_fits,
    sampling_can_fill_a_rollout,
    stops_can_be_met,
    sampling_temperature_positive,
    greedy_answers_once,
    top_p_is_a_share,
    sample_fits_training_sequence,
    sample_fits_positions,
    reward_weights_count,
)
