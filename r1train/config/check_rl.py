"""Rules about generation, rewards, GRPO, rejection sampling and evaluation."""

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


def generation_without_tensor_parallelism(cfg: RunConfig) -> list[Problem]:
    generates = isinstance(cfg.stage, GrpoStage | RejectStage | EvaluateStage) or cfg.evaluate_after
    if not generates or cfg.parallel.tp == 1:
        return []
    what = "the native engine generates over data, expert and pipeline parallel ranks only"
    return [Problem("parallel.tp", cfg.parallel.tp, what, "1 for stages that generate; checkpoints fit any layout")]


def group_has_two_samples(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage) or cfg.stage.samples_per_prompt >= 2:
        return []
    what = "an advantage compares the samples of one prompt, so a group needs two"
    return [Problem("stage.samples_per_prompt", cfg.stage.samples_per_prompt, what, "2 or more (R1: 16)")]


def keeps_no_more_than_sampled(cfg: RunConfig) -> list[Problem]:
    stage = cfg.stage
    if not isinstance(stage, RejectStage) or stage.keep_per_prompt <= stage.samples_per_prompt:
        return []
    what = f"more than the {stage.samples_per_prompt} samples of a prompt"
    return [Problem("stage.keep_per_prompt", stage.keep_per_prompt, what, "at most stage.samples_per_prompt")]


def clip_and_kl_not_negative(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, GrpoStage):
        return []
    return [
        Problem(f"stage.{name}", value, "below 0", "write 0 or more")
        for name, value in (
            ("clip_low", cfg.stage.clip_low),
            ("clip_high", cfg.stage.clip_high),
            ("kl_coef", cfg.stage.kl_coef),
        )
        if value < 0
    ]


def sampling_temperature_positive(cfg: RunConfig) -> list[Problem]:
    problems = []
    if cfg.rollout.temperature <= 0:
        what = "sampling needs a temperature above 0"
        problems.append(Problem("rollout.temperature", cfg.rollout.temperature, what, "1.0 as in R1, or 0.7"))
    if cfg.eval.temperature < 0:
        problems.append(Problem("eval.temperature", cfg.eval.temperature, "below 0", "0 (greedy) or more"))
    return problems


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
    prompt, limit = cfg.rollout.max_prompt_tokens, cfg.model.max_position_embeddings
    return [
        Problem(
            f"{name}.max_response_tokens", value, f"with a prompt of {prompt} beyond the model's {limit} positions", fix
        )
        for name, value, fix in (
            ("rollout", cfg.rollout.max_response_tokens, f"at most {limit - prompt}"),
            ("eval", cfg.eval.max_response_tokens, f"at most {limit - prompt}"),
        )
        if prompt + value > limit
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
    if cfg.reward.grader_timeout_s <= 0:
        what = "a grader needs time to answer"
        problems.append(Problem("reward.grader_timeout_s", cfg.reward.grader_timeout_s, what, "seconds above 0"))
    return problems


RULES = (
    checkpoints_fall_between_rollouts,
    generation_without_tensor_parallelism,
    group_has_two_samples,
    keeps_no_more_than_sampled,
    clip_and_kl_not_negative,
    sampling_temperature_positive,
    top_p_is_a_share,
    sample_fits_training_sequence,
    sample_fits_positions,
    reward_weights_count,
)
