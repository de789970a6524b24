# The lookalike command: collections, ingest, reindex, load test.
# Built from the root of the repository: docker build -f deploy/docker/tools.Dockerfile -t lookalike-tools:0.1.0 .
# `make pin-images` puts the digest behind the tag.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
# The environment gets no pip of its own: nothing can be installed in the image later.
RUN python -m venv --without-pip /opt/lookalike
# No file that is not listed with its hash, and no package that is built here.
COPY requirements/backend.txt requirements/tools.txt requirements/
RUN python -m pip --python /opt/lookalike/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
    --requirement requirements/tools.txt
COPY pyproject.toml README.md LICENSE ./
RUN python -m pip install --no-cache-dir --only-binary :all: --require-hashes --requirement requirements/backend.txt --target backend
COPY lookalike lookalike
COPY service_kit service_kit
COPY embedder_service embedder_service
COPY search_service search_service
COPY workbench workbench
RUN PYTHONPATH=backend python -m pip --python /opt/lookalike/bin/python install --no-deps --no-index --no-build-isolation .

FROM ${PYTHON}
COPY --from=build /opt/lookalike /opt/lookalike
ENV PATH=/opt/lookalike/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp
VOLUME ["/tmp"]
WORKDIR /tmp
USER 65532:65532
# A command that ends has no health to check.
HEALTHCHECK NONE
ENTRYPOINT ["lookalike"]
