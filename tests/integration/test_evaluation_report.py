"""`lookalike evaluate` as a whole: the real model, the real services, the report read again."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder_service.model import features
from embedder_service.model.bundle import load
from embedder_service.model.feature_graph import feature_graph
from embedder_service.runtimes.openvino import OpenVinoRuntime
from workbench.demo_images import DemoImages
from workbench.main import main
from workbench.peers import PEERS, installed

_DIMS = 64  # of the bundle


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def evaluated(bundle: Path, demo_images: DemoImages, data_dir: Path) -> dict[str, Any]:
    """The figures of a run on the demo images, which leaves its report in `data_dir`."""
    return _evaluate(bundle, demo_images.copies, data_dir)


def _evaluate(bundle: Path, images: Path, data_dir: Path) -> dict[str, Any]:
    flags = ["--images", str(images), "--bundle", str(bundle), "--data-dir", str(data_dir), "--precision", "f32"]
    assert main(["evaluate", "--quick", *flags]) == 0
    figures: dict[str, Any] = json.loads((data_dir / "evaluate" / "report.json").read_text())
    return figures


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_figures_agree_with_each_other_and_with_the_services(evaluated: dict[str, Any]) -> None:
    stored = evaluated["retrieval"][-1]
    assert stored["dims"] == _DIMS
    # The services search the same vectors, exactly: Milvus Lite compares with every row.
    assert evaluated["accuracy"] == pytest.approx(stored["accuracy"], abs=0.002)
    assert stored["accuracy"] > 0.9  # copies of one photograph
    assert stored["recall_at"]["1"] <= stored["recall_at"]["5"] <= stored["recall_at"]["10"]
    assert np.mean(list(evaluated["class_accuracy"].values())) == pytest.approx(stored["accuracy"])
    assert [size["dims"] for size in evaluated["pca"]] == [1, 2, 3, 4, 5, 10, 20, 50, 75, 100, 150, 200]
    variance = [size["explained_variance"] for size in evaluated["pca"]]
    assert variance == sorted(variance)
    # Fitted on the images that the bundle was fitted on: a size beside it is as good.
    assert evaluated["pca"][7]["accuracy_normalised"] == pytest.approx(stored["accuracy"], abs=0.05)


def test_every_way_to_search_is_measured_or_said_to_be_missing(evaluated: dict[str, Any]) -> None:
    ways = {way["name"]: way for way in evaluated["indexes"][1:]}
    assert set(ways) == {*PEERS, "Lookalike, Milvus Lite"}
    for name, way in ways.items():
        if name in PEERS and not installed(PEERS[name][0]):
            assert way["settings"].startswith("not installed: pip install ")
            assert way["recall"] is None
            continue
        assert way["recall"] >= (0.3 if name == "Faiss IVF-PQ" else 0.9), name
        assert way["dims"] == _DIMS
        for figure in ("lesson_us", "query_us", "batch_per_second", "build_seconds", "bytes"):
            assert way[figure] > 0, (name, figure)
    assert "HNSW" in ways["Lookalike, Milvus Lite"]["settings"]


def test_the_report_shows_it_all_and_asks_nobody_for_anything(evaluated: dict[str, Any], data_dir: Path) -> None:
    text = (data_dir / "evaluate" / "report.html").read_text()
    page = _Page(text)
    pictures = [source for source in page.sources if source.startswith("data:image/")]
    assert len(pictures) > 8 * 7
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(http" not in text
    for part in (
        *("Accuracy against dimensions", "Measures of retrieval", "Ways to search", "A map of the images"),
        *("Neighbours of random images", "How far the neighbours are", "The most confused pairs"),
        *("The best and the worst classes", "Near-duplicates in the data", "Where the time went"),
        f"{evaluated['accuracy']:.2%}",
        f"{evaluated['retrieval'][-1]['mean_average_precision']:.4f}",
        "87.03",  # the lesson's, at 150 dimensions
        "59,600.0",
    ):
        assert part in page.text, part
    assert len(text) < 15_000_000


def test_images_that_are_gone_are_no_neighbours_any_more_and_a_class_may_be_called_anything(
    evaluated: dict[str, Any], bundle: Path, demo_images: DemoImages, data_dir: Path, tmp_path: Path
) -> None:
    images = sorted(demo_images.copies.rglob("*.*"))
    nasty = '"><img src=x onerror=alert(1)>&'
    for path in images[::3]:
        copy = tmp_path / path.relative_to(demo_images.copies)
        if copy.parent.name == images[0].parent.name:
            copy = copy.parent.with_name(nasty) / copy.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    figures = _evaluate(bundle, tmp_path, data_dir)
    assert figures["images"] == len(images[::3]) < evaluated["images"]
    assert figures["accuracy"] == pytest.approx(figures["retrieval"][-1]["accuracy"], abs=0.01)
    text = (data_dir / "evaluate" / "report.html").read_text()
    assert "<img src=x" not in text
    assert nasty in _Page(text).text


def test_the_features_before_the_pca_are_those_that_the_bundle_projects(bundle: Path, demo_images: DemoImages) -> None:
    loaded = load(bundle)
    paths = sorted(demo_images.copies.rglob("*.*"))[:3]
    rows = []
    for model in (feature_graph(loaded), loaded.openvino_model("f32")):
        runtime = OpenVinoRuntime(model)
        rows.append(np.concatenate([runtime.run(features.read(path, loaded.manifest.input)) for path in paths]))
        runtime.close()
    assert np.linalg.norm(rows[0], axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    with np.load(bundle / "pca.npz") as pca:
        projected = (rows[0] - pca["mean"]) @ pca["components"].T
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    assert (projected * rows[1]).sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_a_backbone_without_weights_is_listed_as_such(
    demo_images: DemoImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    flags = ["--images", str(demo_images.copies), "--sample", "40", "--dims", "16", "--json", str(figures)]
    chosen = ["--backbone", "mobilenet", "--backbone", "efficientnet_lite0", "--weights", "mobilenet=/nowhere.h5"]
    assert main(["compare-backbones", *flags, *chosen]) == 0
    missing, lite = json.loads(figures.read_text())
    assert missing["accuracy"] is None
    assert "/nowhere.h5" in missing["left_out"]
    assert "MobileNet was left out" in capsys.readouterr().out
    assert lite["features"] == 1280
    assert lite["accuracy"] > 0.3
    assert lite["images_per_second"] > 0
    assert lite["index_bytes"] > lite["index_bytes_pca"] > 40 * 16 * 4
