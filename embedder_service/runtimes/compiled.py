"""Where OpenVINO keeps compiled models between starts."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service_kit.logs import log

_log = logging.getLogger(__name__)

# Models kept, each of about the size of its weights.
_MODELS = 4
# Tells our folders from whatever else is in the directory.
_SUFFIX = ".compiled"
_NOT_KEPT = "compiled models cannot be kept: the next start is not quicker"


def user_cache_dir() -> Path:
    """The user's own cache directory for this program.

    https://specifications.freedesktop.org/basedir-spec/latest/

    Raises:
        RuntimeError: the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lookalike"


@contextmanager
def cache_folder(root: Path | None, key: str) -> Iterator[Path | None]:
    """The folder for OpenVINO's CACHE_DIR while one model is compiled; None, and a warning, where there can be none.

    A model has a folder of its own, complete from the moment that it is there: OpenVINO writes its files in place, and
    another server that starts at the same time must not read half of one. The models used longest ago are dropped.

    Args:
        root: the directory of all models, made if need be; the user's if None.
        key: says all that the compiled model depends on.
    """
    try:
        root = root or user_cache_dir() / "openvino"
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = root / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}"
        if kept.is_dir():
            os.utime(kept)
            new = None
        else:
            new = Path(tempfile.mkdtemp(prefix=".", suffix=_SUFFIX, dir=root))
    except (OSError, RuntimeError) as error:
        log(_log, logging.WARNING, _NOT_KEPT, reason=str(error))
        yield None
        return
    if new is None:
        yield kept
        return
    try:
        yield new
        if not any(new.iterdir()):  # OpenVINO says nothing of a disk that is full, and goes on
            log(_log, logging.WARNING, _NOT_KEPT, reason=f"nothing could be written to {new}: is the disk full?")
            return
        # Another server may have been first: its folder has the same model in it.
        with suppress(OSError):
            new.rename(kept)
        _drop_old(root)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _drop_old(root: Path) -> None:
    with suppress(OSError):  # another server drops the same ones
        folders = sorted(root.glob(f"*{_SUFFIX}"), key=lambda folder: folder.stat().st_mtime)
        for folder in folders[:-_MODELS]:
            shutil.rmtree(folder, ignore_errors=True)
