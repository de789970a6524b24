from dataclasses import dataclass
from pathlib import Path

import pytest

from service_kit.settings import ServerSettings, describe, load, reference, setting


@dataclass(frozen=True)
class Settings(ServerSettings):
    """Serves nothing."""

    size: int = setting(4, "A size.", min=1)
    ratio: float = setting(0.5, "A ratio of 50 %.")
    mode: str = setting("fast", "A mode.", choices=("fast", "slow"))
    folder: Path | None = setting(None, "A folder.")
    password: str = setting("", "A password.", secret=True)


def read(*argv, **environ):
    return load(Settings, prefix="X", argv=argv, environ=environ)


def test_defaults_hold_when_nothing_is_said():
    assert read() == Settings()


def test_a_flag_beats_the_variable_which_beats_the_default():
    assert read(X_SIZE="8").size == 8
    assert read("--size", "16", X_SIZE="8").size == 16


@pytest.mark.parametrize(
    ("argv", "name", "expected"),
    [
        (["--size", "16K"], "size", 16 << 10),
        (["--size", "2m"], "size", 2 << 20),
        (["--ratio", "0.25"], "ratio", 0.25),
        (["--folder", "a/b"], "folder", Path("a/b")),
        (["--folder", ""], "folder", None),
        (["--reflection", "off"], "reflection", False),
        (["--reflection", "TRUE"], "reflection", True),
        (["--insecure"], "insecure", True),
        (["--insecure", "false"], "insecure", False),
    ],
)
def test_values_have_the_type_of_their_field(argv, name, expected):
    assert getattr(read(*argv), name) == expected


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--size", "many"], {}, "--size: 'many' is not of type int"),
        (["--size", "1.5"], {}, "--size: '1.5' is not of type int"),
        (["--size", "K"], {}, "--size: 'K' is not of type int"),
        (["--size", ""], {}, "--size: '' is not of type int"),
        (["--size", "0"], {}, "--size: 0 is below the least value, 1"),
        (["--mode", "odd"], {}, "--mode: 'odd' is none of fast, slow"),
        (["--reflection", "perhaps"], {}, "--reflection: 'perhaps' is not of type bool"),
        ([], {"X_SIZE": "many"}, "environment variable X_SIZE: 'many' is not of type int"),
        ([], {"X_SIZE": "0"}, "environment variable X_SIZE: 0 is below the least value, 1"),
        (["--siz", "3"], {}, "unrecognized arguments: --siz"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag_or_variable(argv, environ, message, capsys):
    with pytest.raises(SystemExit) as caught:
        read(*argv, **environ)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_variable_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--ratio VALUE A ratio of 50 %. [X_RATIO; default: 0.5]" in text


def test_the_reference_has_a_row_for_every_setting():
    table = reference(Settings, "X")
    assert "| `--size` | `X_SIZE` | `4` | A size. |" in table
    assert "| `--mode` | `X_MODE` | `fast` | A mode. One of fast, slow. |" in table
    assert "| `--folder` | `X_FOLDER` | `none` | A folder. |" in table
    assert "| `--max-message-bytes` | `X_MAX_MESSAGE_BYTES` | `67108864` |" in table


def test_a_secret_is_described_without_its_value():
    assert describe(read("--password", "hunter2"))["password"] == "***"
    assert describe(read())["password"] == ""
    assert describe(read())["size"] == "4"
