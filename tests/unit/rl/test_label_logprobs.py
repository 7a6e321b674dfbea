"""Log-probabilities of labels and entropies against torch's own softmax and distributions."""

import math
import threading

import pytest
import torch

from r1train.rl.label_logprobs import label_logprobs


def test_entropy_by_hand():
    # Uniform over 4: ln 4. One certain token: 0. (3/4, 1/4): ln 4 - 3/4 ln 3. Temperature 2 halves the logits.
    logits = torch.tensor([[5.0, 5.0, 5.0, 5.0], [300.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1e4, -1e4]])
    labels = torch.tensor([2, 0, 1])
    for scale in (1.0, 2.0):
        logprobs, entropies = label_logprobs(scale * logits, labels, temperature=scale, group=None)
        assert entropies.tolist() == pytest.approx([math.log(4), 0.0, math.log(4) - 0.75 * math.log(3)], abs=1e-6)
        assert logprobs.tolist() == pytest.approx([-math.log(4), 0.0, -math.log(4)], abs=1e-6)


@pytest.mark.parametrize("chunk_values", [1, 160, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_log_softmax(chunk_values: int, dtype: torch.dtype):
    random = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(7, 3, 50, generator=random)).to(dtype)
    labels, upstream = torch.randint(50, (7, 3), generator=random), torch.randn(7, 3, generator=random)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    logprobs, entropies = label_logprobs(ours, labels, temperature=0.7, group=None, chunk_values=chunk_values)
    (logprobs * upstream).sum().backward()

    expected = torch.log_softmax(theirs.float() / 0.7, dim=-1)
    chosen = expected.gather(-1, labels[..., None])[..., 0]
    (chosen * upstream).sum().backward()
    torch.testing.assert_close(logprobs, chosen, atol=1e-5, rtol=1e-5)
    whole = torch.distributions.Categorical(logits=expected.detach()).entropy()
    torch.testing.assert_close(entropies, whole, atol=1e-5, rtol=1e-5)
    assert not entropies.requires_grad and ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5 if dtype == torch.float32 else 8e-3)


class _Ranks:
    """all_reduce for threads that each stand for a rank, in place of a process group."""

    def __init__(self, size: int):
        self._barrier, self._parts, self._size = threading.Barrier(size), {}, size

    def all_reduce(self, tensor: torch.Tensor, op=torch.distributed.ReduceOp.SUM, group=None) -> None:
        self._parts[group.rank()] = tensor.clone()
        self._barrier.wait()
        parts = torch.stack([self._parts[rank] for rank in range(self._size)])
        self._barrier.wait()
        tensor.copy_(parts.amax(0) if op == torch.distributed.ReduceOp.MAX else parts.sum(0))


class _Group:
    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def test_parts_of_the_vocabulary_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch):
    random = torch.Generator().manual_seed(2)
    logits, labels = 3 * torch.randn(5, 24, generator=random), torch.tensor([0, 7, 8, 23, 15])
    whole = logits.clone().requires_grad_()
    expected = label_logprobs(whole, labels, temperature=1.3, group=None)
    expected[0].sum().backward()
    monkeypatch.setattr(torch.distributed, "all_reduce", _Ranks(3).all_reduce)
    parts = [part.clone().requires_grad_() for part in logits.chunk(3, dim=-1)]
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def rank(number: int) -> None:
        found[number] = label_logprobs(parts[number], labels, temperature=1.3, group=_Group(number, 3))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        for ours, theirs in zip(found[number], expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        found[number][0].sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts], dim=-1), whole.grad, atol=1e-6, rtol=1e-6)
