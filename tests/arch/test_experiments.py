"""Every conf/experiment/*.yaml composes, passes the config check, and so does every step of the schedule it names."""

from pathlib import Path

import pytest
import yaml

from r1train.config.load import load_config
from r1train.config.schema import RunConfig
from r1train.config.steps import plan_steps
from r1train.errors import ConfigError

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf/experiment").glob("*.yaml"))


def test_there_are_experiments():
    assert "tiny" in EXPERIMENTS, "conf/experiment/tiny.yaml is missing"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_passes_the_check(name):
    cfg = load_config([f"experiment={name}"], check_files=False)
    assert isinstance(cfg, RunConfig)
    assert cfg.parallel.world_size == cfg.cluster.nodes * cfg.cluster.processes_per_node


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_step_of_its_schedule_passes_the_check(name):
    planned = plan_steps([f"experiment={name}"])
    assert planned
    for item in planned:
        cfg = load_config(item.overrides, check_files=False)
        assert (cfg.step, cfg.stage.name) == (item.step.id, item.step.stage)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_broken_experiment_is_refused(name):
    """The check above can fail: two planted mistakes in the same experiment are both reported."""
    broken = [f"experiment={name}", "model.hidden_size=wide", "parallel.no_such_key=1"]
    with pytest.raises(ConfigError) as error:
        load_config(broken, check_files=False)
    assert {problem.key for problem in error.value.problems} >= {"model.hidden_size", "parallel.no_such_key"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_has_a_card(name):
    """docs/cards says of every experiment what was run, and what was not."""
    path = Path(__file__).resolve().parents[2] / "docs/cards" / f"{name}.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert card["experiment"] == name
    assert card["status"]
    assert card["unverified"]


def test_long_experiments_stay_short():
    """An experiment only overrides; what is shared belongs into the groups."""
    folder = Path(__file__).resolve().parents[2] / "conf/experiment"
    lines = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.yaml")}
    assert {name: count for name, count in lines.items() if count > 120} == {}
