"""The estimate of an index's memory, against the bytes of real Faiss indexes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from search_service.index_memory import memory_bytes
from search_service.records import CollectionVersion, IndexSpec, VectorSpace

ROWS = 2_000


@pytest.mark.parametrize("m", [8, 48])
@pytest.mark.parametrize("dimension", [32, 150])
@pytest.mark.parametrize("kind", ["FLAT", "HNSW", "HNSW_SQ8"])
def test_the_estimate_is_near_what_faiss_takes(kind: str, dimension: int, m: int) -> None:
    index = {
        "FLAT": lambda: faiss.IndexFlat(dimension),
        "HNSW": lambda: faiss.IndexHNSWFlat(dimension, m),
        "HNSW_SQ8": lambda: faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, m),
    }[kind]()
    if kind != "FLAT":
        index.hnsw.efConstruction = 8
    vectors = np.random.default_rng(0).standard_normal((ROWS, dimension)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    spec = IndexSpec(kind, m=m)  # type: ignore[arg-type]
    space = VectorSpace("mine", dimension)
    version = CollectionVersion("photos", 1, "photos__mine__v1", space, spec, multi_tenant=False, created_ms=0)
    assert memory_bytes(version, ROWS) == pytest.approx(faiss.serialize_index(index).nbytes, rel=0.01)
