import numpy as np
import pytest

from embedder_service.decode import decode
from embedder_service.model import bundle as bundles
from embedder_service.model import network
from embedder_service.model.backbones import find
from embedder_service.model.build import build
from embedder_service.runtimes import load_runtime
from service_kit.errors import FailedPrecondition, InvalidArgument


def quiet(stage, done, total):
    pass


def built(out, paths, dims=4, weights="random", backbone="mobilenet", progress=quiet):
    return build(backbone, weights, paths, dims, out, progress)


def test_the_manifest_says_what_was_built(lite0, image_paths):
    manifest = lite0.manifest
    assert (manifest.backbone, manifest.weights.source, manifest.features, manifest.dims) == (
        "efficientnet_lite0",
        "imagenet",
        1280,
        16,
    )
    assert not manifest.random
    assert manifest.pca.images == len(image_paths)
    assert 0.5 < manifest.pca.explained_variance_ratio <= 1
    assert manifest.images_digest == bundles.images_digest(image_paths)
    assert manifest.precisions["f32"].images == 17
    assert manifest.precisions["f32"].max_loss < 1e-5
    assert len(manifest.pattern_vector) == 16
    assert manifest.built_with.keys() >= {"tensorflow", "keras", "openvino"}


def test_the_graph_is_l2_then_pca_then_l2(lite0, image_paths):
    model, _ = network.create(find("efficientnet_lite0"), "imagenet")
    image = decode(image_paths[0].read_bytes(), height=224, width=224, resize="bilinear")
    features = np.asarray(model((image[np.newaxis].astype(np.float32) - 127) / 128))[0]
    features = features / np.linalg.norm(features)
    pca = np.load(lite0.path / "pca.npz")
    expected = pca["components"] @ (features - pca["mean"])
    expected /= np.linalg.norm(expected)
    assert np.dot(load_runtime(lite0, precision="f32").run(image[np.newaxis])[0], expected) > 0.9999


def test_pca_is_kept_for_audit(lite0):
    pca = np.load(lite0.path / "pca.npz")
    assert pca["components"].shape == (16, 1280)
    np.testing.assert_allclose(pca["components"] @ pca["components"].T, np.eye(16), atol=1e-5)
    assert pca["mean"].shape == (1280,)
    assert np.all(np.diff(pca["explained_variance"]) <= 0)
    assert pca["explained_variance_ratio"].sum() == pytest.approx(lite0.manifest.pca.explained_variance_ratio)
    assert network.digest([pca["mean"], pca["components"]]) == lite0.manifest.pca.sha256


def test_similar_pictures_are_closer_than_others(lite0, image_paths):
    """Every photograph is nearest to itself mirrored or cropped."""
    runtime = load_runtime(lite0)
    images = [decode(path.read_bytes(), height=224, width=224, resize="bilinear")[np.newaxis] for path in image_paths]
    vectors = np.concatenate([runtime.run(image) for image in images])
    similarity = vectors @ vectors.T - 2 * np.eye(len(vectors))
    names = [path.name.rsplit("-", 1)[0] for path in image_paths]
    assert all(names[nearest] == name for name, nearest in zip(names, similarity.argmax(axis=1), strict=True))


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unreadable")
    files = [folder / "text.jpg", folder / "empty.png"]
    files[0].write_text("not an image")
    files[1].write_bytes(b"")
    return files


@pytest.fixture(scope="module")
def progress_calls():
    return []


@pytest.fixture(scope="module")
def with_unreadable(tmp_path_factory, image_paths, unreadable, progress_calls):
    out = tmp_path_factory.mktemp("built") / "bundle"
    return built(out, [*image_paths, *unreadable], progress=lambda *call: progress_calls.append(call))


def test_unreadable_images_are_left_out_and_reported(with_unreadable, image_paths, unreadable):
    assert {skipped.path for skipped in with_unreadable.skipped} == set(unreadable)
    assert all(skipped.reason for skipped in with_unreadable.skipped)
    assert with_unreadable.bundle.manifest.pca.images == len(image_paths)


def test_random_weights_are_admitted(with_unreadable):
    assert with_unreadable.bundle.manifest.random


def test_progress_is_told_to_the_end(with_unreadable, progress_calls, image_paths):
    assert [done for stage, done, _ in progress_calls if stage == "features"] == list(range(1, len(image_paths) + 3))
    stages = list(dict.fromkeys(stage for stage, _, _ in progress_calls))
    assert stages[:3] == ["features", "PCA", "export"]
    assert set(stages[3:]) <= {"quantize", "measure bf16", "measure int8"}
    for stage in stages:
        done, total = [call[1:] for call in progress_calls if call[0] == stage][-1]
        assert done == total


def test_the_order_of_the_inputs_does_not_matter(with_unreadable, tmp_path, image_paths, unreadable):
    again = built(tmp_path / "again", [*unreadable, *image_paths[::-1]]).bundle.manifest
    assert again.fingerprint == with_unreadable.bundle.manifest.fingerprint
    assert again.images_digest == with_unreadable.bundle.manifest.images_digest


def test_without_pca_the_embedding_is_the_features(tmp_path, unreadable):
    bundle = built(tmp_path / "bundle", unreadable, dims=None).bundle
    assert bundle.manifest.pca is None
    assert bundle.manifest.dims == 1024
    assert not (bundle.path / "pca.npz").exists()
    bundle.verify_checksums()
    vector = load_runtime(bundle).run(bundles.pattern_image(224, 224))
    assert vector.shape == (1, 1024)
    assert vector.min() >= 0  # ReLU


def test_too_few_images_are_refused_before_any_work(tmp_path, image_paths):
    with pytest.raises(InvalidArgument, match=r"^3 readable images are too few to fit 4 dimensions; give at least 4"):
        built(tmp_path / "bundle", image_paths[:3])


def test_too_few_readable_images_are_refused_and_leave_nothing(tmp_path, image_paths, unreadable):
    place = tmp_path / "bundles"
    with pytest.raises(
        InvalidArgument,
        match=r"^3 readable images are too few to fit 4 dimensions \(2 more could not be read; the first: ",
    ):
        built(place / "bundle", [*image_paths[:3], *unreadable])
    assert not place.exists()


@pytest.mark.parametrize("dims", [0, -1, 1025])
def test_impossible_dimensions_are_refused(tmp_path, image_paths, dims):
    with pytest.raises(InvalidArgument, match=f"dims is {dims}; mobilenet has 1024 features, choose 1 to 1024"):
        built(tmp_path / "bundle", image_paths, dims=dims)


def test_a_foreign_directory_is_not_overwritten(tmp_path, image_paths):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(FailedPrecondition, match="photos is there already and is not a model bundle"):
        built(precious, image_paths)
    assert [path.name for path in precious.iterdir()] == ["manifest.json"]


def test_a_bundle_is_replaced_and_nothing_else_left_beside_it(tmp_path, image_paths, lite0_copy):
    out = lite0_copy.path
    built(out, image_paths)
    assert bundles.load(out).manifest.backbone == "mobilenet"
    bundles.load(out).verify_checksums()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_failed_export_leaves_the_old_bundle(image_paths, lite0_copy):
    def fail(stage, done, total):
        if stage == "export":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(lite0_copy.path, image_paths, progress=fail)
    lite0_copy.verify_checksums()
    assert [path.name for path in lite0_copy.path.parent.iterdir()] == [lite0_copy.path.name]
