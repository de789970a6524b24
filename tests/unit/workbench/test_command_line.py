"""The command as users see it: quick help, and errors of one line."""

import subprocess
import sys

import pytest

_HEAVY = ("tensorflow", "openvino", "pymilvus", "sklearn", "numpy", "PIL", "rich", "grpc", "lookalike")


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "workbench.main", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_lists_the_commands_and_loads_nothing_heavy():
    script = (
        "import sys, workbench.main\n"
        "try:\n    workbench.main.main(['--help'])\n"
        f"finally:\n    print('LOADED', [name for name in {_HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "LOADED []" in done.stdout, done.stdout
    commands = ("quickstart", "serve", "ingest", "search", "collections", "reindex", "evaluate", "recall", "caltech101")
    for command in commands:
        assert command in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart",),
        ("serve",),
        ("ingest",),
        ("search",),
        ("collections",),
        ("collections", "describe"),
        ("collections", "create-version"),
        ("collections", "switch"),
        ("reindex",),
        ("evaluate",),
        ("recall",),
        ("caltech101",),
    ],
)
def test_every_command_has_help(command):
    done = _run(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: lookalike {' '.join(command)}")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ingest", "nowhere", "--collection", "photos"), "nowhere does not exist"),
        (("search", "nowhere.jpg", "--collection", "photos"), "nowhere.jpg: No such file or directory"),
        (("collections", "list", "--target", "127.0.0.1:1"), "UNAVAILABLE"),
        (("quickstart", "--images", "nowhere"), "nowhere is not a folder"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_exit_code_1(arguments, reason):
    done = _run(*arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_wrong_argument_is_exit_code_2():
    done = _run("search", "a.jpg", "--collection", "photos", "--top-k", "0")
    assert done.returncode == 2
    assert "'0' is not a positive whole number" in done.stderr
