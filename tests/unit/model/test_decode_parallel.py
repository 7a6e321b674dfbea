"""Generation switches sequence parallelism off where it is on, and puts it back, also after an error."""

from dataclasses import replace

import pytest
import torch
from tiny import MODEL, Tokens, config, prompts

from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=1, temperature=1.0, top_p=1.0, max_response_tokens=2, seed=1, name="whole")


@pytest.fixture
def model(device):
    """With the switches as tensor parallelism sets them, and one layer's copy of the config (attention windows)."""
    from r1train.model.build import build_model

    made = build_model(config("single", model=replace(MODEL, attention_windows=(3, None, 5))), device)
    made.config.sequence_parallel = True
    made.decoder.layers[0].self_attention.core_attention.config.sequence_parallel = True
    made.decoder.layers[0].self_attention.linear_proj.sequence_parallel = True
    made.embedding.scatter_to_sequence_parallel = True
    made.embedding.reduce_scatter_embeddings = True
    made.embedding.word_embeddings.reduce_scatter_embeddings = True
    return made


def switches(model) -> dict[tuple[str, str, str], bool]:
    names = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")
    return {
        (path, kind, name): vars(holder)[name]
        for path, module in model.named_modules()
        for kind, holder in (("module", module), ("config", vars(module).get("config")))
        if holder is not None
        for name in names
        if name in vars(holder)
    }


def test_all_off_inside_and_as_before_afterwards(model):
    from r1train.model.decode_parallel import whole_sequences

    before = switches(model)
    assert sum(before.values()) > 20 and not all(before.values())
    with whole_sequences(model):
        assert switches(model).keys() == before.keys() and not any(switches(model).values())
    assert switches(model) == before


def test_an_error_in_generation_leaves_training_as_it_was(model, monkeypatch):
    from r1train.rollout import steps
    from r1train.rollout.native import NativeEngine

    seen = []

    def broken(model, *_rest, **_options) -> torch.Tensor:
        seen.append(any(switches(model).values()))
        raise RuntimeError("out of memory")

    before = switches(model)
    monkeypatch.setattr(steps, "stage_forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        NativeEngine(model, Tokens(), batch_size=4).generate(prompts(), PARAMS, policy_version=0)
    assert seen == [False]
    assert switches(model) == before
