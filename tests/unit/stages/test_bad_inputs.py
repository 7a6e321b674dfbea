"""A judge that is down or talks nonsense, and samples that are not there: clear errors, and what was done is kept."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.reward.base import Score
from r1train.reward.candidate import Candidate, prompt_to_row
from r1train.reward.chat_client import JudgeFailed
from r1train.rollout.engine import SamplingParams
from r1train.stages import curate, pairs
from r1train.stages.sampling import Asked

PARAMS = SamplingParams(samples_per_prompt=2, temperature=1.0, top_p=1.0, max_response_tokens=40, seed=5, name="reject")
SCORE = Score(3.0, {"format": 1.0, "accuracy": 1.0, "language": 1.0}, None)


class Judge(ThreadingHTTPServer):
    """Says `reply` to every question."""

    def __init__(self, reply: str):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def judge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A judge's config; parameter: what it says, None for a port that nobody listens on."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Judge(request.param or "")
    if request.param is not None:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    yield f"{{url: 'http://127.0.0.1:{server.server_port}/v1', model: m, tries: 2, wait_s: 0.0, timeout_s: 5.0}}"
    if request.param is not None:
        server.shutdown()
        server.server_close()


def stored_samples(folder: Path) -> Path:
    """Two right samples of each of two prompts."""
    path = folder / "samples" / "from_00000000.jsonl"
    path.parent.mkdir(parents=True)
    rows = []
    for place, name in enumerate("ab"):
        samples = [
            Candidate(
                prompt_id=name,
                task="t",
                question=f"{name}?",
                index=index,
                text=f"<think>{name} {index}</think><answer>7</answer>",
                tokens=9,
                truncated=False,
                policy_version=12,
                score=SCORE,
            )
            for index in range(2)
        ]
        rows.append(prompt_to_row(place, samples))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_set(tmp_path: Path, *overrides: str) -> Path:
    start = ["experiment=tiny", "stage=reject", "stage.init_from=x", f"root={tmp_path}"]
    cfg = load_config([*start, *overrides], check_files=False)
    prompts = [Prompt(name, "t", f"{name}?", "7", {}, (0,)) for name in "ab"]
    curate.write_set(cfg, Asked(prompts, Path("runs/rl1/checkpoints/step_00000012"), PARAMS))
    return cfg.run_dir / "sft.jsonl"


@pytest.mark.parametrize(
    ("judge", "outcome"), [(None, "'unreachable': 4"), ("I like it", "'unreadable': 4")], indirect=["judge"]
)
def test_rejection_sampling_with_a_bad_judge(tmp_path, judge, outcome):
    samples = stored_samples(tmp_path / "reject")
    before = samples.read_bytes()
    with pytest.raises(JudgeFailed, match=f"4 of 4 questions have no usable answer.*{outcome}") as error:
        write_set(tmp_path, f"stage.judge={judge}")
    assert error.value.exit_code == 1
    assert samples.read_bytes() == before, "what was sampled is kept"
    assert not (tmp_path / "reject" / "sft.jsonl").exists()
    # The same samples serve as soon as nobody has to be asked, or the judge is back.
    assert len(write_set(tmp_path).read_text().splitlines()) == 4


@pytest.mark.parametrize("judge", ['{"verdict": "correct"}'], indirect=True)
def test_rejection_sampling_with_a_good_judge(tmp_path, judge):
    stored_samples(tmp_path / "reject")
    assert len(write_set(tmp_path, f"stage.judge={judge}").read_text().splitlines()) == 4


def make_pairs(tmp_path: Path, *overrides: str) -> None:
    start = ["experiment=tiny", "stage=pairs", f"stage.samples_from={tmp_path}/reject", f"root={tmp_path}"]
    pairs.run(load_config([*start, "stage.scored=response", *overrides], check_files=False))


@pytest.mark.parametrize(
    ("judge", "outcome"), [(None, "'unreachable': 8"), ("[[A>B]] [[B>A]]", "'unreadable': 8")], indirect=["judge"]
)
def test_pairs_with_a_bad_judge(tmp_path, judge, outcome):
    stored_samples(tmp_path / "reject")
    with pytest.raises(JudgeFailed, match=f"8 of 8 questions have no usable answer.*{outcome}"):
        make_pairs(tmp_path, f"stage.judge={judge}")
    assert not (tmp_path / "pairs" / "pairs.jsonl").exists()


def test_pairs_without_samples(tmp_path):
    with pytest.raises(DataError, match="none of 0 pairs of 0 prompts is left .*Fix: more samples per prompt"):
        make_pairs(tmp_path, "stage.prefer=shorter", "stage.judge=null")
    assert not (tmp_path / "pairs").exists() or not (tmp_path / "pairs" / "pairs.jsonl").exists()
