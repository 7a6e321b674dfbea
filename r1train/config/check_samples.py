"""Rules about sets made from samples, reward models and their place in RL."""

from pathlib import PurePath
from urllib.parse import urlsplit

from r1train.config.layout import virtual_stages
from r1train.config.schema import GrpoStage, PairsStage, RejectStage, RewardModelStage, RunConfig
from r1train.config.schema_samples import JudgeConfig
from r1train.errors import Problem


def keeps_no_more_than_sampled(cfg: RunConfig) -> list[Problem]:
    stage = cfg.stage
    if not isinstance(stage, RejectStage) or stage.keep_per_prompt <= stage.samples_per_prompt:
        return []
    what = f"more than the {stage.samples_per_prompt} samples of a prompt"
    return [Problem("stage.keep_per_prompt", stage.keep_per_prompt, what, "at most stage.samples_per_prompt")]


def part_is_one_of_the_parts(cfg: RunConfig) -> list[Problem]:
    stage, problems = cfg.stage, []
    if not isinstance(stage, RejectStage):
        return []
    if stage.part > stage.parts:
        problems.append(Problem("stage.part", stage.part, f"beyond stage.parts = {stage.parts}", "1 to stage.parts"))
    if stage.parts > 1 and len(PurePath(cfg.step).parts) != 2:
        what = "a part has a run folder inside that of the run that gathers the parts"
        problems.append(Problem("step", cfg.step, what, f"step=reject/part_{stage.part:04d}"))
    return problems


def shares_are_shares(cfg: RunConfig) -> list[Problem]:
    """Shares of the sets within [0, 1], or [0, 1) where nothing would be left."""
    stage, values = cfg.stage, dict[str, tuple[float | None, bool]]()
    if isinstance(stage, RejectStage):
        values |= {
            "mix_share": (stage.mix_share, False),
            "filters.language": (stage.filters.language, True),
            "filters.repetition": (stage.filters.repetition, True),
        }
    if isinstance(stage, RewardModelStage):
        values["heldout_share"] = (stage.heldout_share, False)
    if isinstance(stage, GrpoStage) and stage.late_prompts is not None:
        values["late_prompts.share"] = (stage.late_prompts.share, True)
    return [
        Problem(f"stage.{name}", value, "not a share", "0 to 1" if may_be_one else "from 0 to below 1")
        for name, (value, may_be_one) in values.items()
        if value is not None and not (0 <= value < 1 or (may_be_one and value == 1))
    ]


def near_copies_share_something(cfg: RunConfig) -> list[Problem]:
    """At a share of 0 every response is a copy of the one before it."""
    share = cfg.stage.near_duplicate if isinstance(cfg.stage, RejectStage) else None
    if share is None or 0 < share <= 1:
        return []
    return [Problem("stage.near_duplicate", share, "outside (0, 1]", "such as 0.8, or null to keep near copies")]


def share_needs_rows_to_mix(cfg: RunConfig) -> list[Problem]:
    stage = cfg.stage
    if not isinstance(stage, RejectStage) or stage.mix is not None or stage.mix_share is None:
        return []
    return [Problem("stage.mix_share", stage.mix_share, "there is nothing to mix in", "null, or stage.mix=FILE.jsonl")]


def judges_can_be_asked(cfg: RunConfig) -> list[Problem]:
    stage, judges = cfg.stage, dict[str, JudgeConfig | None]()
    if isinstance(stage, RejectStage):
        judges = {"judge": stage.judge, "rewrite": stage.rewrite}
    if isinstance(stage, PairsStage):
        judges = {"judge": stage.judge}
    problems = []
    for name, judge in judges.items():
        if judge is None:
            continue
        address = urlsplit(judge.url)
        if address.scheme not in ("http", "https") or not address.netloc:
            problems.append(
                Problem(f"stage.{name}.url", judge.url, "not the address of a server", "http://HOST:8000/v1")
            )
        if judge.timeout_s <= 0 or judge.wait_s < 0:
            times = [judge.timeout_s, judge.wait_s]
            problems.append(Problem(f"stage.{name}.timeout_s", times, "no time to answer", "seconds above 0"))
        if not 0 <= judge.most_failures <= 1:
            problems.append(Problem(f"stage.{name}.most_failures", judge.most_failures, "not a share", "0 to 1"))
    return problems


def pairs_know_what_is_better(cfg: RunConfig) -> list[Problem]:
    stage = cfg.stage
    if not isinstance(stage, PairsStage):
        return []
    if (stage.prefer == "judge") != (stage.judge is not None):
        what = f"stage.prefer is {stage.prefer}, and {'a' if stage.judge else 'no'} judge is given"
        return [Problem("stage.judge", None, what, "prefer=judge together with a judge (url, model), or neither")]
    if not 0 <= stage.least_difference < 2:
        what = "verdicts lie within -2 and 2"
        return [Problem("stage.least_difference", stage.least_difference, what, "R1: 1.0")]
    return []


def pairs_are_packed_on_one_rank(cfg: RunConfig) -> list[Problem]:
    """A pair's two scores meet in one loss, and only a rank's last chunk has the head."""
    if not isinstance(cfg.stage, RewardModelStage):
        return []
    problems = []
    if cfg.parallel.cp > 1:
        problems.append(Problem("parallel.cp", cfg.parallel.cp, "cuts the samples that a reward model scores", "1"))
    if _virtual_stages(cfg) > 1:
        what = "a reward model trains without virtual pipeline stages"
        problems.append(Problem("parallel.pp_layout", cfg.parallel.pp_layout, what, f"{cfg.parallel.pp} stages"))
    if cfg.stage.batch_size % cfg.parallel.dp:
        what = f"not divisible by dp = {cfg.parallel.dp}"
        problems.append(Problem("stage.batch_size", cfg.stage.batch_size, what, f"a multiple of {cfg.parallel.dp}"))
    return problems


def _virtual_stages(cfg: RunConfig) -> int:
    """1 for a layout that cannot be read: another rule reports that."""
    try:
        return virtual_stages(cfg.parallel)
    except ValueError:
        return 1


def preferences_have_names_of_their_own(cfg: RunConfig) -> list[Problem]:
    names = [one.name for one in cfg.reward.preferences]
    problems = [
        Problem(f"reward.preferences.{index}.name", name, "this name stands twice", "give each its own name")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    return problems + [
        Problem(f"reward.preferences.{index}.weight", one.weight, "a reward's weight below 0", "write 0 or more")
        for index, one in enumerate(cfg.reward.preferences)
        if one.weight < 0
    ]


def late_parts_come(cfg: RunConfig) -> list[Problem]:
    """What begins in the last part of RL begins before it ends, and with a rollout."""
    stage = cfg.stage
    if not isinstance(stage, GrpoStage):
        return []
    starts = {
        f"reward.preferences.{index}.from_step": one.from_step for index, one in enumerate(cfg.reward.preferences)
    }
    if stage.late_prompts is not None:
        starts["stage.late_prompts.from_step"] = stage.late_prompts.from_step
    each = stage.minibatches_per_step
    problems = [
        Problem(
            key, start, f"the stage ends after step {stage.steps}, so it would never begin", f"at most {stage.steps}"
        )
        for key, start in starts.items()
        if start > stage.steps
    ]
    return problems + [
        Problem(key, start, f"in the middle of a rollout, which serves {each} steps", f"1 + a multiple of {each}")
        for key, start in starts.items()
        if start <= stage.steps and (start - 1) % each
    ]


RULES = (
    keeps_no_more_than_sampled,
    part_is_one_of_the_parts,
    shares_are_shares,
    near_copies_share_something,
    share_needs_rows_to_mix,
    judges_can_be_asked,
    pairs_know_what_is_better,
    pairs_are_packed_on_one_rank,
    preferences_have_names_of_their_own,
    late_parts_come,
)
