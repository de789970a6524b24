"""Exit code 0 if the server at a health address says that it serves: python healthcheck.py HOST:PORT NAME.

NAME is startup, readiness or liveness.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT = 2.0  # seconds


def main(target: str, name: str) -> int:
    """Asks once."""
    with grpc.insecure_channel(target) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name), timeout=_TIMEOUT
            )
        except grpc.RpcError as error:
            print(f"{target} does not answer: {error.code().name}", file=sys.stderr)
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(status)
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
