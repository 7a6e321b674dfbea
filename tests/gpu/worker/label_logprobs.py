"""Compiled log-probabilities and entropies on a GPU against plain ones in float64: prints one JSON line."""

import json
import sys

import torch

from r1train.rl.label_logprobs import label_logprobs

ROWS, VOCABULARY, TEMPERATURE = 6000, 49152, 0.7


def plain(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = torch.log_softmax(logits.double() / TEMPERATURE, dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, labels[:, None])[:, 0], entropies


def main() -> int:
    torch.manual_seed(0)
    logits = (4 * torch.randn(ROWS, VOCABULARY, device="cuda")).bfloat16()
    labels, upstream = torch.randint(VOCABULARY, (ROWS,), device="cuda"), torch.randn(ROWS, device="cuda")
    given = logits.clone().requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprobs, entropies = label_logprobs(given, labels, temperature=TEMPERATURE, group=None)
    (logprobs * upstream).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    found = {"extra_bytes_per_logit": peak / logits.numel(), "logprobs": 0.0, "entropies": 0.0, "gradient": 0.0}
    for start in range(0, ROWS, 1000):
        rows = slice(start, start + 1000)
        expected = plain(logits[rows], labels[rows])
        probability = torch.softmax(logits[rows].double() / TEMPERATURE, dim=-1)
        probability[torch.arange(len(probability)), labels[rows]] -= 1.0
        gradient = -probability * upstream[rows, None] / TEMPERATURE
        found["logprobs"] = max(found["logprobs"], (logprobs[rows] - expected[0]).abs().max().item())
        found["entropies"] = max(found["entropies"], (entropies[rows] - expected[1]).abs().max().item())
        distance = (given.grad[rows] - gradient).abs() / (gradient.abs() + 1e-9)
        found["gradient"] = max(found["gradient"], distance.max().item())
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
