"""The scalar head and what it learns: a hidden rule from pairs and from labels, checkpoints with and without a head."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LR, MODEL, OPTIM, Tokens, config

from r1train.config.schema_train import Piecewise
from r1train.errors import CheckpointError

RESPONSE = 8
PAD = 2


@dataclass(frozen=True)
class Tokenizer(Tokens):
    pad_id: int = PAD


def response(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(4, MODEL.vocab_size, RESPONSE)


def merit(tokens: np.ndarray) -> int:
    """The hidden rule: how many tokens of the response have an even id."""
    return int((tokens % 2 == 0).sum())


def sample(name: str, tokens: np.ndarray):
    from r1train.data.chat import Sample

    whole = np.concatenate([[0, 3], tokens, [1]]).astype(np.int64)
    trained = np.array([0, 0, *[1] * (RESPONSE + 1)], dtype=np.float32)
    return Sample(name, whole, trained)


def pair_examples(count: int, seed: int) -> list:
    from r1train.data.preferences import Example

    generator, examples = np.random.default_rng(seed), []
    while len(examples) < count:
        first, second = response(generator), response(generator)
        if merit(first) != merit(second):
            better = sorted((first, second), key=merit, reverse=True)
            name = str(len(examples))
            examples.append(Example(name, tuple(sample(f"{name}/{n}", one) for n, one in enumerate(better))))
    return examples


def labelled_examples(count: int, seed: int) -> list:
    from r1train.data.preferences import Example

    generator = np.random.default_rng(seed)
    drawn = [response(generator) for _ in range(count)]
    return [Example(str(n), (sample(f"{n}/0", one),), int(merit(one) > RESPONSE // 2)) for n, one in enumerate(drawn)]


def build(device, run_dir: Path, learning_rate: float = 3e-3, *, scalar_head: bool = True):
    from r1train.train.setup import build_trainer

    lr = replace(LR, learning_rate=Piecewise(start=learning_rate, unit="steps"), bias_rate=Piecewise(start=0.0))
    cfg = config(
        "single",
        model=replace(MODEL, sequence_loss_coef=0.0),
        lr=lr,
        run_dir=run_dir,
        optim=replace(OPTIM, weight_decay=0.0),
    )
    return build_trainer(cfg, device, total_steps=100, scalar_head=scalar_head)


def train(trainer, examples: list, *, kind: str, steps: int) -> list[dict[str, float]]:
    from r1train.data.preferences import pack_examples, take_examples
    from r1train.model.value_head import value_head
    from r1train.reward.reward_model import ScoreObjective
    from r1train.train.batches import packed_micro_batches
    from r1train.train.step import train_step

    logs = []
    for step in range(steps):
        rows = pack_examples(take_examples(examples, step * 48, 48, seed=1), seq_length=1200, pad_id=PAD)
        batches = packed_micro_batches(rows, seq_length=1200, pad_id=PAD)
        result = train_step(trainer, batches, ScoreObjective(value_head(trainer.module), kind))
        trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=48)
        assert result.num_tokens == 48
        logs.append(result.logs)
    return logs


def score(trainer, examples: list) -> list[list[float]]:
    from r1train.reward.preference import Packing, score_samples

    packing = Packing(Tokenizer(), 300, torch.device("cpu"))
    flat = iter(score_samples(trainer.module, [one for example in examples for one in example.samples], packing))
    return [[next(flat) for _ in example.samples] for example in examples]


def test_pairs_teach_the_hidden_rule(device, tmp_path):
    from r1train.reward.reward_model import pair_accuracy

    trainer = build(device, tmp_path)
    logs = train(trainer, pair_examples(4000, seed=1), kind="pairwise", steps=60)
    assert logs[0]["loss"] == pytest.approx(np.log(2), abs=1e-6), "a head of zeros scores all alike"
    heldout = score(trainer, pair_examples(300, seed=2))
    assert pair_accuracy(*zip(*heldout, strict=True)) >= 0.95
    assert logs[-1]["pair_accuracy"] > 0.9 and logs[-1]["margin"] > 1.0


def test_labels_teach_the_hidden_rule(device, tmp_path):
    from r1train.reward.reward_model import area_under_curve

    trainer = build(device, tmp_path)
    train(trainer, labelled_examples(4000, seed=3), kind="pointwise", steps=60)
    heldout = labelled_examples(300, seed=4)
    scores = [one for (one,) in score(trainer, heldout)]
    assert area_under_curve(scores, [example.label for example in heldout]) >= 0.95


def test_scores_do_not_depend_on_packing(device, tmp_path):
    from r1train.reward.preference import Packing, score_samples

    trainer = build(device, tmp_path, learning_rate=1e-3)
    train(trainer, pair_examples(96, seed=5), kind="pairwise", steps=2)
    samples = [one for example in pair_examples(8, seed=6) for one in example.samples]
    one_row, alone = (
        score_samples(trainer.module, samples, Packing(Tokenizer(), length, torch.device("cpu")))
        for length in (400, 11)
    )
    assert one_row == pytest.approx(alone, abs=1e-5) and len(set(alone)) == 16
    assert score_samples(trainer.module, [], Packing(Tokenizer(), 32, torch.device("cpu"))) == []


def test_checkpoints_with_and_without_a_head(device, tmp_path):
    from r1train.data.preferences import pack_examples
    from r1train.model.build import build_model
    from r1train.model.value_head import add_value_head, value_head, without_value_head
    from r1train.train.batches import packed_micro_batches
    from r1train.train.checkpoint import latest_checkpoint, load_module, load_weights, resume, save_checkpoint
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    trainer = build(device, tmp_path / "reward")
    train(trainer, pair_examples(96, seed=5), kind="pairwise", steps=1)
    save_checkpoint(trainer)
    weight = value_head(trainer.module).weight.detach().clone()
    assert weight.abs().max() > 0
    folder = latest_checkpoint(tmp_path / "reward")
    again = build(device, tmp_path / "reward")
    assert resume(again) and torch.equal(value_head(again.module).weight, weight)
    frozen = build_model(trainer.cfg, device)
    load_module(frozen, folder)  # a language model leaves the head alone
    assert value_head(frozen) is None
    add_value_head(frozen)
    load_module(frozen, folder)
    assert torch.equal(value_head(frozen).weight, weight)
    # A language model's checkpoint has no head: it loads only while the head is out, which is then a new one.
    language = build(device, tmp_path / "language", scalar_head=False)
    rows = pack_examples(pair_examples(8, seed=5), seq_length=1200, pad_id=PAD)
    train_step(language, packed_micro_batches(rows, seq_length=1200, pad_id=PAD), LmObjective())
    save_checkpoint(language)
    other = build(device, tmp_path / "unused")
    with pytest.raises(CheckpointError, match=r"value_head.weight \[1, 64\] of the model is not in the checkpoint"):
        load_weights(other, latest_checkpoint(tmp_path / "language"))
    with without_value_head(other.modules):
        load_weights(other, latest_checkpoint(tmp_path / "language"))
    assert value_head(other.module).weight.abs().max() == 0
    assert torch.equal(other.module.embedding.word_embeddings.weight, language.module.embedding.word_embeddings.weight)
