"""What joins RL late: the update it begins with, weights, tasks without a verifier."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from r1train.config.load import load_config
from r1train.config.schema_reward import PreferenceConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.preference import with_preferences
from r1train.reward.score import Scorer, check_tasks
from r1train.rl import ask
from r1train.rl.late import late_prompts_count, with_late_start
from r1train.train.state import TrainState

HELPFUL = PreferenceConfig(
    name="helpful", checkpoint="x", weight=0.5, scored="summary", from_step=3, tasks=("general",)
)
PAIRS = [
    (Prompt(str(n), task, "?", "-", {}, (0,)), f"response {n}") for n, task in enumerate(["general", "math", "general"])
]


class Known:
    """Stands in for a reward model: knows its scores."""

    def __init__(self, cfg: PreferenceConfig, values: list[float | None]):
        self.cfg, self.values, self.asked = cfg, values, 0

    def score(self, pairs) -> list[float | None]:
        assert pairs == PAIRS
        self.asked += 1
        return self.values


def test_weighted_from_its_step_on():
    scores = [Score(1.0, {"format": 1.0}, None), Score(2.0, {"accuracy": 1.0}, None), Score(math.nan, {}, "crash")]
    helpful = Known(HELPFUL, [4.0, None, 2.0])
    safety = Known(replace(HELPFUL, name="safety", weight=1.0, from_step=1), [-1.0, None, 0.0])
    before = with_preferences(scores, PAIRS, [helpful, safety], step=2)
    assert (helpful.asked, safety.asked, before[0].value) == (0, 1, 0.0)
    after = with_preferences(scores, PAIRS, [helpful, safety], step=3)
    assert after[0] == Score(2.0, {"format": 1.0, "preference/helpful": 4.0, "preference/safety": -1.0}, None)
    assert after[1] is scores[1]
    assert math.isnan(after[2].value) and after[2].error == "crash"


def test_late_prompts_begin_with_their_update():
    overrides = ["experiment=tiny", "stage=grpo", "stage.init_from=x"]
    cfg = load_config(overrides, check_files=False)
    assert not late_prompts_count(cfg, 12)
    late = "stage.late_prompts={prompts: general.jsonl, share: 0.5, from_step: 7}"
    cfg = load_config([*overrides, late], check_files=False)
    assert [late_prompts_count(cfg, step) for step in (1, 6, 7, 12)] == [False, False, True, True]


@pytest.fixture
def late_cfg():
    """Late prompts join with update 7; a rollout serves two updates."""
    late = "stage.late_prompts={prompts: general.jsonl, share: 0.5, from_step: 7}"
    sizes = "stage.minibatches_per_step=2"
    return load_config(["experiment=tiny", "stage=grpo", "stage.init_from=x", late, sizes], check_files=False)


def test_position_of_the_late_prompts_belongs_to_the_state(late_cfg):
    """Rollouts of 70 prompts; the one for updates 7 and 8 is the first with late prompts, and stays it."""
    state, found = TrainState(), []
    for rollout in range(6):
        state = with_late_start(late_cfg, state)
        found.append(state.late_from)
        state = replace(state, step=2 * rollout + 2, position=70 * (rollout + 1))
    assert found == [None, None, None, 210, 210, 210]
    assert with_late_start(late_cfg, TrainState(step=6, position=210)).late_from == 210, "the same after a resume"
    assert TrainState(6, 5, 210, 70).after_step(tokens=3, samples=4) == TrainState(7, 8, 214, 70)


def test_what_a_rollout_asks(late_cfg, monkeypatch):
    """One that is drawn ahead of its updates begins the late prompts itself; later ones know where they began."""
    asked = []
    monkeypatch.setattr(ask.parallel_state, "get_data_parallel_rank", lambda: 1)
    monkeypatch.setattr(ask.parallel_state, "get_data_parallel_world_size", lambda: 2)

    def take(position, count, *, late):
        asked.append((position, late))
        return [Prompt(f"p{place}", "math", "?", "-", {}, (0,)) for place in range(position, position + count)]

    sampler = SimpleNamespace(prompts=SimpleNamespace(take=take))
    for turn in (ask.Turn(4, 140), ask.Turn(6, 210), ask.Turn(8, 280, 210)):
        found = ask.prompts_of_turn(late_cfg, sampler, turn, start=4, count=4)
        assert {place: prompt.id for place, prompt in found.items()} == {
            place: f"p{turn.position + place}" for place in (5, 7)
        }
    assert asked == [(144, None), (214, 210), (284, 210)]


@pytest.mark.parametrize("response", ["<think>so</think><answer>a poem</answer>", "no format at all"])
def test_open_task_has_no_accuracy(response):
    cfg = load_config(["experiment=tiny"], check_files=False).reward
    prompt = Prompt("g", "general", "Write a poem about the sea for me, please.", "-", {}, (0,))
    with Scorer(replace(cfg, language=0.0)) as scorer:
        check_tasks(scorer.cfg, {"general"})
        (score,) = scorer.score([(prompt, response)])
    assert score.error is None and set(score.parts) == {"format"}
    assert score.value == score.parts["format"] == float(response.startswith("<think>"))
