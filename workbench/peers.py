"""Other ways to find the nearest vectors, in this process: exact ones, and the indexes that others use.

All take vectors of length 1, so that the nearest are those with the largest inner product.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]

TREES = 40  # of Annoy, as in the lesson
_SEED = 101
_IVF_QUERIED = 8  # lists of an IVF index that a query looks at
_PQ_MOST = 32  # bytes that product quantization leaves of a vector, at most
_CHUNK = 512  # queries compared with all rows at a time


class Index(Protocol):
    """An index over rows, whose ids are their numbers.

    Attributes:
        settings: what it was built and is searched with, for people.
        parallel: whether `many` uses all cores; `one` uses one.
    """

    settings: str
    parallel: bool

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        """Returns each of the queries, float32 [Q, D], in the form that `one` takes it in."""

    def one(self, query: Any, k: int) -> Sequence[int]:
        """Returns the ids of the k rows nearest to a query, the nearest first."""

    def many(self, queries: Vectors, k: int) -> Ids:
        """Returns those of each of the queries, int64 [Q, k]; -1 where fewer were found."""

    def size(self) -> int:
        """Returns its bytes when it is stored."""


def best(similarities: NDArray[np.float32], top_k: int) -> Ids:
    """Returns the columns with the largest values of each row, int64 [Q, top_k or all], the largest first."""
    top_k = min(top_k, similarities.shape[1])
    taken = np.argpartition(-similarities, top_k - 1, axis=1)[:, :top_k]
    order = np.argsort(-np.take_along_axis(similarities, taken, axis=1), axis=1)
    return np.take_along_axis(taken, order, axis=1)


class BruteForce:
    """numpy: a product with all rows."""

    parallel = True

    def __init__(self, rows: Vectors) -> None:
        self._rows = np.ascontiguousarray(rows.T)
        self.settings = "exact"

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[number : number + 1] for number in range(len(queries))]

    def one(self, query: Any, k: int) -> Sequence[int]:
        found: list[int] = best(query @ self._rows, k)[0].tolist()
        return found

    def many(self, queries: Vectors, k: int) -> Ids:
        chunks = [best(queries[start : start + _CHUNK] @ self._rows, k) for start in range(0, len(queries), _CHUNK)]
        return np.concatenate(chunks)

    def size(self) -> int:
        return self._rows.nbytes


class Sklearn:
    """scikit-learn's NearestNeighbors."""

    parallel = True

    def __init__(self, rows: Vectors) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._model = NearestNeighbors(algorithm="brute", metric="euclidean").fit(rows)
        self.settings = "exact, algorithm='brute'"

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[number : number + 1] for number in range(len(queries))]

    def one(self, query: Any, k: int) -> Sequence[int]:
        found: list[int] = self._model.kneighbors(query, k, return_distance=False)[0].tolist()
        return found

    def many(self, queries: Vectors, k: int) -> Ids:
        found: Ids = self._model.kneighbors(queries, k, return_distance=False)
        return found

    def size(self) -> int:
        return len(pickle.dumps(self._model))


class Annoy:
    """Spotify's Annoy, which has no call for many queries."""

    parallel = False

    def __init__(self, rows: Vectors, trees: int = TREES) -> None:
        from annoy import AnnoyIndex

        self._index = AnnoyIndex(rows.shape[1], "angular")
        self._index.set_seed(_SEED)
        for number, row in enumerate(rows):
            self._index.add_item(number, row)
        self._index.build(trees)
        self.settings = f"{trees} trees"

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        lists: list[list[float]] = queries.tolist()  # an array is read number by number, through Python
        return lists

    def one(self, query: Any, k: int) -> Sequence[int]:
        found: list[int] = self._index.get_nns_by_vector(query, k)
        return found

    def many(self, queries: Vectors, k: int) -> Ids:
        found = np.full((len(queries), k), -1, np.int64)
        for number, query in enumerate(self.prepare(queries)):
            ids = self.one(query, k)
            found[number, : len(ids)] = ids
        return found

    def size(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "annoy"
            # A saved index is mapped from its file from then on; it stays readable when that is removed.
            self._index.save(str(path))
            return path.stat().st_size


class _Faiss:
    """What all indexes of Faiss have in common."""

    parallel = True
    _index: Any

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return [queries[number : number + 1] for number in range(len(queries))]

    def one(self, query: Any, k: int) -> Sequence[int]:
        found: list[int] = self._index.search(query, k)[1][0].tolist()
        return found

    def many(self, queries: Vectors, k: int) -> Ids:
        found: Ids = self._index.search(queries, k)[1]
        return found

    def size(self) -> int:
        import faiss

        return int(faiss.serialize_index(self._index).nbytes)


class FaissFlat(_Faiss):
    """Faiss, exact."""

    def __init__(self, rows: Vectors) -> None:
        import faiss

        self._index = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)
        self.settings = "exact"


class FaissHnsw(_Faiss):
    """Faiss, HNSW over float32 vectors."""

    def __init__(self, rows: Vectors, m: int = 16, ef_construction: int = 200, ef: int = 32) -> None:
        import faiss

        self._index = faiss.IndexHNSWFlat(rows.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = ef_construction
        self._index.hnsw.efSearch = ef
        self._index.add(rows)
        self.settings = f"M {m}, efConstruction {ef_construction}, ef {ef}"


class FaissIvfPq(_Faiss):
    """Faiss, product quantization in inverted lists: few bytes of each vector, at the cost of recall."""

    def __init__(self, rows: Vectors) -> None:
        import faiss

        count, dims = rows.shape
        lists = max(1, int(np.sqrt(count)))
        parts = max(parts for parts in range(1, min(dims, _PQ_MOST) + 1) if dims % parts == 0)
        # It learns 2^bits centroids in each part, from at least as many rows.
        bits = max(1, min(8, int(np.log2(max(2, count))) - 1))
        quantizer = faiss.IndexFlatIP(dims)
        self._index = faiss.IndexIVFPQ(quantizer, dims, lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
        # Clustering as usual takes 39 rows of each centroid, and complains where there are fewer.
        self._index.cp.min_points_per_centroid = self._index.pq.cp.min_points_per_centroid = 1
        self._index.train(rows)
        self._index.add(rows)
        self._index.nprobe = min(_IVF_QUERIED, lists)
        self._quantizer = quantizer  # the index does not keep it alive
        self.settings = f"{lists} lists, {self._index.nprobe} looked at, {parts} parts of {bits} bits"


class Scann:
    """Google's ScaNN, as its README sets it up: partitions, anisotropic quantization, and exact reordering."""

    parallel = True

    def __init__(self, rows: Vectors) -> None:
        import scann

        lists = max(1, int(np.sqrt(len(rows))))
        builder = scann.scann_ops_pybind.builder(rows, 10, "dot_product")
        builder = builder.tree(
            num_leaves=lists, num_leaves_to_search=max(1, lists // 10), training_sample_size=len(rows)
        )
        self._index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        self.settings = f"{lists} leaves, {max(1, lists // 10)} looked at, 100 reordered"

    def prepare(self, queries: Vectors) -> Sequence[Any]:
        return list(queries)

    def one(self, query: Any, k: int) -> Sequence[int]:
        found: list[int] = self._index.search(query, final_num_neighbors=k)[0].tolist()
        return found

    def many(self, queries: Vectors, k: int) -> Ids:
        found: Ids = self._index.search_batched_parallel(queries, final_num_neighbors=k)[0].astype(np.int64)
        return found

    def size(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            self._index.serialize(folder)
            return sum(path.stat().st_size for path in Path(folder).rglob("*"))


# By name: the module each needs, what `pip install` calls it, and how it is built.
PEERS: dict[str, tuple[str, str, Callable[[Vectors], Index]]] = {
    "numpy": ("numpy", "numpy", BruteForce),
    "scikit-learn": ("sklearn", "scikit-learn", Sklearn),
    "Annoy": ("annoy", "annoy", Annoy),
    "Faiss Flat": ("faiss", "faiss-cpu", FaissFlat),
    "Faiss HNSW": ("faiss", "faiss-cpu", FaissHnsw),
    "Faiss IVF-PQ": ("faiss", "faiss-cpu", FaissIvfPq),
    "ScaNN": ("scann", "scann", Scann),
}


def installed(module: str) -> bool:
    """Whether a module can be imported here."""
    return find_spec(module) is not None
