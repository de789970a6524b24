"""`lookalike bundle`: builds a model bundle, shows one, and proves that one works here."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedder_service.model.backbones import BACKBONES, DEFAULT
from embedder_service.model.gate import Gate

if TYPE_CHECKING:
    from embedder_service.model.bundle import Bundle
    from embedder_service.model.manifest import Manifest

# Float32 on another machine or by another library: the last bits differ, no more.
_MOST_LOSS = 1e-4
# The pattern looks like no image of the build, and other kernels round otherwise: it may lose this many times as much
# as the worst of those images.
_SLACK = 2


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("bundle", help="build, show or verify a model bundle")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _register_build(actions)
    for name, run, text in (
        ("show", _show, "print what a bundle is made of"),
        ("verify", _verify, "check a bundle's files, and that it gives here the vectors it gave where it was built"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("bundle", type=Path, metavar="DIR", help="the bundle")
        action.set_defaults(run=run)


def _register_build(actions: Any) -> None:
    parser = actions.add_parser(
        "build",
        help="build a bundle",
        description="Builds a model bundle: a network with its weights, and a PCA fitted on the images of a folder.",
    )
    parser.add_argument(
        "--backbone", default=DEFAULT, choices=BACKBONES, metavar="NAME", help=f"{', '.join(BACKBONES)} ({DEFAULT})"
    )
    parser.add_argument(
        "--weights",
        default="imagenet",
        metavar="WHICH",
        help="imagenet, the path of a weights file, or random, which is for tests alone (default: %(default)s)",
    )
    parser.add_argument(
        "--weights-sha256",
        metavar="HEX",
        help="SHA-256 that the file of the weights must have; it is not read otherwise (default: any; that of "
        "efficientnet_lite0 is known)",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="images to fit the PCA on")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="folder in DIR to leave out; may be repeated"
    )
    parser.add_argument(
        "--dims", type=int, default=150, metavar="N", help="dimensions after PCA; 0 for no PCA (default: %(default)s)"
    )
    parser.add_argument(
        "--max-accuracy-loss",
        type=float,
        default=Gate.max_accuracy_loss,
        metavar="POINTS",
        help="percentage points of accuracy that a faster precision may lose and still be kept, where the images lie "
        "in folders, one for each class (default: %(default)s)",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        default=Gate.min_cosine,
        metavar="COSINE",
        help="least mean cosine to float32 of a faster precision that is kept (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to put the bundle")
    parser.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from embedder_service.model.build import build
    from workbench.images import classes, find_images
    from workbench.progress import stages

    files = find_images(args.images, exclude=args.exclude)
    paths = [file.path for file in files]
    gate = Gate(args.max_accuracy_loss, args.min_cosine)
    with stages() as show:
        built = build(
            args.backbone,
            args.weights,
            paths,
            args.dims or None,
            args.out,
            show,
            weights_sha256=args.weights_sha256,
            classes=classes(files),
            gate=gate,
        )
    for skipped in built.skipped:
        print(f"left out {skipped.path}: {skipped.reason}")
    for name, reason in built.left_out.items():
        print(f"left out the precision {name}: {reason}")
    print(_describe(built.bundle))
    return 0


def _show(args: argparse.Namespace) -> int:
    from embedder_service.model.bundle import load

    print(_describe(load(args.bundle)))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from embedder_service.model.bundle import load

    bundle = load(args.bundle)
    bundle.verify_checksums()
    print(f"{'checksums':<20}all files are as they were built")
    checks = [_check(bundle, name, precision) for name, precision in _to_check(bundle)]
    return 0 if all(checks) else 1


def _to_check(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Runtime and precision of each way that this bundle can be run in here."""
    from embedder_service.runtimes.openvino import require_native
    from service_kit.errors import FailedPrecondition

    with_tensorflow = [precision for precision in ("f32", "f16") if precision in bundle.manifest.precisions]
    for precision in bundle.manifest.precisions:
        if precision == "f16":
            continue
        try:
            require_native(precision)
        except FailedPrecondition as error:
            print(f"{precision:<20}left out: {error.message}")
        else:
            yield "openvino", precision
    if importlib.util.find_spec("tensorflow") is not None:
        yield from (("tensorflow", precision) for precision in with_tensorflow)


def _check(bundle: Bundle, name: str, precision: str) -> bool:
    """Whether a runtime gives the vector in the manifest, and says so."""
    loss = _loss(bundle, name, precision)
    # Nothing is more exact than another runtime in float32.
    allowed = max(_MOST_LOSS, _SLACK * bundle.manifest.precisions[precision].max_loss)
    verdict = "as it should be" if loss <= allowed else f"WRONG: it should be at least {1 - allowed:.6f}"
    print(f"{f'{name} {precision}':<20}cosine to the vector in the manifest: {1 - loss:.6f}, {verdict}")
    return loss <= allowed


def _loss(bundle: Bundle, name: str, precision: str) -> float:
    """1 - cosine similarity between the pattern's embedding here and the one in the manifest."""
    import numpy as np

    from embedder_service.model.bundle import pattern_image
    from embedder_service.runtimes import load_runtime

    taken = bundle.manifest.input
    runtime = load_runtime(bundle, name, precision=precision, buckets=(1,))
    vector = runtime.run(pattern_image(taken.height, taken.width))[0]
    runtime.close()
    expected = np.asarray(bundle.manifest.pattern_vector)
    return 1.0 - float(np.dot(vector, expected) / np.linalg.norm(expected))


def _describe(bundle: Bundle) -> str:
    rows = _rows(bundle.manifest)
    return "\n".join(f"{name:<20}{value}" for name, value in [("bundle", str(bundle.path)), *rows])


def _rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    backbone, taken, pca = BACKBONES.get(manifest.backbone), manifest.input, manifest.pca
    yield "fingerprint", manifest.fingerprint
    yield "backbone", manifest.backbone + (f", {backbone.parameters:,} parameters" if backbone else "")
    meaning = ": FOR TESTS ALONE, its vectors mean nothing" if manifest.random else ""
    yield "weights", f"{manifest.weights.source}{meaning} (SHA-256 {manifest.weights.sha256})"
    yield "input", f"{taken.height}x{taken.width}, {taken.resize}, preprocessing {taken.preprocessing!r}"
    yield "features", f"{manifest.features}, {manifest.pooling} pooling, {manifest.normalisation} normalisation"
    if pca:
        yield "PCA", f"{pca.dims} dimensions keep {pca.explained_variance_ratio:.1%} of the variance"
        yield "", f"fitted on {pca.images:,} images"
    else:
        yield "PCA", "none"
    yield "dimensions", str(manifest.dims)
    for name, measured in manifest.precisions.items():
        loss = f"mean {measured.mean_loss:.1e}, worst {measured.max_loss:.1e}"
        yield f"loss of {name}", f"{loss} (1 - cosine to float32, {measured.images:,} images)"
        if measured.accuracy is not None:
            points = "" if name == "f32" else f", {-(manifest.accuracy_loss(name) or 0):+.2f} points"
            yield f"accuracy of {name}", f"{measured.accuracy:.2%}{points}"
    yield "built with", ", ".join(f"{tool} {version}" for tool, version in manifest.built_with.items())
