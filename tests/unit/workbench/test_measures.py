"""Measures of retrieval, against their definitions written out for one image after the other."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from embedder_service.model.accuracy import accuracy_of
from workbench import measures

_K = 5


@pytest.fixture(params=[0, 1, 2])
def data(request):
    """1,100 vectors, more than are compared at a time, in classes of unequal size that overlap."""
    random = np.random.default_rng(request.param)
    classes = random.choice(6, 1100, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    vectors = random.standard_normal((6, 8))[classes] + 0.8 * random.standard_normal((1100, 8))
    return vectors.astype(np.float32), classes.astype(np.int64)


def _ranking(vectors, image):
    distances = np.linalg.norm(vectors.astype(np.float64) - vectors[image], axis=1)
    distances[image] = np.inf
    order = np.argsort(distances, kind="stable")[:-1]
    return order, distances[order]


def test_neighbours_are_the_nearest_others_with_their_distances(data):
    vectors, _ = data
    found = measures.nearest(vectors, 7)
    for image in range(0, len(vectors), 37):
        order, distances = _ranking(vectors, image)
        assert found.ids[image].tolist() == order[:7].tolist()
        assert found.distances[image] == pytest.approx(distances[:7], rel=1e-5)


def test_an_exact_copy_is_a_neighbour_at_distance_0_and_the_image_itself_is_none():
    vectors = np.array([[3, 4], [3, 4], [0, 1], [9, 9]], np.float32)
    found = measures.nearest(vectors, 2)
    assert found.ids[:2].tolist() == [[1, 2], [0, 2]]
    assert found.distances[0, 0] == 0


def test_the_accuracy_of_unit_vectors_is_that_of_the_model_build(data):
    vectors, classes = data
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ours = measures.accuracy(measures.nearest(vectors, 10), classes, _K)
    assert ours == pytest.approx(accuracy_of(vectors, [str(number) for number in classes], _K), abs=1e-4)


def test_accuracy_recall_and_map_are_as_defined(data):
    vectors, classes = data
    right, hits, precisions = [], Counter(), []
    for image in range(len(vectors)):
        same = classes[_ranking(vectors, image)[0]] == classes[image]
        right.append(same[: _K - 1].mean())
        for k in (1, 5, 10):
            hits[k] += bool(same[:k].any())
        positions = np.flatnonzero(same)
        precisions.append(np.mean([(rank + 1) / (position + 1) for rank, position in enumerate(positions)]))
    found = measures.nearest(vectors, 10)
    assert measures.accuracy(found, classes, _K) == pytest.approx(np.mean(right))
    for k in (1, 5, 10):
        assert measures.recall_at(found, classes, k) == pytest.approx(hits[k] / len(vectors))
    assert measures.mean_average_precision(vectors, classes) == pytest.approx(np.mean(precisions))
    by_class = measures.accuracy_of_classes(found, classes, _K)
    assert by_class == pytest.approx([np.mean(np.array(right)[classes == number]) for number in range(6)])


def test_a_class_of_one_image_has_no_average_precision():
    vectors = np.array([[0.0], [1.0], [5.0]], np.float32)
    assert measures.mean_average_precision(vectors, np.array([0, 0, 1])) == 1.0
    assert np.isnan(measures.mean_average_precision(vectors, np.array([0, 1, 2])))


def test_confusions_are_shares_of_neighbours_with_the_nearest_pair(data):
    vectors, classes = data
    pairs, nearest = Counter(), {}
    for image in range(len(vectors)):
        order, distances = _ranking(vectors, image)
        for other, distance in zip(order[: _K - 1], distances, strict=False):
            if classes[other] != classes[image]:
                pair = classes[image], classes[other]
                pairs[pair] += 1
                nearest[pair] = min(nearest.get(pair, (np.inf,)), (distance, image, other))
    found = measures.confusions(measures.nearest(vectors, 10), classes, _K)
    sizes = np.bincount(classes) * (_K - 1)
    assert {(each.of, each.found): each.share for each in found} == pytest.approx(
        {pair: count / sizes[pair[0]] for pair, count in pairs.items()}
    )
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)
    for each in found:
        distance = np.linalg.norm(vectors[each.image] - vectors[each.neighbour])
        assert distance == pytest.approx(nearest[each.of, each.found][0], rel=1e-5)
        assert (classes[each.image], classes[each.neighbour]) == (each.of, each.found)


def test_near_duplicates_are_all_pairs_that_are_similar_enough_each_once(data):
    vectors, _ = data
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[700] = vectors[3]
    similarities = vectors @ vectors.T
    expected = {
        (first, second): similarities[first, second]
        for first, second in zip(*np.triu_indices(len(vectors), 1), strict=True)
        if similarities[first, second] >= 0.97
    }
    found = measures.near_duplicates(vectors, 0.97, 10)
    assert found.count == len(expected) > 10
    assert found.pairs[0][:2] == (3, 700)
    best = sorted(expected.values(), reverse=True)[:10]
    assert [similarity for *_, similarity in found.pairs] == pytest.approx(best, rel=1e-5)
    assert all((first, second) in expected for first, second, _ in found.pairs)
