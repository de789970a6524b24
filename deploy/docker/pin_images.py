"""Puts the digest behind the tag of every image in deploy/: `make pin-images`.

Docker asks the registries; so it needs docker with buildx, and the right to read your images. A tag that has a digest
already gets the present one, so this is the way to take updates of the base images, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_REFERENCE = r"[a-z0-9][a-z0-9./_-]*:[A-Za-z0-9._-]+"
_DIGEST = r"@sha256:[0-9a-f]{64}"
# ARG PYTHON=python:3.11-slim; image: prom/prometheus:v3.5.0
_PLACES = re.compile(rf"^(\s*(?:ARG (?:PYTHON|BASE)=|image: ))({_REFERENCE})(?:{_DIGEST})?$", re.MULTILINE)
# An entry of `images` in a kustomization.
_ENTRY = re.compile(
    r"^(?P<head>\s+newName: (?P<name>\S+)\n\s+newTag: (?P<tag>[^\s@]+))(?P<digest>\n\s+digest: \S+)?$", re.MULTILINE
)


@cache
def digest(reference: str) -> str:
    """The digest that a tag stands for now, of all its platforms together.

    Raises:
        SystemExit: docker cannot tell.
    """
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", reference]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit("docker is not installed: the digests come from the registries, and docker asks them")
    found = done.stdout.strip()
    if done.returncode or not re.fullmatch(_DIGEST.lstrip("@"), found):
        sys.exit(f"no digest of {reference}: {done.stderr.strip() or found}")
    return found


def pin(text: str) -> str:
    """A file's text with the digests in it. Our own images without a registry are left: they are yet to be pushed."""

    def place(found: re.Match[str]) -> str:
        reference = found[2]
        return found[0] if reference.startswith("lookalike-") else f"{found[1]}{reference}@{digest(reference)}"

    def entry(found: re.Match[str]) -> str:
        indent = re.match(r"\s*", found["head"].splitlines()[-1])
        assert indent is not None
        return f"{found['head']}\n{indent[0]}digest: {digest(found['name'] + ':' + found['tag'])}"

    return _ENTRY.sub(entry, _PLACES.sub(place, text))


def main(root: Path = _ROOT) -> int:
    """Pins all files of deploy/; none is written unless all digests are known."""
    deploy = root / "deploy"
    files = [*deploy.rglob("*.Dockerfile"), *deploy.rglob("*.yaml")]
    pinned = {file: pin(file.read_text()) for file in sorted(files)}
    for file, text in pinned.items():
        if file.read_text() != text:
            file.write_text(text)
            print(f"pinned {file.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
