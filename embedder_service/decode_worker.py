"""The process that decodes: image files come in on standard input, pixels go out on standard output.

`decode_process` runs it. It imports no more than decoding takes, and handles one image after the other:

    ->  length (uint32), the file
    <-  kind (uint8), length (uint32), the pixels (uint8 [H, W, 3]) or what is wrong with the image (UTF-8)

The first answer, `READY`, comes by itself and is empty. The process ends when its input does.
"""

from __future__ import annotations

import signal
import struct
import sys
from functools import partial

from embedder_service import decode, sandbox
from service_kit.errors import InvalidArgument
from service_kit.memory import return_large_blocks

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<BI")
READY, PIXELS, INVALID = range(3)
MAX_MESSAGE = 4096


def main(resize: str, height: int, width: int, max_pixels: int, memory: int) -> None:
    """Decodes images until there are no more."""
    # Its owner ends it, once the calls in progress are done: a signal to all processes of a service is not for it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sandbox.end_with_parent()
    return_large_blocks()
    sandbox.enter(memory)
    picture = partial(decode.picture, height=height, width=width, resize=resize, max_pixels=max_pixels)
    _send(READY, b"")
    requests = sys.stdin.buffer
    while header := requests.read(REQUEST.size):
        try:
            _send(PIXELS, picture(requests.read(*REQUEST.unpack(header))).tobytes())
        except InvalidArgument as error:
            _send(INVALID, error.message.encode(errors="replace")[:MAX_MESSAGE])


def _send(kind: int, content: bytes) -> None:
    sys.stdout.buffer.write(ANSWER.pack(kind, len(content)) + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
