"""Sampling many prompts from a checkpoint into a folder of scored samples: resumable, over ranks and array jobs.

<run>/samples/from_<place>.jsonl holds finished prompts, one file per batch of them, and settings.json what they were
sampled with. A run that is started again samples only what is missing; a part of an array job (stage.part) has its
folder inside that of the run that gathers the parts, which finds them there.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron.core import parallel_state

from r1train.config.schema_rl import RewardConfig
from r1train.data.files import write_rows
from r1train.data.prompts import Prompt, PromptSet
from r1train.dist.comm import of_rank
from r1train.dist.init import is_rank0
from r1train.errors import DataError
from r1train.eval.generate import gather_at_rank0, local_part
from r1train.log.atomic import write_atomically
from r1train.model.build import build_model
from r1train.reward.candidate import candidates_of, prompt_to_row
from r1train.reward.samples import FOLDER, SETTINGS, read_samples, sample_folders
from r1train.reward.score import Scorer, check_tasks
from r1train.rl.replica_scorer import ReplicaScorer
from r1train.rl.watch import generate_and_score
from r1train.rollout.engine import Engine, SamplingParams
from r1train.stages.session import Session
from r1train.stages.training import build_engine
from r1train.train.checkpoint import load_module
from r1train.train.stop import StopRequested, StopSignal


@dataclass(frozen=True)
class Asked:
    """What is sampled: prompts in their order, from one checkpoint, with these parameters."""

    prompts: list[Prompt]
    parent: Path
    params: SamplingParams

    @property
    def policy_version(self) -> int:
        """Optimizer steps of the checkpoint's weights."""
        return int(self.parent.name.removeprefix("step_"))


def what_is_asked(job: Session, parent: Path) -> Asked:
    """The first num_prompts of the shuffled prompts. Raises DataError as PromptSet does."""
    cfg, stage = job.cfg, job.cfg.stage
    prompts = PromptSet(stage.prompts, job.tokenizer, seed=cfg.seed, max_prompt_tokens=cfg.rollout.max_prompt_tokens)
    params = SamplingParams(
        samples_per_prompt=stage.samples_per_prompt,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
        max_response_tokens=cfg.rollout.max_response_tokens,
        seed=cfg.seed,
        # A part draws the same numbers as the run that gathers the parts.
        name=Path(cfg.step).parts[0],
    )
    return Asked(prompts.take(0, min(stage.num_prompts, len(prompts))), parent, params)


def sample_missing(job: Session, asked: Asked) -> None:
    """Sample and score every prompt of this part that no file has yet. Collective.

    Raises DataError when the folder holds samples of other settings; StopRequested, between batches, when asked to;
    before anything is sampled, what check_tasks raises.
    """
    cfg, stage = job.cfg, job.cfg.stage
    check_tasks(cfg.reward, {prompt.task for prompt in asked.prompts})
    done = _finished(job, asked)
    places = range(stage.part - 1, len(asked.prompts), stage.parts)
    missing = [place for place in places if asked.prompts[place].id not in done]
    if not missing:
        return
    module = build_model(cfg, job.device)
    load_module(module, asked.parent)
    engine, stop = build_engine(job, module), StopSignal()
    # What one pass of the engine takes: larger batches would only lose more when the run is killed.
    size = max(1, cfg.rollout.batch_size // stage.samples_per_prompt) * parallel_state.get_data_parallel_world_size()
    with ReplicaScorer(_with_language(cfg.reward)) as scorer:
        for start in range(0, len(missing), size):
            batch = missing[start : start + size]
            rows = _sample_batch(engine, scorer, asked, batch)
            if is_rank0():
                write_rows(cfg.run_dir / FOLDER / f"from_{batch[0]:08d}.jsonl", rows)
                print(f"{cfg.step}: {start + len(batch)} of {len(missing)} prompts sampled", flush=True)
            if start + size < len(missing) and stop.agreed():
                left = len(missing) - start - size
                raise StopRequested(f"{cfg.step}: stopped as asked, {left} of {len(missing)} prompts are left")


def _finished(job: Session, asked: Asked) -> set[str]:
    """Ids of the prompts that have samples, of this run and of its parts; known to every rank."""
    found: set[str] = set()
    if is_rank0():
        settings = _settings(asked, Path(job.cfg.stage.prompts))
        for folder in sample_folders(job.cfg.run_dir):
            _check_settings(folder, settings)
        _write_settings(job.cfg.run_dir / FOLDER, settings)
        samples = read_samples(job.cfg.run_dir)
        found = {candidates[0].prompt_id for candidates in samples.values()}
    return of_rank(found, 0)


def _sample_batch(engine: Engine, scorer: Scorer, asked: Asked, batch: list[int]) -> list[dict]:
    """Rows of the prompts at these places, from all ranks, in order; on rank 0, [] elsewhere. Collective."""
    mine = local_part(batch)
    prompts = [asked.prompts[place] for place in mine]
    scored = generate_and_score(engine, scorer, prompts, asked.params, policy_version=asked.policy_version)
    rows = [prompt_to_row(place, candidates_of(*pair)) for place, pair in zip(mine, scored, strict=True)]
    return gather_at_rank0(rows)


def _with_language(reward: RewardConfig) -> RewardConfig:
    """Language consistency is looked at here also where the policy was trained without it (R1-Zero)."""
    return reward if reward.language > 0 else replace(reward, language=1.0)


def _settings(asked: Asked, prompts: Path) -> dict[str, object]:
    """What all samples of a folder have in common."""
    return {
        **asdict(asked.params),
        "checkpoint": str(asked.parent),
        "prompts_sha256": hashlib.sha256(prompts.read_bytes()).hexdigest(),
    }


def _check_settings(folder: Path, settings: dict[str, object]) -> None:
    path = folder / SETTINGS
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in settings if found.get(name) != settings[name]]
    if differ:
        name = differ[0]
        raise DataError(
            f"{folder} holds samples of other settings: {', '.join(differ)} ({name} was {found.get(name)!r}, now "
            f"{settings[name]!r}). Fix: another step or root, the old settings, or delete that folder"
        )


def _write_settings(folder: Path, settings: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
