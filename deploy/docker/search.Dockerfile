# The search service.
# Built from the root of the repository: docker build -f deploy/docker/search.Dockerfile -t lookalike-search:0.1.0 .
# `make pin-images` puts the digest behind the tag.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
# The environment gets no pip of its own: nothing can be installed in the image later.
RUN python -m venv --without-pip /opt/lookalike
# No file that is not listed with its hash, and no package that is built here.
COPY requirements/backend.txt requirements/search.txt requirements/
RUN python -m pip --python /opt/lookalike/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
    --requirement requirements/search.txt
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
COPY deploy/docker/healthcheck.py /opt/healthcheck.py
ENV PATH=/opt/lookalike/bin:$PATH \
    HOME=/tmp \
    LOOKALIKE_SEARCH_ADDRESS=0.0.0.0:50052 \
    LOOKALIKE_SEARCH_HEALTH_ADDRESS=0.0.0.0:50062 \
    LOOKALIKE_SEARCH_METRICS_ADDRESS=0.0.0.0:9102 \
    LOOKALIKE_SEARCH_LOG_FORMAT=json
VOLUME ["/tmp"]
EXPOSE 50052 50062 9102
USER 65532:65532
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "/opt/healthcheck.py", "127.0.0.1:50062", "readiness"]
ENTRYPOINT ["lookalike-search"]
