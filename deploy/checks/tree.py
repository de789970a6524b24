"""What is checked: the files of the repository, and the objects that kustomize makes of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Object: TypeAlias = dict[str, Any]
# The folder of the environment that the checks run in: the tools lie beside the interpreter.
_ENVIRONMENT = Path(sys.prefix)


class Broken(Exception):
    """Something cannot even be read."""


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> list[str]:
    """Runs a tool; returns no lines if it is content, else what it says."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        return []
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines or [f"{Path(command[0]).name} ended with exit code {done.returncode}"]


def tool(name: str) -> Path:
    """The path of a tool that `make check-deploy` has installed."""
    for folder in ("bin", "debian/usr/bin", "checkov/bin"):
        if (path := _ENVIRONMENT / folder / name).exists():
            return path
    raise SystemExit(f"{name} is not installed in {_ENVIRONMENT}: run make check-deploy")


class Tree:
    """A repository.

    Attributes:
        root: its folder.
        deploy: deploy/ in it.
    """

    def __init__(self, root: Path, targets: Collection[str] | None = None) -> None:
        """`targets` are those that are rendered; all if None."""
        self.root = root
        self._targets = targets
        self.deploy = root / "deploy"

    @cached_property
    def rendered(self) -> dict[str, list[Object]]:
        """What kustomize makes of the overlays, the jobs, and of each component upon the base; by name.

        Raises:
            Broken: it cannot make anything of one of them.
        """
        found = {f"{path.parent.name}/{path.name}": self._render(path) for path in self._folders("overlays", "jobs")}
        for component in self._folders("components"):
            # In the tree, as kustomize takes no absolute paths and reads no files from above its folder.
            with tempfile.TemporaryDirectory(dir=self.deploy / "k8s", prefix=".check-") as folder:
                kustomization = {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "namespace": "lookalike",
                    "resources": ["../base"],
                    "components": [f"../components/{component.name}"],
                }
                (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
                found[f"components/{component.name}"] = self._render(Path(folder))
        return found

    @cached_property
    def services(self) -> dict[str, list[Object]]:
        """Those of them that are run: the overlays, and the base with each component."""
        return {name: objects for name, objects in self.rendered.items() if not name.startswith("jobs/")}

    @cached_property
    def jobs(self) -> dict[str, list[Object]]:
        """Those of them that end."""
        return {name: objects for name, objects in self.rendered.items() if name.startswith("jobs/")}

    @cached_property
    def settings(self) -> dict[str, str]:
        """The default of each environment variable of both services, from docs/settings.md."""
        page = (self.root / "docs" / "settings.md").read_text()
        return dict(re.findall(r"^\| `--[^|]*\| `(LOOKALIKE_\w+)` \| `([^`]*)` \|", page, re.MULTILINE))

    @cached_property
    def images(self) -> dict[str, dict[str, str]]:
        """The environment in each of our images, by its name, from the Dockerfiles."""
        return {f"lookalike-{path.stem}": _environment(path.read_text()) for path in self.dockerfiles}

    @property
    def dockerfiles(self) -> list[Path]:
        """All Dockerfiles."""
        return sorted((self.deploy / "docker").glob("*.Dockerfile"))

    def yaml_files(self) -> list[Path]:
        """All YAML files of deploy/."""
        return sorted(path for path in self.deploy.rglob("*.y*ml") if ".check-" not in str(path))

    def _folders(self, *kinds: str) -> list[Path]:
        folders = [path for kind in kinds for path in sorted((self.deploy / "k8s" / kind).iterdir()) if path.is_dir()]
        return [path for path in folders if self._targets is None or f"{path.parent.name}/{path.name}" in self._targets]

    def _render(self, folder: Path) -> list[Object]:
        done = subprocess.run(
            [tool("kubectl"), "kustomize", folder], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode or done.stderr:
            raise Broken(f"kustomize {folder.relative_to(self.root)}: {done.stderr.strip()}")
        return [each for each in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if each]


Check: TypeAlias = Callable[[Tree], Iterable[str]]


def reading(check: Check) -> Check:
    """Makes a tree that cannot be rendered a problem of the check that needs it."""

    def checked(tree: Tree) -> Iterator[str]:
        try:
            yield from check(tree)
        except Broken as error:
            yield str(error)

    return checked


def name(each: Object) -> str:
    """How messages call an object."""
    return f"{each['kind']} {each['metadata']['name']}"


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    """Those of some kinds."""
    return [each for each in objects if each["kind"] in kinds]


def workloads(objects: Iterable[Object]) -> list[Object]:
    """Those that have pods."""
    return of_kind(objects, "Deployment", "Job")


def template(workload: Object) -> Object:
    """The pods of a workload."""
    return workload["spec"]["template"]


def containers(workload: Object) -> list[Object]:
    """The containers of its pods, those for the start included."""
    spec = template(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a selector of matchLabels, as all of ours are, selects something with these labels."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def image_name(image: str) -> str:
    """The last part of an image's name: registry/lookalike/search:0.1.0@sha256:... is lookalike-search."""
    repository = image.partition("@")[0].rpartition(":")[0] or image
    parts = repository.split("/")
    return f"lookalike-{parts[-1]}" if parts[-2:-1] == ["lookalike"] else repository


def _environment(dockerfile: str) -> dict[str, str]:
    text = dockerfile.replace("\\\n", " ")
    pairs = (pair for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for pair in line.split())
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
