"""In what Milvus Lite and the servers differ, in one table: what a backend can do, and what it does its own way.

For Milvus Lite 3.2 and Milvus 2.3.5 a test holds the table to the truth; of later servers it tells what their
documentation does (https://milvus.io/docs). `docs/backends.md` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from search_service.records import IndexSpec
from service_kit.errors import Unimplemented

Version = tuple[int, int, int]
FeatureName = Literal[
    "hnsw_sq",
    "bulk_import",
    "search_by_id",
    "filter_values",
    "null_conditions",
    "membership_of_attributes",
    "attributes_of_any_name",
    "true_is_not_1",
    "bounded_reads_see_all_writes",
    "last_of_equal_ids_wins",
    "insert_of_a_stored_id_replaces",
    "aliases_listed_in_any_database",
    "aliases_end_with_their_collection",
]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature, whether Milvus Lite 3.2 has it, and the first server known to have it; None: no server is known to."""

    what: str
    lite: bool
    server_since: Version | None


FEATURES: Mapping[FeatureName, Feature] = {
    "hnsw_sq": Feature("index of type HNSW_SQ: 8 bits a dimension", True, (2, 6, 0)),
    "bulk_import": Feature("bulk import of Parquet files from Milvus' storage", False, (2, 3, 5)),
    "search_by_id": Feature("search by the id of a stored row (`ids=`)", False, (2, 6, 9)),
    "filter_values": Feature("values of a filter beside its expression (`filter_params`)", False, (2, 5, 0)),
    "null_conditions": Feature("`is null` in filters", True, (2, 5, 0)),
    "membership_of_attributes": Feature('`attributes["x"] in [...]` in filters', False, (2, 3, 5)),
    "attributes_of_any_name": Feature(
        "filters on attributes whose name is empty or has a control character, as a tab", True, None
    ),
    "true_is_not_1": Feature("filters tell `true` from 1", False, (2, 3, 5)),
    "bounded_reads_see_all_writes": Feature("a Bounded read sees every acknowledged write", True, None),
    "last_of_equal_ids_wins": Feature("of two rows with one id in one upsert the last is stored", True, None),
    "insert_of_a_stored_id_replaces": Feature("`insert` of a stored id makes no second row", True, None),
    "aliases_listed_in_any_database": Feature("`list_aliases` outside the default database", True, None),
    "aliases_end_with_their_collection": Feature("deleting a collection deletes its aliases", True, None),
}


@dataclass(frozen=True, slots=True)
class Backend:
    """What is behind the store, as it said when it was connected to."""

    local: bool
    version: Version

    @classmethod
    def parse(cls, text: str, *, local: bool) -> Backend:
        """From `get_server_version`: "v2.3.5-lite", "milvus_lite-3.2.2". Where no version is found it is 0.0.0."""
        found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
        major, minor, patch = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
        return cls(local, (major, minor, patch))

    def has(self, name: FeatureName) -> bool:
        """Whether it is known to have a feature."""
        feature = FEATURES[name]
        if self.local:
            return feature.lite
        return feature.server_since is not None and self.version >= feature.server_since

    @property
    def default_index(self) -> IndexSpec:
        """The index of collections for which none was chosen.

        Milvus Lite walks over all rows in any search. There HNSW saves a part of the time at most, misses rows that its
        graph does not reach, and makes exact searches read the whole collection.
        """
        return IndexSpec("FLAT") if self.local else IndexSpec("HNSW")

    def require(self, name: FeatureName) -> None:
        """Raises Unimplemented, with who has it, unless it is known to have a feature."""
        if not self.has(name):
            feature = FEATURES[name]
            having = ["Milvus Lite"] if feature.lite else []
            if feature.server_since:
                having.append(f"Milvus servers from {'.'.join(map(str, feature.server_since))}")
            raise Unimplemented(f"{self} has no {feature.what}; those that have: {', '.join(having) or 'none known'}")

    def __str__(self) -> str:
        return f"{'Milvus Lite' if self.local else 'Milvus'} {'.'.join(map(str, self.version))}"
