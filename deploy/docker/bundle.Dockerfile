# A model bundle as an image, for an init container to copy from:
#   docker build -f deploy/docker/bundle.Dockerfile -t lookalike-bundle:0.1.0 path/to/bundle
# The bundle baked into an embedder instead: the same with --build-arg BASE=lookalike-embedder-cpu:0.1.0; the init
# container then takes that image, too. `make pin-images` puts the digest behind the tag.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
COPY . /bundle/
WORKDIR /bundle
RUN sha256sum --check --strict --quiet SHA256SUMS
USER 65532:65532
