"""Responses drawn piece by piece, their ages, what is kept for a resume, and the order of rollouts and updates."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl import carried, orders
from r1train.rl.age import ages
from r1train.rl.ask import Turn
from r1train.rl.batch import TrainSample
from r1train.rl.carried import CarriedLost, Shard, carried_by_all, read_carried, write_carried
from r1train.rl.dynamic_sampling import Rollout, ScoredGroup
from r1train.rl.pieces import Flight, from_rows, has_ended, is_whole, joined, requests, to_rows
from r1train.rollout.types import Group, Sample
from r1train.train.state import TrainState

PROMPT = Prompt("p7", "gsm8k", "1+2?", "3", {}, (0, 3, 4))
BUDGET = 8
FIRST = Shard(dp_rank=0, dp_size=2, pp_rank=0, pp_size=1)
SECOND = replace(FIRST, dp_rank=1)


def piece(tokens: list[int], logprobs: list[float], *, version: int, ended: bool = False, computed: int = 0) -> Sample:
    return Sample(
        prompt_id="the request's",
        index=0,
        tokens=np.array(tokens),
        logprobs=np.array(logprobs, dtype=np.float32),
        finish="eos" if ended else "length",
        policy_version=version,
        text="the piece's",
        routes=np.full((computed, 1, 2), version, dtype=np.uint8),
    )


def decode(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def grown(before: Sample | None, more: Sample) -> Sample:
    return joined(before, more, prompt_id="p7", index=2, decode=decode)


def test_pieces_keep_the_logprobs_and_versions_they_were_drawn_with():
    """Three policies; the second drew in two passes of its rollout, and the third ended the response."""
    one = grown(None, piece([10, 11], [-1.0, -2.0], version=4, computed=4))
    assert (one.drawn_by, one.text, one.prompt_id, one.index) == (((4, 2),), "10 11", "p7", 2)
    two = grown(one, piece([12, 13], [-3.0, -4.0], version=6, computed=6))
    three = grown(two, piece([14, 15], [-5.0, -6.0], version=6, computed=8))
    four = grown(three, piece([16, 1], [-7.0, -8.0], version=10, ended=True, computed=10))
    assert three.drawn_by == ((4, 2), (6, 4))
    assert four.drawn_by == ((4, 2), (6, 4), (10, 2))
    assert (four.earlier, four.policy_version, four.finish) == (((4, 2), (6, 4)), 10, "eos")
    assert four.tokens.tolist() == [10, 11, 12, 13, 14, 15, 16, 1]
    assert four.logprobs.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0]
    assert four.text == "10 11 12 13 14 15 16", "without the end token"
    assert four.routes is not None and four.routes.shape == (3 + 8 - 1, 1, 2)
    assert np.unique(four.routes).tolist() == [10], "the last piece computed everything before it again"


def test_what_is_asked_in_a_pass():
    """Sample 0 ended, 1 goes on behind its two tokens, 2 has used its budget; another prompt has not begun."""
    ended = piece([5, 1], [-1, -1], version=4, ended=True)
    under_way = piece([5, 6], [-1, -1], version=4)
    used = piece([5] * BUDGET, [-1] * BUDGET, version=4)
    flights = [Flight(40, PROMPT, {0: ended, 1: under_way, 2: used}), Flight(43, replace(PROMPT, id="p8"))]
    assert [has_ended(sample, budget=BUDGET) for sample in (ended, under_way, used)] == [True, False, True]
    asked = requests(flights, group_size=3, budget=BUDGET)
    assert {key: (one.id, one.token_ids) for key, one in asked.items()} == {
        1: ("p7@40/1", (0, 3, 4, 5, 6)),
        3: ("p8@43/0", (0, 3, 4)),
        4: ("p8@43/1", (0, 3, 4)),
        5: ("p8@43/2", (0, 3, 4)),
    }
    assert [is_whole(flight, group_size=3, budget=BUDGET) for flight in flights] == [False, False]
    flights[0].samples[1] = ended
    assert is_whole(flights[0], group_size=3, budget=BUDGET)


def test_flights_survive_a_file(tmp_path):
    sample = grown(piece([10, 11], [-1 / 3, -0.1], version=4), piece([12, 1], [-0.7, -9.0], version=6, ended=True))
    scores = (Score(1.5, {"accuracy": 1.0, "format": 0.5}, None), Score(float("nan"), {}, "time-out"))
    flights = [
        Flight(40, PROMPT, {n: replace(sample, index=n) for n in (0, 1)}, scores),
        Flight(43, PROMPT, {0: replace(sample, index=0)}),
    ]
    write_carried(tmp_path, FIRST, to_rows(flights), step=6, now=4)
    found = from_rows(read_carried(tmp_path, FIRST, step=6))
    assert [(one.place, one.prompt, sorted(one.samples)) for one in found] == [(40, PROMPT, [0, 1]), (43, PROMPT, [0])]
    assert json.dumps(to_rows(found)) == json.dumps(to_rows(flights))
    assert found[0].scores[0] == scores[0] and found[1].scores is None
    assert found[0].scores[1].error == "time-out"
    assert Score.from_row(scores[0].to_row()) == scores[0]
    read = found[0].samples[0]
    assert read.logprobs.tobytes() == sample.logprobs.tobytes() and read.drawn_by == ((4, 2), (6, 2))


def test_files_are_kept_as_long_as_a_run_may_start_from_them(tmp_path):
    """Checkpoint 4 is there; 6 and 8 are not, and 8 is what is trained on at the moment."""
    for folder in ("step_00000004", "step_00000002"):
        (tmp_path / "checkpoints" / folder).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000004" / "_DONE").touch()
    for step in (2, 4, 6, 8):
        write_carried(tmp_path, FIRST, [], step=step, now=0)
    write_carried(tmp_path, SECOND, [], step=2, now=0)
    write_carried(tmp_path, FIRST, [{"a": 1}], step=10, now=8)
    names = sorted(path.name for path in (tmp_path / "rollouts" / "carried").iterdir())
    mine = [f"step_{step:08d}_dp_0000_pp_00.jsonl" for step in (4, 8, 10)]
    assert names == sorted([*mine, "step_00000002_dp_0001_pp_00.jsonl"]), "another rank's files are its own"
    assert read_carried(tmp_path, FIRST, step=10) == [{"a": 1}]
    assert read_carried(tmp_path, FIRST, step=12) is None


def test_samples_of_another_layout_are_not_taken(tmp_path):
    """Fewer ranks would drop samples, more would find none: both are refused."""
    for shard in (FIRST, SECOND):
        write_carried(tmp_path, shard, [], step=6, now=4)
    with pytest.raises(ValueError, match="written with 2 data-parallel ranks"):
        read_carried(tmp_path, replace(FIRST, dp_size=1), step=6)
    with pytest.raises(ValueError, match="other ranks' files are"):
        read_carried(tmp_path, Shard(dp_rank=2, dp_size=3, pp_rank=0, pp_size=1), step=6)


def test_every_rank_hears_of_a_lost_file(tmp_path, monkeypatch):
    """This rank finds its file, another one does not."""
    write_carried(tmp_path, FIRST, [{"a": 1}], step=6, now=4)
    told: list[str | None] = ["gone"]
    monkeypatch.setattr(carried.Shard, "here", staticmethod(lambda: FIRST))
    monkeypatch.setattr(carried, "gathered", lambda mine: [mine, *told])
    with pytest.raises(CarriedLost, match="for step 6 were drawn in another layout: gone. Fix: go on with the layout"):
        carried_by_all(tmp_path, step=6)
    told[0] = None
    assert carried_by_all(tmp_path, step=6) == [{"a": 1}]


def test_ages_by_hand():
    """At an update after 9 others: 3 tokens of policy 9, and 2 of policy 4 with 1 of policy 8 behind them."""

    def trained(drawn_by) -> TrainSample:
        return TrainSample("s", (0,), np.zeros(3, dtype=np.int64), 1.0, np.zeros(3), None, drawn_by)

    new, old = trained(((9, 3),)), trained(((4, 2), (8, 1)))
    assert ages([new, old], step=9) == (2 * 5 + 1 * 1, 6, 5)
    assert ages([new], step=12) == (9, 3, 3)
    assert ages([], step=3) == (0, 0, 0)
    assert ages([trained(((2, 0), (7, 3)))], step=8) == (3, 3, 1), "a piece without tokens has no age"


class Run:
    """A trainer of four rollouts of two updates, and a record of what was drawn with which weights."""

    def __init__(self, tmp_path, monkeypatch):
        mode = "rollout.asynchrony.mode=one-step-off"
        sizes = ["stage.steps=8", "stage.minibatches_per_step=2"]
        cfg = load_config(
            ["experiment=tiny", "stage=grpo", "stage.init_from=x", f"root={tmp_path}", mode, *sizes], check_files=False
        )
        self.trainer = SimpleNamespace(cfg=cfg, state=TrainState())
        self.drawn: list[tuple[int, int, int]] = []
        monkeypatch.setattr(orders, "roll_out", self.roll_out)
        monkeypatch.setattr(carried.Shard, "here", staticmethod(lambda: FIRST))
        monkeypatch.setattr(orders, "carried_by_all", lambda run_dir, *, step: read_carried(run_dir, FIRST, step=step))

    def roll_out(self, trainer, sampler, turn: Turn) -> Rollout:
        """The first rollout asks 64 prompts, later ones one more each."""
        self.drawn.append((turn.step, turn.position, trainer.state.step))
        sample = replace(piece([5, 1], [-1 / 3, -2.0], version=trainer.state.step, ended=True), prompt_id="p7")
        groups = [ScoredGroup(n, Group(prompt=PROMPT, samples=(sample,)), (Score(0.1, {}, None),)) for n in (0, 1, 2)]
        return Rollout([groups[0], groups[2]], groups, 64 + turn.step // 2, {"sampling/tries": 1.0})

    def updates(self, rollout: Rollout) -> None:
        state = self.trainer.state
        self.trainer.state = replace(state, step=state.step + 2, position=state.position + rollout.asked)


@pytest.fixture
def one_off(tmp_path, monkeypatch) -> Run:
    return Run(tmp_path, monkeypatch)


def test_one_step_off_draws_before_the_updates(one_off):
    """(step it is for, prompts before it, weights that draw it): the first two have the same; at the end none."""
    order, versions = orders.open_order(one_off.trainer, None), []
    for _ in range(4):
        rollout = order.take()
        versions.append(rollout.chosen[0].group.samples[0].policy_version)
        one_off.updates(rollout)
    assert one_off.drawn == [(0, 0, 0), (2, 64, 0), (4, 64 + 65, 2), (6, 64 + 65 + 66, 4)]
    assert versions == [0, 0, 2, 4]


def test_one_step_off_goes_on_with_what_was_drawn(one_off):
    """A run that starts again at update 4 has weights 4, but trains on what weights 2 drew."""
    order = orders.open_order(one_off.trainer, None)
    for _ in range(2):
        one_off.updates(order.take())
    expected = order.take()
    again = orders.open_order(one_off.trainer, None)
    one_off.drawn.clear()
    found = again.take()
    assert one_off.drawn == [(6, 64 + 65 + 66, 4)], "the rollout for update 4 is not drawn again"
    assert json.dumps(orders.rollout_to_rows(found)) == json.dumps(orders.rollout_to_rows(expected))
    assert [one.place for one in found.chosen] == [0, 2] and len(found.generated) == 3
    assert found.chosen[0].group.samples[0].policy_version == 2


def test_the_table_has_every_mode():
    modes = load_config(["experiment=tiny"], check_files=False).rollout.asynchrony.__annotations__["mode"].__args__
    assert set(modes) == set(orders.ORDERS)
