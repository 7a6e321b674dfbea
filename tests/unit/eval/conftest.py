"""A tokenizer for the evaluation tests, and suites and samples made by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r1train.config.load import load_config
from r1train.config.schema import RunConfig
from r1train.config.schema_eval import SuiteConfig
from r1train.data.documents import documents
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer
from r1train.eval.grade import Judged, SuiteGrader
from r1train.eval.suites import load_suite
from r1train.rollout.types import Group, Sample


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 300), path)
    return Tokenizer.load(path)


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[..., SuiteConfig]:
    """suite_file("math", rows, template=...) -> the suite of a file with these rows."""

    def make(kind: str, rows: list[dict], **changes: object) -> SuiteConfig:
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"name": f"a_{kind}", "path": str(path), "kind": kind} | changes
        return SuiteConfig(**settings)

    return make


@pytest.fixture
def group_of() -> Callable[[Prompt, list[str]], Group]:
    """group_of(prompt, texts) -> a group with these responses, one token each."""

    def make(prompt: Prompt, texts: list[str]) -> Group:
        samples = tuple(
            Sample(
                prompt_id=prompt.id,
                index=index,
                tokens=np.array([1]),
                logprobs=np.array([-0.5], dtype=np.float32),
                finish="eos",
                policy_version=3,
                text=text,
            )
            for index, text in enumerate(texts)
        )
        return Group(prompt=prompt, samples=samples)

    return make


@pytest.fixture(scope="session")
def cfg() -> RunConfig:
    return load_config(["experiment=tiny", "stage=evaluate", "stage.init_from=x"], check_files=False)


@pytest.fixture(scope="session")
def grade_groups(cfg: RunConfig) -> Callable[[SuiteConfig, list[Group]], list[list[Judged]]]:
    """Verdicts of every group's samples, in order, all at once."""

    def grade(suite: SuiteConfig, groups: list[Group]) -> list[list[Judged]]:
        with SuiteGrader(suite, cfg.reward) as grader:
            for place, group in enumerate(groups):
                for sample in group.samples:
                    grader.finished(place, group.prompt, sample)
            verdicts = grader.verdicts()
        return [verdicts[place] for place in range(len(groups))]

    return grade


@pytest.fixture
def judge(
    suite_file: Callable[..., SuiteConfig], tokenizer: Tokenizer, group_of: Callable[..., Group], grade_groups
) -> Callable[..., tuple[SuiteConfig, Group, list[Judged]]]:
    """judge("math", row, responses, ("boxed",)) -> the suite of this one row, the group and its verdicts."""

    def grade(kind: str, row: dict, texts: list[str], places: tuple[str, ...]):
        suite = suite_file(kind, [row], answer_from=places, samples_per_problem=len(texts))
        (prompt,) = load_suite(suite, tokenizer, max_prompt_tokens=300)
        group = group_of(prompt, texts)
        (judged,) = grade_groups(suite, [group])
        return suite, group, judged

    return grade
