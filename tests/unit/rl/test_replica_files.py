"""Ranks of one replica draw the same samples and keep them in files of their own."""

from pathlib import Path

import pytest

from r1train.rl.carried import Shard, read_carried, write_carried


def test_a_rank_reads_what_it_wrote_and_not_its_neighbours_rows(tmp_path: Path):
    shards = [Shard(dp_rank=1, dp_size=2, pp_rank=0, pp_size=1, tp_rank=rank, tp_size=2) for rank in (0, 1)]
    assert [shard.name for shard in shards] == ["dp_0001_pp_00_tp_00", "dp_0001_pp_00_tp_01"]
    for rank, shard in enumerate(shards):
        write_carried(tmp_path, shard, [{"of": rank}], step=4, now=2)
    assert [read_carried(tmp_path, shard, step=4) for shard in shards] == [[{"of": 0}], [{"of": 1}]]
    with pytest.raises(ValueError, match="other ranks' files are"):
        read_carried(tmp_path, Shard(dp_rank=1, dp_size=2, pp_rank=0, pp_size=1), step=4)


def test_files_of_runs_before_tensor_parallel_generation_are_read(tmp_path: Path):
    """They have no tensor-parallel rank in name and header."""
    shard = Shard(dp_rank=0, dp_size=1, pp_rank=0, pp_size=1)
    assert shard.name == "dp_0000_pp_00"
    path = tmp_path / "rollouts" / "carried" / "step_00000004_dp_0000_pp_00.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"dp_rank": 0, "dp_size": 1, "pp_rank": 0, "pp_size": 1}\n{"of": 7}\n')
    assert read_carried(tmp_path, shard, step=4) == [{"of": 7}]
