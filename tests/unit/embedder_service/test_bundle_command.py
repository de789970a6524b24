import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import workbench
from embedder_service.model import bundle as bundles
from embedder_service.model import checksums
from workbench.main import main

ROOT = Path(workbench.__file__).parents[1]


def test_show_prints_what_the_bundle_is_made_of(lite0, capsys):
    assert main(["bundle", "show", str(lite0.path)]) == 0
    shown = capsys.readouterr().out
    assert lite0.manifest.fingerprint in shown
    assert "efficientnet_lite0, 3,413,024 parameters" in shown
    assert "16 dimensions keep" in shown


def test_verify_embeds_the_pattern_with_both_runtimes(lite0, capsys):
    assert main(["bundle", "verify", str(lite0.path)]) == 0
    shown = capsys.readouterr().out
    assert "all files are as they were built" in shown
    assert shown.count("as it should be") == len(lite0.manifest.precisions) + 1  # TensorFlow's float32


def test_verify_fails_for_a_changed_file(lite0_copy, capsys):
    (lite0_copy.path / "pca.npz").write_bytes(b"")
    assert main(["bundle", "verify", str(lite0_copy.path)]) == 1
    assert "pca.npz has changed" in capsys.readouterr().err


def test_verify_fails_when_the_vectors_are_others(lite0_copy, capsys):
    """As after a library, or a CPU, that computes something else: here the manifest is the one that differs."""
    manifest = lite0_copy.manifest
    f32 = {"f32": manifest.precisions["f32"]}
    turned = replace(manifest, pattern_vector=manifest.pattern_vector[::-1], precisions=f32)
    (lite0_copy.path / bundles.MANIFEST).write_text(turned.to_json())
    checksums.write(lite0_copy.path)
    assert main(["bundle", "verify", str(lite0_copy.path)]) == 1
    assert capsys.readouterr().out.count("WRONG") == 2


def test_build_writes_nothing_but_its_own_lines(image_paths, tmp_path):
    """No notes of TensorFlow, Keras or OpenVINO; no terminal, so plain lines for progress."""
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(image_paths[0].parent, images)
    (images / "broken.jpg").write_text("not an image")
    options = ("--backbone", "mobilenet", "--weights", "random", "--dims", "4", "--images", images, "--out", out)
    command = [sys.executable, "-m", "workbench.main", "bundle", "build", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "broken.jpg: the 12 bytes, which begin with 0x6e6f7420, are not an image" in done.stdout
    assert "FOR TESTS ALONE" in done.stdout
    stages = [line.strip().partition(":")[0] for line in done.stderr.splitlines()]
    assert stages[:3] == ["Features", "PCA", "Export"]
    assert set(stages[3:]) <= {"Quantize", "Measure bf16", "Measure int8"}
    assert len(stages) == len(set(stages))
    # Nothing but what was left out comes before the description, and NNCF prints to this stream.
    assert all(line.startswith("left out ") for line in done.stdout.partition("bundle   ")[0].splitlines())
    bundles.load(out).verify_checksums()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere is not a model bundle: there is no such directory"),
        (["verify", "nowhere"], "nowhere is not a model bundle"),
        (["build", "--images", "nowhere", "--out", "bundle"], "nowhere"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
