"""The settings of the search service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service_kit.settings import ServerSettings, setting

PREFIX = "LOOKALIKE_SEARCH"


@dataclass(frozen=True)
class SearchSettings(ServerSettings):
    """The search service: stores vectors of images in Milvus and finds the most similar ones."""

    address: str = setting("127.0.0.1:50052", "HOST:PORT to serve gRPC on; port 0 takes any free one.")
    metrics_address: str = setting("127.0.0.1:9102", "HOST:PORT to serve Prometheus metrics on; port 0: any free one.")
    milvus_uri: str = setting(
        "var/milvus.db",
        "A path ending in .db for Milvus Lite inside this process, or the http(s)://HOST:PORT of a Milvus.",
    )
    milvus_token: str = setting("", "USER:PASSWORD or API key for Milvus.", secret=True)
    milvus_token_file: Path | None = setting(None, "File that holds that token, instead.")
    milvus_ca: Path | None = setting(
        None, "PEM file of the authorities that a Milvus at an https address is checked against; none: those of gRPC."
    )
    milvus_client_cert: Path | None = setting(None, "PEM file of a certificate to show to Milvus (mutual TLS).")
    milvus_client_key: Path | None = setting(None, "PEM file of that certificate's private key.")
    milvus_server_name: str = setting("", "Name in the certificate of Milvus, where its address has another.")
    milvus_database: str = setting("", "Database in Milvus; empty for the default one.")
    embedder: str = setting(
        "127.0.0.1:50051",
        "Target of the embedding service, as gRPC names it: HOST:PORT or dns:///HOST:PORT, of which all addresses are "
        "used in turn, or ipv4:HOST:PORT,HOST:PORT for replicas without a name. Several, separated by spaces, where "
        "collections have versions of several models; new collections and versions get the model of the first.",
    )
    embedder_tls: bool = setting(False, "Call embedders by TLS; implied by the next four, but for the key.")
    embedder_ca: Path | None = setting(
        None, "PEM file of the authorities that embedders are checked against; none: those of gRPC."
    )
    embedder_client_cert: Path | None = setting(None, "PEM file of a certificate to show to embedders (mutual TLS).")
    embedder_client_key: Path | None = setting(None, "PEM file of that certificate's private key.")
    embedder_server_name: str = setting("", "Name in the certificates of embedders, where their address has another.")
    embedder_token_file: Path | None = setting(
        None, "File that holds the token for embedders. It and the three before are read again when they change."
    )
    embedder_plaintext_token: bool = setting(
        False, "Send that token to other machines without TLS as well; for networks that keep others out by themselves."
    )
    default_timeout: float = setting(30.0, "Deadline, in seconds, of calls that come without one.", min=0.1)
    max_image_bytes: int = setting(16 << 20, "Largest encoded image, in bytes.", min=1)
    max_collections: int = setting(1000, "Collections at most: each takes memory, and all are listed at once.", min=1)
    max_batch_items: int = setting(512, "Rows in one Upsert, ids in one Get or Delete, at most.", min=1)
    max_batch_queries: int = setting(64, "Queries in one SearchBatch at most; Milvus takes 1024 at a time.", min=1)
    max_joined_queries: int = setting(
        64, "Queries of equal searches that are joined into one call of Milvus, at most. 1: none are joined.", min=1
    )
    max_scans: int = setting(8, "Scans in progress at most; others get RESOURCE_EXHAUSTED.", min=1)
    max_stream_rows: int = setting(384, "Rows of one UpsertStream read and not acknowledged at most.", min=1)
    max_stream_bytes: int = setting(32 << 20, "Bytes of such rows, from which on no more are read.", min=1 << 10)
    max_top_k: int = setting(1000, "Hits of one search at most, the offset included; Milvus allows 16384.", min=1)
    max_ef: int = setting(4096, "Largest `ef` of a search.", min=1)
    max_filter_bytes: int = setting(16 << 10, "Largest filter, its values included, in bytes.", min=1)
    max_filter_depth: int = setting(32, "Deepest nesting of brackets in a filter.", min=1)
    canary_interval: float = setting(
        60.0,
        "Seconds between two comparisons of the HNSW index with the exact answer, on queries that came; at least 50 "
        "times as long as one takes. 0: none.",
        min=0,
    )
    canary_max_rows: int = setting(
        100_000, "Rows that such a comparison reads at most; where there are more, there is none.", min=1
    )
