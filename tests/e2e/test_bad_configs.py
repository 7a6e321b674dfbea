"""Bad configs on the real command line: each has its own message, exits with 2, leaves nothing, loads no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from r1train.__main__ import main

REPO = Path(__file__).resolve().parents[2]
PP2 = ["parallel.world_size=4", "cluster.processes_per_node=4", "parallel.pp=2"]

# (name, overrides, what the message says). The folder `w` in the working directory holds an empty and a full data file.
CASES = [
    ("unknown-key", ["model.vocab_sise=512"], "model.vocab_sise = 512: unknown key. Fix: write model.vocab_size"),
    ("wrong-type", ['seed="seven"'], "seed = 'seven': wrong type: a string where an integer belongs"),
    ("half-a-layer", ["model.num_layers=3.5"], "model.num_layers = 3.5: wrong type: a number where an integer belongs"),
    (
        "heads",
        ["parallel.tp=2", "model.num_attention_heads=5"],
        "num_attention_heads = 5: not divisible by parallel.tp",
    ),
    ("experts", ["model.num_experts=7"], "parallel.ep = 2: does not divide the 7 experts"),
    ("layout-sum", [*PP2, 'parallel.pp_layout="Et|tmL"'], "has 2 decoder layers (t), the model has 3"),
    ("layout-letters", [*PP2, 'parallel.pp_layout="Ett|txL"'], "has the unknown character(s) x"),
    ("world-size", ["parallel.world_size=3"], "has 1 node(s) x 2 process(es) = 2"),
    ("missing-file", ["data.corpora.0.source=w/none.txt"], "'w/none.txt': no such file"),
    ("empty-file", ["data.corpora.0.source=w/empty.txt"], "'w/empty.txt': this file is empty"),
    ("unknown-builtin", ['data.corpora.0.source="builtin:web"'], "the package ships no such data"),
    ("vocabulary", ["data.dir=w/data"], "vocabulary mismatch: w/data/tokenizer/tokenizer.json has 3 entries"),
    ("small-vocabulary", ["model.vocab_size=256"], "model.vocab_size = 256: smaller than the tokenizer's 512 entries"),
    ("unknown-stage", ["stage=foo"], "stage = 'foo': no such option of the group stage. Fix: choose one of: collect, "),
    ("unknown-experiment", ["experiment=tinny"], "did you mean experiment=tiny?"),
    ("no-checkpoint", ["stage=evaluate", "stage.init_from=w/data"], "'w/data': no finished checkpoint there"),
    (
        "sequence",
        ["per_stage.pretrain.stage.seq_length=1024"],
        "[pretrain] stage.seq_length = 1024: longer than the 512",
    ),
    (
        "batch",
        ["per_stage.pretrain.stage.batch_size=31"],
        "stage.batch_size = 31: not divisible by dp x micro_batch_size",
    ),
    ("group", ["per_stage.grpo.stage.samples_per_prompt=1"], "[rl1, rl2] stage.samples_per_prompt = 1"),
    ("temperature", ["rollout.temperature=0"], "rollout.temperature = 0.0: sampling needs a temperature above 0"),
    ("fp8-on-cpu", ["optim.precision=fp8_blockwise"], "FP8 needs a GPU"),
    (
        "schedule-order",
        ["schedule.steps.2.init_from=rl1"],
        "step cold_start cannot start from a step that does not come",
    ),
    ("not-an-override", ["tiny"], "tiny = None: not an override"),
    ("unknown-mode", ["mode=chek"], "mode = 'chek': no such mode. Fix: one of run, check, steps, plan, doctor, report"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory but for w/: an empty data file and a tokenizer of three entries."""
    tokenizer = tmp_path / "w" / "data" / "tokenizer"
    tokenizer.mkdir(parents=True)
    model = {"vocab": {"a": 0, "b": 1}}
    (tokenizer / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": [{"content": "c"}]}))
    (tmp_path / "w" / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*"))


@pytest.mark.parametrize(("overrides", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_config(folder, capsys, overrides, message):
    before = listing(folder)
    assert main(["mode=check", "experiment=tiny", *overrides]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Fix: " in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert listing(folder) == before


def test_the_same_config_without_a_mistake_passes(folder, capsys):
    before = listing(folder)
    assert main(["mode=check", "experiment=tiny"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "ok  cold_start (sft)"
    assert listing(folder) == before


def test_messages_are_distinct():
    assert len({case[2] for case in CASES}) == len(CASES) >= 15


def test_several_mistakes_are_all_reported(folder, capsys):
    mistakes = [
        "modle.x=1",
        "model.num_experts=7",
        "optim.eps=0",
        "data.corpora.0.source=w/none.txt",
        "rollout.top_p=2",
    ]
    assert main(["mode=check", "experiment=tiny", *mistakes]) == 2
    printed = capsys.readouterr().err
    for key in (
        "modle",
        "model.num_expert_groups",
        "parallel.ep",
        "optim.eps",
        "data.corpora.0.source",
        "rollout.top_p",
    ):
        assert f"{key} = " in printed
    assert printed.startswith("error: 6 problems in the config:")


def test_only_rank_0_speaks(folder, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["mode=check", "experiment=tiny", "seedd=1"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=check", "experiment=tiny", "parallel.world_size=3"], "parallel.world_size = 3"),
        (["mode=run", "experiment=tiny", "stage=pretrain", "modle=1"], "modle = 1: unknown key"),
        (["experiment=tiny", "stage=sft", "stage.init_from=none"], "stage.init_from = 'none': no such run folder"),
    ],
    ids=["check", "run", "default-mode"],
)
def test_real_process(folder, arguments, message):
    before = listing(folder)
    done = run_module(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(folder) == before


def test_check_does_not_load_torch(folder):
    code = (
        "import sys; from r1train.__main__ import main; status = main(sys.argv[1:]);"
        "print(sorted({'torch', 'megatron', 'transformers', 'numpy'} & set(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "mode=check", "experiment=tiny"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(REPO)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_mode(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {mode} " in printed for mode in ("run", "check", "steps", "plan", "doctor", "report"))


def test_report_of_a_root_without_runs(folder, capsys):
    before = listing(folder)
    assert main(["mode=report", "experiment=tiny"]) == 0
    assert "GRPO 2" in capsys.readouterr().out
    assert listing(folder) == before


def run_module(*arguments: str) -> subprocess.CompletedProcess:
    """python -m r1train in the current directory."""
    command = [sys.executable, "-m", "r1train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(REPO)})
