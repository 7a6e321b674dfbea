"""A prompt that a rollout asks twice is answered anew: its random numbers are those of an id of its own."""

from types import SimpleNamespace

import pytest
import torch

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.rl import ask
from r1train.rollout.sampling import noise_of
from r1train.rollout.vllm_options import request_seed

PROMPTS = [Prompt(f"p{number}", "math", f"{number}?", "-", {}, (0, number)) for number in range(3)]


@pytest.fixture
def cfg():
    return load_config(["experiment=tiny", "stage=grpo", "stage.init_from=x"], check_files=False)


def asked(cfg, monkeypatch, *, ranks: int) -> dict[int, Prompt]:
    """Places 4 to 10 of a rollout over three prompts, as all ranks together are asked."""
    stream = SimpleNamespace(take=lambda position, count, *, late: [PROMPTS[n % 3] for n in range(count)])
    monkeypatch.setattr(ask.parallel_state, "get_data_parallel_world_size", lambda: ranks)
    found: dict[int, Prompt] = {}
    for rank in range(ranks):
        monkeypatch.setattr(ask.parallel_state, "get_data_parallel_rank", lambda rank=rank: rank)
        found |= ask.prompts_of_turn(cfg, SimpleNamespace(prompts=stream), ask.Turn(2, 64), start=4, count=7)
    return dict(sorted(found.items()))


def test_second_occurrence_has_an_id_of_its_own_in_every_layout(cfg, monkeypatch):
    found = asked(cfg, monkeypatch, ranks=1)
    assert [prompt.id for prompt in found.values()] == ["p0", "p1", "p2", "p0@7", "p1@8", "p2@9", "p0@10"]
    assert list(found) == list(range(4, 11))
    assert {prompt.question for prompt in found.values()} == {"0?", "1?", "2?"}, "nothing else of a prompt changes"
    assert asked(cfg, monkeypatch, ranks=2) == found


def test_both_engines_draw_other_numbers(cfg, monkeypatch):
    params = ask.sampling(cfg, ask.Turn(2, 64), attempt=0)
    ids = [prompt.id for prompt in asked(cfg, monkeypatch, ranks=1).values()]
    noise = noise_of([(name, index) for name in ids for index in range(2)], params)
    assert len(torch.unique(noise, dim=0)) == len(noise) == 14
    assert len({request_seed(params, name, index) for name in ids for index in range(2)}) == 14
