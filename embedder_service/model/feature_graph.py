"""The features that a bundle's PCA starts from: its graph, cut off before that."""

from __future__ import annotations

from embedder_service.model.bundle import Bundle
from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.openvino import read_model
from service_kit.errors import FailedPrecondition


def feature_graph(bundle: Bundle) -> ov.Model:
    """Returns the part of a bundle's float32 graph before the PCA, or all of it where there is none.

    It takes uint8 [?, H, W, 3] and gives float32 [?, F], the features of the backbone, rows of L2 norm 1.

    Raises:
        FailedPrecondition: the graph does not end in a PCA, as the manifest says that it does.
    """
    manifest = bundle.manifest
    model = read_model(bundle.openvino_model("f32"))
    if manifest.pca is None:
        return model
    # The PCA is a product with the components, of features that the mean was taken from: see `graph.Embedder`.
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    centred = products[-1].input_value(0).get_node() if products else None
    if centred is None or centred.get_type_name() not in ("Add", "Subtract"):
        raise FailedPrecondition(f"the model of {bundle.path} does not end in a PCA; build the bundle again")
    features = centred.input_value(0)
    if features.get_partial_shape()[1].get_length() != manifest.features:
        raise FailedPrecondition(
            f"the model of {bundle.path} has {features.get_partial_shape()[1]} features before its PCA and not "
            f"{manifest.features}; build the bundle again"
        )
    return ov.Model([features], model.get_parameters(), "features")
