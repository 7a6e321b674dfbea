"""Schedules against DeepSeek-V3's published values (report section 4.2)."""

import math

import pytest
from omegaconf import OmegaConf

from r1train.config.load import load_config
from r1train.config.schema_train import LrConfig, Piecewise, Segment
from r1train.train.schedules import Progress, batch_size_at, value_at

T = 1_000_000_000_000


def from_yaml(repo, name: str) -> Piecewise:
    """One schedule of conf/lr/v3.yaml."""
    tree = OmegaConf.to_container(OmegaConf.load(repo / "conf" / "lr" / "v3.yaml"))[name]
    return Piecewise(**{**tree, "segments": tuple(Segment(**segment) for segment in tree["segments"])})


def growing(ramp: Piecewise | None, multiple: int) -> LrConfig:
    still = Piecewise(start=0.0)
    return LrConfig(
        name="x", learning_rate=still, mtp_weight=still, bias_rate=still, batch_size=ramp, batch_multiple=multiple
    )


def v3(repo) -> LrConfig:
    """The batch of conf/lr/v3.yaml, and what it is rounded to."""
    tree = OmegaConf.load(repo / "conf" / "lr" / "v3.yaml")
    assert tree.batch_multiple == 512
    return growing(from_yaml(repo, "batch_size"), tree.batch_multiple)


def progress(tokens: float) -> Progress:
    return Progress(tokens=int(tokens), step=0, total_steps=1)


def at(schedule: Piecewise, tokens: float) -> float:
    return value_at(schedule, progress(tokens))


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (5 * T, 2.2e-4),
        (10 * T, 2.2e-4),
        (11.075 * T, 1.910036e-4),
        (12.15 * T, 1.21e-4),
        (13.225 * T, 5.09964e-5),
        (14.3 * T, 2.2e-5),
        (14.5 * T, 2.2e-5),
        (14.633 * T, 2.2e-5),
        (14.633 * T + 1, 7.3e-6),
        (14.8 * T, 7.3e-6),
        (20 * T, 7.3e-6),
    ],
)
def test_v3_learning_rate(repo, tokens, rate):
    assert at(from_yaml(repo, "learning_rate"), tokens) == pytest.approx(rate, rel=1e-6)


def test_v3_warm_up_is_2000_steps_of_a_growing_batch(repo):
    """From 0 to 2.2e-4 in 2,000 steps, while the batch grows from 3072 sequences, in steps of 512.

    Along the straight line dT/ds = 4096 (3072 + 12288 T / 469e9), T(2000) would be 3072 * 469e9 / 12288 *
    (exp(2000 * 4096 * 12288 / 469e9) - 1) = 28.06B; the first 256 sequences of growth come half a step of 512 late.
    """
    schedule, lr, tokens = from_yaml(repo, "learning_rate"), v3(repo), 0
    for _ in range(2000):
        assert at(schedule, tokens) < 2.2e-4
        tokens += 4096 * batch_size_at(lr, 15360, progress(tokens))
    assert tokens == schedule.segments[0].until == 27_730_640_896
    assert at(schedule, tokens) == 2.2e-4
    assert tokens == pytest.approx(3072 * 469e9 / 12288 * math.expm1(2000 * 4096 * 12288 / 469e9), rel=0.015)
    assert [at(schedule, tokens * share) for share in (0, 0.25, 0.5)] == pytest.approx([0, 0.55e-4, 1.1e-4], rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "size"),
    [(0, 3072), (234.5e9, 9216), (117.25e9, 6144), (469e9, 15360), (469e9 + 1, 15360), (14.8 * T, 15360)],
)
def test_v3_batch_ramp(repo, tokens, size):
    """3072 -> 15360 over 469 billion tokens in a straight line, in sequences."""
    assert batch_size_at(growing(from_yaml(repo, "batch_size"), 1), 15360, progress(tokens)) == size
    assert batch_size_at(v3(repo), 15360, progress(tokens)) == size


def test_v3_steps_with_the_ramp(repo):
    """15,019 steps of growing batches (14,997 for the exact integral), then 227,785 of 15360 x 4096 tokens."""
    lr, tokens, steps, sizes = v3(repo), 0, 0, set()
    while tokens < 469e9:
        sizes.add(batch_size_at(lr, 15360, progress(tokens)))
        tokens += 4096 * batch_size_at(lr, 15360, progress(tokens))
        steps += 1
    assert steps == 15_019
    assert sizes == set(range(3072, 15361, 512))
    assert math.ceil((14.8 * T - tokens) / (15360 * 4096)) == 227_785
    assert 469e9 / (4096 * (15360 - 3072)) * math.log(15360 / 3072) == pytest.approx(14_997, abs=0.5)


def test_batch_ramp_is_a_multiple():
    ramp = Piecewise(start=10, segments=(Segment(until=100, shape="linear", to=20),))
    sizes = [batch_size_at(growing(ramp, 4), 20, progress(tokens)) for tokens in (0, 19, 21, 59, 60, 100, 200)]
    # 10 and 11.9 lie nearest to 12, 15.9 to 16, 16 stays, and 20 ends it.
    assert sizes == [12, 12, 12, 16, 16, 20, 20]
    assert batch_size_at(growing(None, 4), 22, progress(0)) == 22
    assert batch_size_at(growing(ramp, 32), 20, progress(0)) == 32


def test_tokens_per_step_stay_the_same_when_sequences_get_longer():
    """V3 section 4.3: 4096 x 15360, then 32K x 1920 and 128K x 480, 1000 steps each; at the last step of each."""
    taken = []
    for name in ("v3_pretrain_h800_2048", "v3_extend_32k", "v3_extend_128k"):
        cfg = load_config([f"experiment={name}"], check_files=False)
        stage, last = cfg.stage, cfg.stage.steps - 1
        reached = Progress(tokens=last * stage.batch_size * stage.seq_length, step=last, total_steps=stage.steps)
        size = batch_size_at(cfg.lr, stage.batch_size, reached)
        taken.append((stage.seq_length, size, size * stage.seq_length, value_at(cfg.lr.learning_rate, reached)))
    assert taken == [
        (4096, 15360, 62_914_560, 7.3e-6),
        (32768, 1920, 62_914_560, 7.3e-6),
        (131072, 480, 62_914_560, 7.3e-6),
    ]


@pytest.mark.parametrize(
    ("tokens", "weight"), [(0, 0.3), (5 * T, 0.3), (10 * T, 0.3), (10 * T + 1, 0.1), (14.8 * T, 0.1)]
)
def test_v3_mtp_weight(repo, tokens, weight):
    assert at(from_yaml(repo, "mtp_weight"), tokens) == weight


@pytest.mark.parametrize(("tokens", "rate"), [(0, 1e-3), (14.3 * T, 1e-3), (14.3 * T + 1, 0.0), (14.8 * T, 0.0)])
def test_v3_bias_rate(repo, tokens, rate):
    assert at(from_yaml(repo, "bias_rate"), tokens) == rate


def test_units():
    """The same ramp from 0 to 1, measured in tokens, in finished steps and in the stage's share."""
    progress = Progress(tokens=30, step=2, total_steps=8)
    for unit, until, value in (("tokens", 40, 0.75), ("steps", 4, 0.5), ("fraction", 1.0, 0.25)):
        ramp = Piecewise(start=0.0, segments=(Segment(until=until, shape="linear", to=1.0),), unit=unit)
        assert value_at(ramp, progress) == value


def test_cosine_by_hand():
    """Half of a cosine from 4 to 2: a quarter of the way (1 - cos(45 degrees)) / 2 of the drop."""
    fall = Piecewise(start=4.0, segments=(Segment(until=8, shape="cosine", to=2.0),), unit="steps")
    values = [value_at(fall, Progress(tokens=0, step=step, total_steps=8)) for step in (0, 2, 4, 8, 9)]
    assert values == pytest.approx([4.0, 4.0 - 2.0 * 0.1464466, 3.0, 2.0, 2.0], abs=1e-6)


def test_constant_first_segment_holds_from_the_first_step():
    steps = Piecewise(start=5.0, segments=(Segment(until=2, shape="constant", to=1.0),), unit="steps")
    assert [value_at(steps, Progress(tokens=0, step=step, total_steps=4)) for step in (0, 2, 3)] == [1.0, 1.0, 1.0]
    assert value_at(Piecewise(start=5.0), Progress(tokens=10, step=1, total_steps=2)) == 5.0
