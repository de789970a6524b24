import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedder_service.runtimes import load_runtime
from embedder_service.runtimes.compiled import cache_folder, user_cache_dir


def kept(root):
    """Every file with its inode, so that one that was written again is another one."""
    return {file: file.stat().st_ino for file in root.rglob("*.blob")}


def test_a_compiled_model_is_kept_and_used_again(lite0, image_paths, tmp_path):
    image = np.zeros((1, 224, 224, 3), np.uint8)
    first = load_runtime(lite0, precision="f32", cache_dir=tmp_path).run(image)
    before = kept(tmp_path)
    assert len(before) == 1
    np.testing.assert_array_equal(load_runtime(lite0, precision="f32", cache_dir=tmp_path).run(image), first)
    assert kept(tmp_path) == before


def test_another_configuration_and_another_bundle_have_folders_of_their_own(lite0, lite0_copy, tmp_path):
    for bundle, streams in ((lite0, 1), (lite0, 2), (lite0_copy, 1)):
        load_runtime(bundle, precision="f32", streams=streams, cache_dir=tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_damaged_compiled_model_is_compiled_again(lite0, tmp_path):
    image = np.zeros((1, 224, 224, 3), np.uint8)
    first = load_runtime(lite0, precision="f32", cache_dir=tmp_path).run(image)
    (file,) = kept(tmp_path)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])
    np.testing.assert_array_equal(load_runtime(lite0, precision="f32", cache_dir=tmp_path).run(image), first)


def test_a_place_that_cannot_be_written_to_is_one_warning_and_no_cache(lite0, tmp_path, caplog):
    occupied = tmp_path / "file"
    occupied.write_text("")
    with caplog.at_level(logging.WARNING, "embedder_service.runtimes.compiled"):
        runtime = load_runtime(lite0, cache_dir=occupied / "cache")
    assert runtime.run(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 16)
    assert [record.getMessage() for record in caplog.records] == [
        "compiled models cannot be kept: the next start is not quicker"
    ]


def test_without_a_place_of_ones_own_nothing_is_kept(lite0, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    load_runtime(lite0, precision="f32")
    (root,) = (tmp_path / "own" / "lookalike").iterdir()
    assert len(kept(root)) == 1
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_the_cache_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert user_cache_dir() == tmp_path / ".cache" / "lookalike"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_dir() == tmp_path / "xdg" / "lookalike"


def fill(root, key):
    with cache_folder(root, key) as folder:
        if not list(folder.iterdir()):
            (folder / "model.blob").write_text(key)


def test_the_models_used_longest_ago_are_dropped_and_nothing_else(tmp_path):
    (tmp_path / "photos").mkdir()
    for age, key in enumerate(["a", "b", "c", "d"]):
        before = set(tmp_path.iterdir())
        fill(tmp_path, key)
        (folder,) = set(tmp_path.iterdir()) - before
        os.utime(folder, (age, age))
    fill(tmp_path, "a")  # used again: now the newest
    fill(tmp_path, "e")
    assert {file.read_text() for file in tmp_path.glob("*/model.blob")} == {"a", "c", "d", "e"}
    assert (tmp_path / "photos").is_dir()


def test_servers_that_start_at_once_leave_one_complete_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fill(tmp_path, "same"), range(16)))
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["same"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_compilation_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="no"), cache_folder(tmp_path, "key"):
        raise RuntimeError("no")
    assert list(tmp_path.iterdir()) == []
