"""Sampling that was interrupted goes on where it was, parts come together, other settings are refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.reward.samples import read_samples
from r1train.rl import replica_scorer
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, Sample
from r1train.stages import sampling
from r1train.train.stop import StopRequested

PROMPTS = [Prompt(f"p{n}", "chain_sum", f"{n}+1=", str(n + 1), {}, (0,)) for n in range(10)]
PARAMS = SamplingParams(samples_per_prompt=4, temperature=1.0, top_p=1.0, max_response_tokens=40, seed=5, name="reject")


class Engine:
    """Answers every prompt, the last one first; ends like a killed process when it is asked the fatal one."""

    def __init__(self, fatal: str | None = None):
        self.fatal, self.asked = fatal, []

    def generate(self, prompts, params, *, policy_version, watcher):
        if self.fatal in [prompt.id for prompt in prompts]:
            raise KeyboardInterrupt
        self.asked.append([prompt.id for prompt in prompts])
        groups = [Group(prompt=prompt, samples=(self._sample(prompt, policy_version),)) for prompt in prompts]
        for place, group in reversed(list(enumerate(groups))):
            watcher.finished(place, group.prompt, group.samples[0])
            watcher.poll()
        return groups

    def _sample(self, prompt, policy_version):
        text = f"<think>so</think><answer>{-1 if prompt.id == 'p4' else prompt.answer}</answer>"
        tokens, logprobs = np.array([7, 1]), np.zeros(2, dtype=np.float32)
        return Sample(
            prompt_id=prompt.id,
            index=0,
            tokens=tokens,
            logprobs=logprobs,
            finish="eos",
            policy_version=policy_version,
            text=text,
        )


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """sample(engine, *overrides, stop=False): a run of one process without a model, in tmp_path."""
    (tmp_path / "prompts.jsonl").write_text("x")

    def run(engine: Engine, *overrides: str, stop: bool = False, params: SamplingParams = PARAMS) -> None:
        fakes = {
            "build_model": lambda cfg, device: None,
            "load_module": lambda module, folder: None,
            "build_engine": lambda job, module: engine,
            "local_part": list,
            "gather_at_rank0": list,
            "parallel_state": SimpleNamespace(get_data_parallel_world_size=lambda: 1),
            "of_rank": lambda value, src: value,
            "StopSignal": lambda: SimpleNamespace(agreed=lambda: stop),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(sampling, name, fake)
        monkeypatch.setattr(replica_scorer, "decides", lambda: True)
        monkeypatch.setattr(replica_scorer, "from_deciding_rank", lambda value: value)
        base = ["experiment=tiny", "stage=reject", f"root={tmp_path}", "stage.init_from=x", "rollout.batch_size=12"]
        cfg = load_config([*base, f"stage.prompts={tmp_path}/prompts.jsonl", *overrides], check_files=False)
        asked = sampling.Asked(PROMPTS, Path("rl1/checkpoints/step_00000012"), params)
        sampling.sample_missing(SimpleNamespace(cfg=cfg, device=None), asked)

    return run


def ids(*numbers: int) -> list[str]:
    return [f"p{number}" for number in numbers]


def test_an_interrupted_run_keeps_what_is_finished(sample, tmp_path):
    killed = Engine(fatal="p7")
    with pytest.raises(KeyboardInterrupt):
        sample(killed)
    assert killed.asked == [ids(0, 1, 2), ids(3, 4, 5)]  # 12 sequences at a time, 4 of a prompt
    again = Engine()
    sample(again)
    assert again.asked == [ids(6, 7, 8), ids(9)]
    found = read_samples(tmp_path / "reject")
    assert [one.prompt_id for (one,) in found.values()] == ids(*range(10))
    assert found[3][0].policy_version == 12
    # The verdicts came last prompt first: the one wrong answer is p4's.
    assert [one.score.parts["accuracy"] for (one,) in found.values()] == [1.0] * 4 + [0.0] + [1.0] * 5
    nothing = Engine()
    sample(nothing)
    assert nothing.asked == []


def test_a_stop_falls_between_batches(sample):
    engine = Engine()
    with pytest.raises(StopRequested, match="7 of 10 prompts are left"):
        sample(engine, stop=True)
    assert engine.asked == [ids(0, 1, 2)]


def test_parts_come_together(sample, tmp_path):
    engine = Engine()
    sample(engine, "step=reject/part_0002", "stage.part=2", "stage.parts=3")
    assert engine.asked == [ids(1, 4, 7)]
    engine = Engine(fatal="p9")
    with pytest.raises(KeyboardInterrupt):
        sample(engine, "step=reject/part_0001", "stage.part=1", "stage.parts=3")
    # The third part never ran, the first one died in the middle: the gathering run samples what is missing.
    gathering = Engine()
    sample(gathering)
    assert gathering.asked == [ids(2, 5, 8), ids(9)]
    assert len(read_samples(tmp_path / "reject")) == 10


def test_other_settings_are_refused(sample, tmp_path):
    sample(Engine())
    hot = SamplingParams(**{**vars(PARAMS), "temperature": 0.5})
    with pytest.raises(DataError, match=r"other settings: temperature \(temperature was 1.0, now 0.5\)"):
        sample(Engine(), params=hot)
    (tmp_path / "prompts.jsonl").write_text("y")
    with pytest.raises(DataError, match="other settings: prompts_sha256"):
        sample(Engine())
    assert json.loads((tmp_path / "reject/samples/settings.json").read_text())["temperature"] == 1.0
