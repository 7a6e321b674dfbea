"""Records of generation: Sample and Group, and their JSON-lines form for storing rollouts."""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from r1train.data.prompts import Prompt
from r1train.errors import DataError

Finish = Literal["eos", "length"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One response of the policy to one prompt.

    prompt_id: id of its Prompt; index: 0-based place within the group.
    tokens: int64 [R], response ids only; the last one is <|eos|> exactly when finish is "eos".
    logprobs: float32 [R], the engine's log-probability of each token at the sampling temperature.
    finish: "length" means the token budget ended it. policy_version: optimizer steps done by the sampling weights, of
    the last piece where several drew it; earlier: (policy version, tokens) of the pieces before that, in order.
    text: the decoded tokens without <|eos|>.
    routes: [computed tokens, expert layers of this pipeline stage, experts per token], uint8 or int16: the experts that
    each token of prompt and response went to, but for the last, which was drawn and not computed; None where nobody
    asked for them. Nothing else is optional: an engine that cannot give a field does not give a Sample.
    """

    prompt_id: str
    index: int
    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]
    finish: Finish
    policy_version: int
    text: str
    routes: npt.NDArray[np.integer] | None = None
    earlier: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        assert self.tokens.ndim == 1 and self.tokens.dtype == np.int64, (self.tokens.shape, self.tokens.dtype)
        assert self.logprobs.shape == self.tokens.shape, (self.logprobs.shape, self.tokens.shape)
        assert self.logprobs.dtype == np.float32, self.logprobs.dtype

    @property
    def truncated(self) -> bool:
        return self.finish == "length"

    @property
    def drawn_by(self) -> tuple[tuple[int, int], ...]:
        """(policy version, tokens) of every piece of the response, in order."""
        before = sum(tokens for _, tokens in self.earlier)
        return (*self.earlier, (self.policy_version, len(self.tokens) - before))


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """All samples of one prompt, in order of their index; groups may differ in size."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        assert all(sample.prompt_id == self.prompt.id for sample in self.samples), self.prompt.id


def sample_to_row(sample: Sample) -> dict[str, object]:
    """JSON-ready dict; float32 logprobs keep their value exactly (shortest decimal that reads back the same)."""
    return {
        "prompt_id": sample.prompt_id,
        "index": sample.index,
        "tokens": sample.tokens.tolist(),
        "logprobs": [float(str(value)) for value in sample.logprobs],
        "finish": sample.finish,
        "policy_version": sample.policy_version,
        "text": sample.text,
        "routes": None if sample.routes is None else _array_to_row(sample.routes),
        "earlier": [list(piece) for piece in sample.earlier],
    }


def sample_from_row(row: dict) -> Sample:
    """Inverse of sample_to_row; older files have no routes and no earlier pieces. Raises KeyError for other fields."""
    return Sample(
        prompt_id=row["prompt_id"],
        index=row["index"],
        tokens=np.asarray(row["tokens"], dtype=np.int64),
        logprobs=np.asarray(row["logprobs"], dtype=np.float32),
        finish=row["finish"],
        policy_version=row["policy_version"],
        text=row["text"],
        routes=None if row.get("routes") is None else _array_from_row(row["routes"]),
        earlier=tuple((version, tokens) for version, tokens in row.get("earlier", ())),
    )


def _array_to_row(array: np.ndarray) -> dict[str, object]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": data}


def _array_from_row(row: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(row["base64"]), dtype=row["dtype"]).reshape(row["shape"])


def group_to_row(group: Group) -> dict[str, object]:
    """JSON-ready dict with keys prompt and samples; a stage may add keys of its own, such as scores."""
    return {"prompt": asdict(group.prompt), "samples": [sample_to_row(sample) for sample in group.samples]}


def without_routes(group: Group) -> Group:
    """The group as people read it: the experts of its tokens would be most of a stored row."""
    return replace(group, samples=tuple(replace(sample, routes=None) for sample in group.samples))


def group_from_row(row: dict) -> Group:
    """Inverse of group_to_row; keys that a stage added are ignored. Raises KeyError when a field is absent."""
    prompt = Prompt(**{**row["prompt"], "token_ids": tuple(row["prompt"]["token_ids"])})
    return Group(prompt=prompt, samples=tuple(sample_from_row(sample) for sample in row["samples"]))


def append_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Appends one JSON line per row, flushed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> Iterator[dict]:
    """Rows of a rollout file in order. Raises DataError for a missing file or a line that is not JSON."""
    if not path.is_file():
        raise DataError(f"{path} is not a file. Fix: name a stored rollout file (.jsonl)")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number} is not JSON ({error}). Fix: delete that line") from error
