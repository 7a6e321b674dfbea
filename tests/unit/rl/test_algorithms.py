"""Every named algorithm on packed rows: against plain loops, and the same gradient however it is packed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from r1train.config.load import load_config
from r1train.config.schema_rl import CorrectionConfig, RlConfig
from r1train.rl.aggregate import GlobalCounts
from r1train.rl.batch import TrainSample, pack_rows
from r1train.rl.loss import SampleTokens, TokenLogprobs, token_loss
from r1train.rl.segments import segment_ids

VOCABULARY, WIDTH, PAD, BUDGET = 11, 6, 0, 12
NAMES = ("grpo", "grpo_r1", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo")
CORRECTIONS = {
    "plain": CorrectionConfig(),
    "tis": CorrectionConfig(weight="tis", weight_high=1.1, off_policy_delta=0.01),
    "sequence": CorrectionConfig(
        weight="sequence-tis", weight_high=2.0, sequence_mask="geometric", mask_low=0.98, mask_high=1.03
    ),
}


def algorithm(name: str, correction: str = "plain") -> RlConfig:
    cfg = load_config(
        [
            "experiment=tiny",
            "stage=grpo",
            "stage.init_from=x",
            f"rl={name}",
            "rl.overlong.rule=none",
            "rl.overlong.buffer_tokens=null",
        ],
        check_files=False,
    ).rl
    # A KL term everywhere, in the form that also depends on the old policy, so that it is tested with each of them.
    return replace(cfg, kl_coef=0.3, kl_estimator="unbiased", correction=CORRECTIONS[correction])


class Policy(torch.nn.Module):
    """Logits from the token and its position in its own sequence: what a row's neighbours are cannot matter."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.token, self.place = parameter(VOCABULARY, WIDTH), parameter(2 * BUDGET, WIDTH)
        self.head = parameter(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.token[tokens] + self.place[positions.clamp(max=2 * BUDGET - 1)])
        return (hidden @ self.head).log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def moved(policy: Policy, scale: float, seed: int) -> Policy:
    """Another policy nearby, without gradients."""
    other, generator = Policy(0), torch.Generator().manual_seed(seed)
    for there, here in zip(other.parameters(), policy.parameters(), strict=True):
        noise = torch.randn(here.shape, generator=generator, dtype=torch.float64)
        there.data.copy_(here.data + scale * noise)
        there.requires_grad_(False)
    return other


POLICY = Policy(1)
OLD, REFERENCE = moved(POLICY, 0.25, 2), moved(POLICY, 0.4, 3)


def samples() -> list[TrainSample]:
    """Nine responses of 1 to 12 tokens; the engine's logprobs are a little off the old policy's."""
    generator = np.random.default_rng(4)
    made = []
    for index, length in enumerate([5, 12, 1, 7, 3, 9, 2, 11, 4]):
        ids = generator.integers(1, VOCABULARY, 3 + length)
        tokens = torch.from_numpy(ids)
        old = OLD(tokens[:-1], torch.arange(len(ids) - 1), tokens[1:])[2:].numpy()
        made.append(
            TrainSample(
                id=str(index),
                prompt=tuple(ids[:3].tolist()),
                response=ids[3:],
                advantage=[1.5, -0.7, 0.4, -1.1][index % 4],
                engine_logprobs=old + 0.05 * generator.standard_normal(length),
            )
        )
    return made


def packed_gradient(cfg: RlConfig, split: list[list[TrainSample]], seq_length: int) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of one step: each part of the split is packed by itself, as a rank or a micro-batch is."""
    everything = [sample for part in split for sample in part]
    counts = GlobalCounts(
        sequences=len(everything),
        tokens=sum(len(sample.response) for sample in everything),
        max_response_tokens=BUDGET,
    )
    POLICY.zero_grad()
    total = 0.0
    for part in split:
        for row in pack_rows(part, counts, seq_length=seq_length, pad_id=PAD, aggregation=cfg.aggregation):
            given = (row.tokens, row.positions, row.labels)
            result = token_loss(
                TokenLogprobs(
                    policy=POLICY(*given),
                    old=OLD(*given),
                    engine=row.extras["engine_logprobs"].double(),
                    reference=REFERENCE(*given),
                ),
                SampleTokens(
                    advantages=row.extras["advantages"], mask=row.loss_mask, segments=segment_ids(row.cu_seqlens)
                ),
                cfg,
            )
            loss = (result.loss * row.extras["weights"]).sum()
            loss.backward()
            total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in POLICY.parameters()]).clone()


def plain_loss(cfg: RlConfig, everything: list[TrainSample]) -> torch.Tensor:
    """The papers' formulas with loops over sequences and tokens, each algorithm written out."""
    tokens_in_all = sum(len(sample.response) for sample in everything)
    total = torch.zeros((), dtype=torch.float64)
    for sample in everything:
        ids = torch.tensor([*sample.prompt, *sample.response])
        given = (ids[:-1], torch.arange(len(ids) - 1), ids[1:])
        new, old, ref = POLICY(*given)[2:], OLD(*given)[2:], REFERENCE(*given)[2:]
        engine = torch.from_numpy(sample.engine_logprobs.astype(np.float32)).double()
        length, advantage = len(sample.response), float(np.float32(sample.advantage))
        ratio = (new - old).exp()
        rho, mean_drift = (old - engine).exp(), (engine - new.detach()).mean().item()
        sequence_ratio = (new - old).mean().exp()
        sequence_loss = torch.zeros((), dtype=torch.float64)
        for t in range(length):
            if cfg.name == "cispo":
                policy = -min(ratio[t].item(), 5.0) * advantage * new[t]
            elif cfg.name == "gspo":
                held = sequence_ratio.clamp(1 - 3e-4, 1 + 4e-4)
                policy = -torch.minimum(sequence_ratio * advantage, held * advantage)
            elif cfg.name == "gspo_token":
                of_token = sequence_ratio.detach() * (new[t] - new[t].detach()).exp()
                policy = -torch.minimum(of_token * advantage, of_token.clamp(1 - 3e-4, 1 + 4e-4) * advantage)
            else:
                low, high = {"grpo_r1": (-9, 11), "dapo": (0.8, 1.28)}.get(cfg.name, (0.8, 1.2))
                policy = -torch.minimum(ratio[t] * advantage, ratio[t].clamp(low, high) * advantage)
            if cfg.correction.weight == "tis":
                policy = policy * min(rho[t].item(), 1.1) * (0.0 if advantage < 0 and mean_drift > 0.01 else 1.0)
            if cfg.correction.weight == "sequence-tis":
                kept = 0.98 <= rho.log().mean().exp().item() <= 1.03
                policy = policy * (min(rho.prod().item(), 2.0) if kept else 0.0)
            x = (ref[t] - new[t]).exp()
            sequence_loss = sequence_loss + policy + 0.3 * ratio[t] * (x - x.log() - 1)
        if cfg.name in ("dapo", "cispo"):
            total = total + sequence_loss / tokens_in_all
        elif cfg.name == "dr_grpo":
            total = total + sequence_loss / (BUDGET * len(everything))
        else:
            total = total + sequence_loss / (length * len(everything))
    return total


@pytest.mark.parametrize("correction", list(CORRECTIONS))
@pytest.mark.parametrize("name", NAMES)
def test_against_plain_loops(name, correction):
    cfg, everything = algorithm(name, correction), samples()
    loss, found = packed_gradient(cfg, [everything], seq_length=40)
    expected = plain_loss(cfg, everything)
    gradients = torch.autograd.grad(expected, list(POLICY.parameters()))
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(found, flat, atol=1e-6 * flat.abs().max().item(), rtol=1e-5)
    assert flat.abs().max() > 1e-3


@pytest.mark.parametrize("correction", list(CORRECTIONS))
@pytest.mark.parametrize("name", NAMES)
def test_packing_micro_batches_and_ranks_do_not_matter(name, correction):
    cfg, everything = algorithm(name, correction), samples()
    loss, expected = packed_gradient(cfg, [everything], seq_length=200)
    for split, seq_length in (
        ([everything[::-1]], 16),
        ([[sample] for sample in everything], 15),
        ([everything[:2], everything[2:]], 32),
        ([everything[1::2], [], everything[::2]], 24),
    ):
        other, gradient = packed_gradient(cfg, split, seq_length)
        assert other == pytest.approx(loss, rel=1e-5)
        worst = (gradient - expected).abs().max() / expected.abs().max()
        assert worst <= 1e-5, f"{worst} with rows of {seq_length}"


def test_the_rules_above_are_at_work():
    """The data clip on both sides and lose sequences to the masks; otherwise the comparisons would show little."""
    everything = samples()
    counts = GlobalCounts(sequences=9, tokens=54, max_response_tokens=BUDGET)
    row = pack_rows(everything, counts, seq_length=200, pad_id=PAD, aggregation="token-mean")[0]
    given = (row.tokens, row.positions, row.labels)
    for name, correction in (("grpo", "tis"), ("gspo", "sequence")):
        result = token_loss(
            TokenLogprobs(
                policy=POLICY(*given),
                old=OLD(*given),
                engine=row.extras["engine_logprobs"],
                reference=REFERENCE(*given),
            ),
            SampleTokens(advantages=row.extras["advantages"], mask=row.loss_mask, segments=segment_ids(row.cu_seqlens)),
            algorithm(name, correction),
        )
        assert result.sums["tokens"].item() == 54
        assert result.sums["clipped_low"] > 0 and result.sums["clipped_high"] > 0
        assert 0 < result.sums["left_out"] < 54
