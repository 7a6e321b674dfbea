"""Rollout records: exact round trip through JSON lines, and the tool that shows them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.rollout.types import Group, Sample, append_rows, group_from_row, group_to_row, read_rows

REPO = Path(__file__).resolve().parents[3]
TOOL = REPO / "tools" / "show_rollouts.py"


def tool(*arguments):
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})


PROMPT = Prompt(id="p1", task="chain_sum", question="3+4=", answer="7", metadata={"n": [1, 2]}, token_ids=(0, 3, 40, 4))


def sample(index, **changes):
    values = {
        "prompt_id": "p1",
        "index": index,
        "tokens": np.array([5, 9, 1], dtype=np.int64),
        "logprobs": np.array([-0.1, -1.2345678, -3e-9], dtype=np.float32),
        "finish": "eos",
        "policy_version": 12,
        "text": "<think>3+4=7</think><answer>7</answer>",
    }
    return Sample(**{**values, **changes})


def test_round_trip_is_exact(tmp_path):
    cut = sample(1, finish="length", tokens=np.array([], dtype=np.int64), logprobs=np.array([], dtype=np.float32))
    group = Group(prompt=PROMPT, samples=(sample(0, earlier=((4, 1), (10, 1))), cut))
    assert [one.drawn_by for one in group.samples] == [((4, 1), (10, 1), (12, 1)), ((12, 0),)]
    append_rows(tmp_path / "rollouts" / "a.jsonl", [group_to_row(group)])
    append_rows(tmp_path / "rollouts" / "a.jsonl", [{**group_to_row(group), "scores": [1]}])
    first, second = (group_from_row(row) for row in read_rows(tmp_path / "rollouts" / "a.jsonl"))
    for read in (first, second):
        assert read.prompt == PROMPT
        assert [s.truncated for s in read.samples] == [False, True]
        for old, new in zip(group.samples, read.samples, strict=True):
            assert old.tokens.tobytes() == new.tokens.tobytes() and new.tokens.dtype == np.int64
            assert old.logprobs.tobytes() == new.logprobs.tobytes() and new.logprobs.dtype == np.float32
            fields = ("prompt_id", "index", "finish", "policy_version", "text", "earlier", "drawn_by")
            assert [getattr(old, f) for f in fields] == [getattr(new, f) for f in fields]


def test_older_files_have_no_routes_and_one_piece():
    row = group_to_row(Group(prompt=PROMPT, samples=(sample(0),)))
    del row["samples"][0]["routes"], row["samples"][0]["earlier"]
    (read,) = group_from_row(row).samples
    assert (read.routes, read.drawn_by) == (None, ((12, 3),))


def test_absent_field_and_broken_line_are_errors(tmp_path):
    row = group_to_row(Group(prompt=PROMPT, samples=(sample(0),)))
    del row["samples"][0]["logprobs"]
    with pytest.raises(KeyError, match="logprobs"):
        group_from_row(row)
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n{bad\n")
    with pytest.raises(DataError, match="a.jsonl:2 is not JSON"):
        list(read_rows(path))


def test_invariants():
    with pytest.raises(AssertionError):
        sample(0, logprobs=np.zeros(2, dtype=np.float32))
    with pytest.raises(AssertionError):
        sample(0, tokens=np.zeros(3, dtype=np.int32))
    with pytest.raises(AssertionError):
        Group(prompt=PROMPT, samples=(sample(0, prompt_id="other"),))


def test_show_rollouts_tool(tmp_path):
    path = tmp_path / "a.jsonl"
    group = group_to_row(Group(prompt=PROMPT, samples=(sample(0), sample(1, finish="length", text="<think>hm"))))
    scores = [{"value": 2.0, "parts": {"accuracy": 1.0, "format": 1.0}, "error": None}]
    scores.append({"value": None, "parts": {"format": 0.0}, "error": "grader timed out after 5 s"})
    append_rows(path, [{**group, "scores": scores}, group])
    done = tool(str(path), "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "=== p1 (chain_sum): 3+4=   reference: 7\n"
        "--- sample 0: 3 tokens, eos, policy 12, mean logprob -0.4449, reward 2 (accuracy 1, format 1)\n"
        "<think>3+4=7</think><answer>7</answer>\n"
        "--- sample 1: 3 tokens, length, policy 12, mean logprob -0.4449, not graded: grader timed out after 5 s\n"
        "<think>hm\n"
    )
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"prompt": 1})[:-1])
    done = tool(str(bad))
    assert done.returncode == 2 and "bad.jsonl:1 is not JSON" in done.stderr
