"""Digests of files and checkpoints, and manifest.json."""

import hashlib
import os

import pytest

from r1train.log import manifest
from r1train.log.manifest import Artifact, Digests, Manifest, digest_of, finish, read_manifest, write_manifest


def checkpoint(folder, *, weights=b"w" * 100):
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(weights)
    (folder / ".metadata").write_bytes(b"offsets")
    (folder / "_DONE").write_text('{"step": 3}')
    return folder


def test_a_small_files_digest_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest_of(tmp_path / "none") is None


def test_a_large_file_is_sampled(tmp_path, monkeypatch):
    """Of 4,096 bytes over a limit of 256, 16 blocks of 16 bytes: at 0, 272, 544, ..., 4,080."""
    monkeypatch.setattr(manifest, "WHOLE_BYTES", 256)
    path = tmp_path / "big"
    path.write_bytes(bytes(4096))
    before = digest_of(path)

    def with_byte(place):
        content = bytearray(4096)
        content[place] = 1
        path.write_bytes(content)
        return digest_of(path)

    assert with_byte(0) != before and with_byte(272) != before and with_byte(4095) != before
    assert with_byte(100) == before, "between two samples: that is the price of speed"
    path.write_bytes(bytes(4097))
    assert digest_of(path) != before


def test_a_checkpoint_counts_once_it_is_finished(tmp_path):
    one = checkpoint(tmp_path / "one")
    other = checkpoint(tmp_path / "other")
    assert digest_of(one) == digest_of(other)
    os.utime(other / "_DONE", (1, 1))
    (other / ".metadata").write_bytes(b"offsets and another random id")
    assert digest_of(one) == digest_of(other), "the same weights, saved again"
    (other / "__0_0.distcp").write_bytes(b"w" * 99 + b"v")
    assert digest_of(one) != digest_of(other)
    (other / "__0_0.distcp").write_bytes(b"w" * 100)
    (other / ".metadata").unlink()
    assert digest_of(one) != digest_of(other)
    (other / "_DONE").unlink()
    assert digest_of(other) is None


def test_artifacts_below_the_root_move_with_it(tmp_path):
    root = tmp_path / "root"
    folder = checkpoint(root / "rl1" / "checkpoints" / "step_3")
    outside = tmp_path / "suite.jsonl"
    outside.write_text("{}")
    digests = Digests(root)
    inside = digests.artifact("stage.init_from", folder)
    assert (inside.kind, inside.path) == ("checkpoint", "rl1/checkpoints/step_3")
    assert digests.artifact("path", outside).path == str(outside)
    assert digests.artifact("path", tmp_path / "gone") is None
    moved = Digests(root.rename(tmp_path / "moved"))
    assert moved.of(moved.place(inside)) == inside.digest


def test_manifest_round_trip(tmp_path):
    assert read_manifest(tmp_path) is None
    artifact = Artifact(name="tokenizer", kind="file", path="data/t.json", digest="d")
    begun = Manifest(
        step="sft",
        stage="sft",
        config_hash="h",
        config={"seed": 1},
        inputs=(artifact,),
        commit=None,
        dirty=None,
        versions={"torch": "2.11.0"},
    )
    write_manifest(tmp_path, begun)
    assert read_manifest(tmp_path) == begun
    done = finish(begun, (artifact,), {"loss": 0.5})
    write_manifest(tmp_path, done)
    assert read_manifest(tmp_path) == done
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    with pytest.raises(AttributeError):
        done.step = "x"
