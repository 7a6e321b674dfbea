"""From stored samples to the SFT set: caps, judge, rewriting, copies, review, mixing, provenance, and the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r1train.config.load import load_config
from r1train.data.documents import gsm8k_rows
from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.reward.base import Score
from r1train.reward.candidate import Candidate, prompt_to_row
from r1train.rollout.engine import SamplingParams
from r1train.stages import curate
from r1train.stages.sampling import Asked

PARTS = {"format": 1.0, "accuracy": 1.0, "language": 1.0}
PARAMS = SamplingParams(samples_per_prompt=3, temperature=1.0, top_p=1.0, max_response_tokens=40, seed=5, name="reject")
JUDGE = "{url: 'http://127.0.0.1:1/v1', model: m}"


def candidate(prompt: str, index: int, thinking: str, **changes) -> Candidate:
    values = {"tokens": 10 + index, "truncated": False, "policy_version": 12, "score": Score(3.0, PARTS, None)}
    text = f"<think>{thinking}</think><answer>7</answer>"
    return Candidate(prompt_id=prompt, task="t", question=f"{prompt}?", index=index, text=text, **{**values, **changes})


WRONG = Score(2.0, {**PARTS, "accuracy": 0.0}, None)
SAMPLES = [
    [candidate("a", 0, "one two"), candidate("a", 1, "one two"), candidate("a", 2, "short")],
    [candidate("b", 0, "x", score=WRONG), candidate("b", 1, "y", truncated=True), candidate("b", 2, "one  two")],
    [candidate("c", 0, "z", score=WRONG), candidate("c", 1, "z", score=WRONG), candidate("c", 2, "z", score=WRONG)],
]


ENGLISH = "Which number do we get when we add the second number to the first one?"


def run(tmp_path: Path, *overrides: str, of: list[list[Candidate]] = SAMPLES) -> tuple[list[dict], dict]:
    cfg = load_config(
        ["experiment=tiny", "stage=reject", "stage.init_from=x", f"root={tmp_path}", *overrides], check_files=False
    )
    path = cfg.run_dir / "samples" / "from_00000000.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [prompt_to_row(place, samples) for place, samples in enumerate(of)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [Prompt(one[0].prompt_id, "t", one[0].question, "7", {}, (0,)) for one in of]
    curate.write_set(cfg, Asked(prompts, Path("runs/rl1/checkpoints/step_00000012"), PARAMS))
    written = [json.loads(line) for line in (cfg.run_dir / "sft.jsonl").read_text().splitlines()]
    return written, json.loads((cfg.run_dir / "report.json").read_text())


def answers(monkeypatch: pytest.MonkeyPatch, replies: dict[str, str]) -> None:
    """Candidate id -> reply of the served model; the others stay without an answer."""

    def ask_all(_client, questions, read, *, store):
        values = {key: read(key, replies[key]) for key in questions if key in replies}
        values = {key: value for key, value in values.items() if value is not None}
        return values, {"ok": len(values), "time-out": len(questions) - len(values)}

    monkeypatch.setattr(curate, "ask_all", ask_all)


def test_rows_and_report(tmp_path):
    rows, report = run(tmp_path)
    assert [row["id"] for row in rows] == ["a/0", "a/2", "b/2"]
    assert rows[1]["provenance"] == {
        "source": "sampled",
        "model": "tiny",
        "checkpoint": "runs/rl1/checkpoints/step_00000012",
        "policy_version": 12,
        "sample": 2,
        "seed": 5,
        "temperature": 1.0,
        "score": 3.0,
        "tokens": 12,
        "judge": None,
        "rewriter": None,
        "reviewed": None,
    }
    assert (rows[1]["prompt_id"], rows[1]["prompt"], rows[1]["parts"]) == ("a", "a?", PARTS)
    assert report == {
        "prompts": 3,
        "sampled": 9,
        "removed": {"duplicate": 1, "wrong": 4, "truncated": 1},
        "kept": 3,
        "kept by task": {"t": 3},
        "prompts without a kept sample": 1,
        "written": 3,
    }


def test_cap_and_choice(tmp_path):
    rows, report = run(tmp_path, "stage.keep_per_prompt=1", "stage.keep_by=longest")
    assert [row["id"] for row in rows] == ["a/2", "b/2"] and report["removed"]["over keep_per_prompt"] == 1


def test_near_copies_and_evaluation_sets(tmp_path):
    rows, report = run(tmp_path, "stage.near_duplicate=1.0")
    assert [row["id"] for row in rows] == ["a/0", "a/2"] and report["removed"]["near duplicate"] == 1
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": "b think one two think answer"}) + "\n")
    rows, report = run(tmp_path, f"stage.decontaminate=[{tmp_path}/eval.jsonl]", "stage.decontaminate_words=5")
    assert [row["id"] for row in rows] == ["a/2"] and report["removed"]["in an evaluation set"] == 2


def test_judge(tmp_path, monkeypatch):
    answers(monkeypatch, {"a/0": '{"verdict": "correct"}', "a/2": '{"verdict": "incorrect"}'})
    rows, report = run(tmp_path, f"stage.judge={JUDGE}")
    assert [(row["id"], row["provenance"]["judge"]) for row in rows] == [("a/0", "m")]
    assert (report["removed"]["judge: incorrect"], report["removed"]["judge: no verdict"]) == (1, 1)
    assert report["judge"] == {"ok": 2, "time-out": 1}


def test_rewriting(tmp_path, monkeypatch):
    better = "<think>First one, then two.</think><answer>7</answer>"
    answers(monkeypatch, {"a/0": better, "a/2": better.replace("7", "8")})
    rows, report = run(tmp_path, f"stage.rewrite={JUDGE}")
    assert [row["response"] for row in rows] == [better, SAMPLES[0][2].text, SAMPLES[1][2].text]
    assert [row["provenance"]["rewriter"] for row in rows] == ["m", None, None]
    assert report["rewrite"] == {"ok": 1, "time-out": 2} and report["rewritten, not taken"] == {}


def test_a_rewriting_has_to_pass_the_filters_too(tmp_path, monkeypatch):
    """In another language than the question's, with code in the thinking: the sample's own words stay."""
    english = [[replace(one, question=ENGLISH) for one in SAMPLES[0]]]
    german = "Zuerst rechnen wir die erste Zahl aus und danach addieren wir die zweite Zahl dazu."
    code = "First we take the number one and then the number two.\n```\nprint(1)\n```"
    texts = {"a/0": german, "a/2": code}
    answers(monkeypatch, {name: f"<think>{text}</think><answer>7</answer>" for name, text in texts.items()})
    strict = ["stage.filters.code_in_thinking=false", f"stage.rewrite={JUDGE}"]
    rows, report = run(tmp_path, *strict, of=english)
    assert [row["response"] for row in rows] == [SAMPLES[0][0].text, SAMPLES[0][2].text]
    assert [row["provenance"]["rewriter"] for row in rows] == [None, None]
    assert report["rewritten, not taken"] == {"mixed language": 1, "code in thinking": 1}
    lenient = ["stage.filters.code_in_thinking=true", "stage.filters.language=0.0", f"stage.rewrite={JUDGE}"]
    rows, report = run(tmp_path, *lenient, of=english)
    assert [row["provenance"]["rewriter"] for row in rows] == ["m", "m"] and report["rewritten, not taken"] == {}
    assert [row["parts"]["language"] for row in rows] == [0.0, 1.0], "the scores are those of the text that is written"


def test_shipped_rows_are_an_evaluation_set(tmp_path):
    copied = [[replace(SAMPLES[0][0], question=gsm8k_rows("heldout")[0]["question"])], SAMPLES[1]]
    rows, report = run(tmp_path, "stage.decontaminate=['builtin:gsm8k']", of=copied)
    assert [row["id"] for row in rows] == ["b/2"] and report["removed"]["in an evaluation set"] == 1


def test_review_stops_and_continues(tmp_path):
    with pytest.raises(DataError, match="3 of 3 rows are still pending"):
        run(tmp_path, "stage.review=true")
    path = tmp_path / "reject" / "review.jsonl"
    assert not (path.parent / "sft.jsonl").exists()
    path.write_text(
        path.read_text().replace("pending", "accept", 1).replace("pending", "edit", 1).replace("short", "brief")
    )
    path.write_text(path.read_text().replace("pending", "reject"))
    rows, report = run(tmp_path, "stage.review=true")
    assert [(row["id"], row["provenance"]["reviewed"]) for row in rows] == [("a/0", "accept"), ("a/2", "edit")]
    assert report["review"] == {"accept": 1, "edit": 1, "reject": 1} and "brief" in rows[1]["response"]


def test_mixing(tmp_path):
    other = [{"id": f"o{number}", "prompt": "hi", "response": "hello"} for number in range(10)]
    other[3]["provenance"] = {"model": "v3"}
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    rows, report = run(tmp_path, f"stage.mix={tmp_path}/other.jsonl", "stage.mix_share=0.25")
    assert len(rows) == 4 and rows[3]["id"].startswith("o")
    assert (report["mixed in"], report["mixed share"], report["mix wanted"]) == (1, 0.25, 1)
    path, line = f"{tmp_path}/other.jsonl", int(rows[3]["id"][1:]) + 1
    assert line > 1, "the choice is not the first row, so the line below is one that was counted"
    where = {
        "source": "mixed in",
        "file": path,
        "line": line,
        "seed": 1234,
        "before": other[line - 1].get("provenance"),
    }
    assert rows[3] == {**other[line - 1], "provenance": where}
    rows, _ = run(tmp_path, f"stage.mix={tmp_path}/other.jsonl")
    assert [row["provenance"]["line"] for row in rows[3:]] == list(range(1, 11))
    assert [row["provenance"]["before"] for row in rows[3:8]] == [None, None, None, {"model": "v3"}, None]
    (tmp_path / "other.jsonl").write_text(json.dumps({**other[0], "id": "a/0"}) + "\n")
    with pytest.raises(DataError, match="1 ids occur more than once, for example .'a/0'."):
        run(tmp_path, f"stage.mix={tmp_path}/other.jsonl")


def test_nothing_left(tmp_path):
    with pytest.raises(DataError, match="kept none of 9 samples .*'wrong': 4.*raise stage.num_prompts"):
        run(tmp_path, "stage.filters.repetition=0.0", "stage.filters.repetition_words=1")
