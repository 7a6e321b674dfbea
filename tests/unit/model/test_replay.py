"""Routing replay: recorded experts stay when the router's weights change, gates follow the new weights."""

from dataclasses import replace

import pytest
import torch
from tiny import MODEL, Tokens, config, prompts, set_expert_bias

from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=2, temperature=0.9, top_p=1.0, max_response_tokens=12, seed=1, name="replay")
TOPK, LAYERS = 2, 2


@pytest.fixture
def model(device):
    from r1train.model.build import build_model

    made = build_model(config("single", model=replace(MODEL, sequence_loss_coef=0.0)), device)
    set_expert_bias(made)
    return made


def routers(model) -> list:
    return [block.mlp.router for block in model.decoder.layers[1:]]


def perturb(model) -> None:
    """Other router weights: the experts of most tokens change."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for router in routers(model):
            router.weight += 0.3 * torch.randn(router.weight.shape, generator=generator)


def sampled(model):
    """One row per sample, packed by hand: [(prompt and response ids, routes)]."""
    from r1train.rollout.native import NativeEngine

    groups = NativeEngine(model, Tokens(), batch_size=32, record_routes=True).generate(
        prompts(), PARAMS, policy_version=0
    )
    return [(group.prompt, sample) for group in groups for sample in group.samples]


def micro_batches(model, samples) -> list:
    """The samples packed as for an update, with their routes."""
    from r1train.rl.batch import TrainSample, pack_samples, with_routes

    made = [TrainSample(f"{p.id}/{s.index}", p.token_ids, s.tokens, 1.0, s.logprobs, s.routes) for p, s in samples]
    packed = pack_samples(
        made, seq_length=64, pad_id=2, aggregation="token-mean", max_response_tokens=PARAMS.max_response_tokens
    )
    return with_routes(packed.batches, made, shape=(LAYERS, TOPK))


def maps_and_gates(model, batch, routing) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(gates, map) of every router in one forward of the batch."""
    from r1train.rl.objective import LogprobObjective

    seen: list = []
    handles = [router.register_forward_hook(lambda _m, _i, out: seen.append(out)) for router in routers(model)]
    with torch.no_grad():
        LogprobObjective(0.9, routing=routing).forward(model, batch)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def test_routes_are_the_experts_of_the_training_forward(model):
    from r1train.model.replay import Routing

    samples = sampled(model)
    for prompt, sample in samples:
        assert sample.routes.dtype == "uint8"
        assert sample.routes.shape == (len(prompt.token_ids) + len(sample.tokens) - 1, LAYERS, TOPK)
    model.eval()
    for batch in micro_batches(model, samples):
        for layer, (_, used) in enumerate(maps_and_gates(model, batch, Routing(model, replay=False))):
            ids = batch.extras["routes"][0, :, layer].long()
            known = ids[:, 0] >= 0
            assert known.sum() > 30 and (~known).any()
            expected = torch.zeros_like(used).scatter(1, ids.clamp(min=0), True)
            assert torch.equal(used[known], expected[known])


def test_replayed_experts_stay_and_gates_follow_the_new_weights(model):
    from r1train.model.replay import Routing

    samples = sampled(model)
    batch = micro_batches(model, samples)[0]
    perturb(model)
    model.eval()
    routing = Routing(model, replay=True)
    seen = maps_and_gates(model, batch, routing)
    counts = routing.counts()
    ids = batch.extras["routes"][0].long()
    pairs = int((ids[..., 0] >= 0).sum())
    assert (counts.expected, counts.compared, counts.replayed) == (pairs, pairs, pairs)
    assert counts.flipped > pairs // 4
    for layer, (gates, used) in enumerate(seen):
        known = ids[:, layer, 0] >= 0
        expected = torch.zeros_like(used).scatter(1, ids[:, layer].clamp(min=0), True)
        assert torch.equal(used[known], expected[known])
        assert (gates[known].sum(dim=1) - MODEL.routed_scaling_factor).abs().max() < 1e-5
    # The first expert layer's gates by hand: V3's rule on the new weights, at the old experts.
    hidden: list = []
    handle = routers(model)[0].register_forward_hook(lambda _m, inputs, _o: hidden.append(inputs[0]))
    maps_and_gates(model, batch, Routing(model, replay=True))
    handle.remove()
    known = ids[:, 0, 0] >= 0
    scores = torch.sigmoid(hidden[0][:, 0] @ routers(model)[0].weight.T).gather(1, ids[:, 0].clamp(min=0))
    expected = 2.5 * scores / scores.sum(dim=1, keepdim=True)
    torch.testing.assert_close(seen[0][0].gather(1, ids[:, 0].clamp(min=0))[known], expected[known])


def test_without_replay_the_flips_are_counted_and_nothing_changes(model):
    from r1train.model.replay import Routing

    samples = sampled(model)
    batch = micro_batches(model, samples)[0]
    model.eval()
    before = Routing(model, replay=False)
    maps_and_gates(model, batch, before)
    assert before.counts().flipped == 0
    perturb(model)
    plain = maps_and_gates(model, batch, None)
    routing = Routing(model, replay=False)
    compared = maps_and_gates(model, batch, routing)
    for (gates, used), (expected_gates, expected) in zip(compared, plain, strict=True):
        assert torch.equal(gates, expected_gates) and torch.equal(used, expected)
    ids, counts = batch.extras["routes"][0].long(), routing.counts()
    flipped = sum(
        int((~used.gather(1, ids[:, layer].clamp(min=0)).all(dim=1) & (ids[:, layer, 0] >= 0)).sum())
        for layer, (_, used) in enumerate(plain)
    )
    assert (counts.flipped, counts.replayed) == (flipped, 0)
    assert flipped > 10


def gradients(device, *, recompute: bool, replay: bool) -> tuple[dict[str, torch.Tensor], list]:
    """Gradient of one replayed update on two micro-batches, after the router moved."""
    from r1train.model.build import build_model
    from r1train.model.replay import Routing
    from r1train.rl.objective import LogprobObjective

    cfg = config("single", model=replace(MODEL, sequence_loss_coef=0.0))
    if recompute:
        cfg = replace(cfg, parallel=replace(cfg.parallel, recompute_modules=("moe",)))
    model = build_model(cfg, device)
    set_expert_bias(model)
    batches = micro_batches(model, sampled(model))
    assert len(batches) > 1
    perturb(model)
    model.train()
    routing = Routing(model, replay=True) if replay else None
    objective = LogprobObjective(0.9, routing=routing)
    # As a pipeline does: two forwards are under way before the first backward.
    outputs = [objective.forward(model, batch) for batch in batches]
    for output, batch in zip(outputs, batches, strict=True):
        (output * batch.loss_mask).sum().backward()
    counts = routing.counts() if routing else None
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, [counts, batches]


def test_recomputed_forwards_replay_too(device):
    plain, (counts, batches) = gradients(device, recompute=False, replay=True)
    again, (recounted, _) = gradients(device, recompute=True, replay=True)
    pairs = sum(int((batch.extras["routes"][..., 0] >= 0).sum()) for batch in batches)
    assert (counts.expected, counts.replayed) == (pairs, pairs)
    assert (recounted.expected, recounted.replayed) == (2 * pairs, 2 * pairs)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)
    unreplayed, _ = gradients(device, recompute=False, replay=False)
    router = "decoder.layers.1.mlp.router.weight"
    assert plain[router].abs().max() > 0
    assert (plain[router] - unreplayed[router]).abs().max() > 0.01 * plain[router].abs().max()


def test_old_pass_records_what_it_chose(model):
    from r1train.model.replay import Routing

    batch = micro_batches(model, sampled(model))[0]
    perturb(model)
    model.eval()
    routing = Routing(model, replay=False, record=True)
    seen = maps_and_gates(model, batch, routing)
    assert routing.recorded[0].shape == (1, 64, LAYERS, TOPK) and routing.recorded[0].dtype == torch.int16
    for layer, (_, used) in enumerate(seen):
        ids = routing.recorded[0][0, :, layer].long()
        assert torch.equal(torch.zeros_like(used).scatter(1, ids, True), used)


def test_a_replay_that_was_not_used_is_an_error(model, monkeypatch):
    from r1train.model.replay import Routing
    from r1train.rl.routing import ReplayNotUsed, replay_gauge

    batch = micro_batches(model, sampled(model))[0]
    model.eval()
    good = Routing(model, replay=True)
    maps_and_gates(model, batch, good)
    assert replay_gauge(good.counts(), "update") == {"replayed_share/update": 1.0}
    # What a fused router does: it never asks.
    monkeypatch.setattr(routers(model)[1], "router_replay", None)
    bad = Routing(model, replay=True)
    maps_and_gates(model, batch, bad)
    with pytest.raises(ReplayNotUsed, match=r"update: \d+ of \d+ pairs"):
        replay_gauge(bad.counts(), "update")
