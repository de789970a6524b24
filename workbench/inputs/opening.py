"""Tells what a PATH of the command line is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lookalike.types import Attributes
from workbench.errors import CommandError
from workbench.images import SUFFIXES
from workbench.inputs.archives import SUFFIXES_OF_ARCHIVES, archive
from workbench.inputs.folders import folder
from workbench.inputs.found import Found, Input
from workbench.inputs.lists import single, standard_input
from workbench.inputs.manifests import SUFFIXES_OF_MANIFESTS, manifest


def open_inputs(paths: Sequence[str], *, nul: bool = False, class_from_folder: bool = True) -> list[Input]:
    """Returns what is behind each path; "-" is standard input.

    Args:
        nul: paths on standard input end with NUL.
        class_from_folder: images of folders, archives and lists get the attribute `class`, the name of their folder.

    Raises:
        CommandError: a path is of no known kind, cannot be read, or comes twice.
    """
    inputs = [_open(path, nul, class_from_folder) for path in paths]
    names = [each.name for each in inputs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CommandError(f"{min(twice)} is given twice")
    return inputs


def with_more(input: Input, *, id_prefix: str, attributes: Attributes) -> Input:
    """Returns an input whose images have a longer id, and further attributes beside their own, which come first."""
    if not id_prefix and not attributes:
        return input

    def find() -> Iterator[Found]:
        for found in input.find():
            yield replace(found, id=id_prefix + found.id, attributes={**attributes, **found.attributes})

    return replace(input, find=find)


def _open(name: str, nul: bool, class_from_folder: bool) -> Input:
    if name == "-":
        return standard_input(nul=nul, class_from_folder=class_from_folder)
    path = Path(name).expanduser()
    lowered = path.name.lower()
    if path.is_dir():
        return folder(path, class_from_folder=class_from_folder)
    if not path.exists():
        raise CommandError(f"{path} does not exist: give a folder, a tar file, a manifest, or - for standard input")
    if lowered.endswith(SUFFIXES_OF_ARCHIVES):
        return archive(path, class_from_folder=class_from_folder)
    if lowered.endswith(SUFFIXES_OF_MANIFESTS):
        return manifest(path)
    if path.suffix.lower() in SUFFIXES:
        return single(path, class_from_folder=class_from_folder)
    known = ", ".join((*SUFFIXES_OF_ARCHIVES, *SUFFIXES_OF_MANIFESTS))
    raise CommandError(f"{path} is neither a folder nor of a known kind ({known}, or an image)")
