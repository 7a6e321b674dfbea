"""A response that two policies drew: each token's log-probability is that of the policy that drew it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.rl.pieces import Flight, joined, requests
from r1train.rollout.engine import SamplingParams

SIZE, PIECE = 4, 8
PARAMS = SamplingParams(samples_per_prompt=1, temperature=0.8, top_p=1.0, max_response_tokens=PIECE, seed=5, name="a")


@pytest.fixture(scope="module")
def model(device):
    from r1train.model.build import build_model

    made = build_model(config("single", model=YARN_MODEL), device)
    set_expert_bias(made)
    return made


def draw_piece(model, flights: list[Flight], *, version: int, name: str) -> int:
    """One pass of a partial rollout over the flights; how many samples were asked."""
    from r1train.rollout.native import NativeEngine

    asked = requests(flights, group_size=SIZE, budget=2 * PIECE)
    engine = NativeEngine(model, Tokens(), batch_size=64, record_routes=True)
    groups = engine.generate(list(asked.values()), replace(PARAMS, name=name), policy_version=version)
    for key, group in zip(asked, groups, strict=True):
        number, index = divmod(key, SIZE)
        flight, (piece,) = flights[number], group.samples
        flight.samples[index] = joined(
            flight.samples.get(index), piece, prompt_id=flight.prompt.id, index=index, decode=Tokens().decode
        )
    return len(asked)


def trainer_logprobs(model, flight: Flight, index: int) -> np.ndarray:
    """The training forward's log-probabilities of one whole response."""
    from r1train.rl.objective import LogprobObjective
    from r1train.train.forward import MicroBatch

    start = len(flight.prompt.token_ids)
    ids = torch.tensor([[*flight.prompt.token_ids, *flight.samples[index].tokens.tolist()]])
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    positions, ones = torch.arange(inputs.shape[1])[None], torch.ones_like(inputs, dtype=torch.float32)
    batch = MicroBatch(inputs, labels, positions, ones, cu_seqlens=None, extras={})
    with torch.no_grad():
        output = LogprobObjective(PARAMS.temperature).forward(model.eval(), batch)
    return output[0, start - 1 :].numpy()


def test_each_piece_has_the_logprobs_of_its_policy(model):
    flights = [Flight(place, prompt) for place, prompt in enumerate(prompts())]
    assert draw_piece(model, flights, version=3, name="first") == len(flights) * SIZE
    first_weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor is not None}
    with torch.no_grad():
        model.output_layer.weight.mul_(1.7)
        model.embedding.word_embeddings.weight.mul_(0.8)
    unfinished = [
        (flight, index) for flight in flights for index, one in flight.samples.items() if one.finish == "length"
    ]
    assert draw_piece(model, flights, version=5, name="second") == len(unfinished) > 10
    second = {(flight.place, index): trainer_logprobs(model, flight, index) for flight, index in unfinished}
    model.load_state_dict(first_weights, strict=False)
    for flight, index in unfinished:
        sample, first = flight.samples[index], trainer_logprobs(model, flight, index)
        assert sample.drawn_by == ((3, PIECE), (5, len(sample.tokens) - PIECE))
        by_version = np.concatenate([first[:PIECE], second[flight.place, index][PIECE:]])
        np.testing.assert_allclose(sample.logprobs, by_version, atol=1e-5, rtol=0)
        assert np.abs(first - second[flight.place, index]).max() > 0.05, "the policies differ"
        assert len(sample.routes) == len(flight.prompt.token_ids) + len(sample.tokens) - 1
    assert len({tuple(flight.samples[index].tokens) for flight, index in unfinished}) == len(unfinished)
