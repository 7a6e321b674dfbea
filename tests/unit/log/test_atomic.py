"""A file that is written atomically: text as UTF-8, bytes as they are, nothing left beside it."""

import os

import pytest

from r1train.log.atomic import write_atomically


@pytest.mark.parametrize(("content", "stored"), [("\u00e9\n", b"\xc3\xa9\n"), (b"\x00\xff", b"\x00\xff")])
def test_content_and_nothing_beside_it(tmp_path, content, stored):
    (tmp_path / "a.json.tmp").write_text("what a killed process left, longer than what comes")
    write_atomically(tmp_path / "a.json", content)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": stored}


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
