"""The process that decodes. `decode_process` runs it; it imports no more than decoding takes.

Standard input is a socket, on which one image comes after the other, and one answer goes back for each:

    ->  length (uint32), the file
    <-  kind (uint8), length (uint32), what is wrong with the image (UTF-8)

Standard output is a file in memory: the pixels of the last image, uint8 [H, W, 3]. The first answer, `READY`, comes by
itself. The process ends when its input does.
"""

from __future__ import annotations

import os
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
    sandbox.enter(memory, file_size=height * width * 3)
    picture = partial(decode.picture, height=height, width=width, resize=resize, max_pixels=max_pixels)
    _send(READY, b"")
    requests = sys.stdin.buffer
    while header := requests.read(REQUEST.size):
        try:
            os.pwrite(sys.stdout.fileno(), picture(requests.read(*REQUEST.unpack(header))).tobytes(), 0)
            _send(PIXELS, b"")
        except InvalidArgument as error:
            _send(INVALID, error.message.encode(errors="replace")[:MAX_MESSAGE])


def _send(kind: int, content: bytes) -> None:
    os.write(sys.stdin.fileno(), ANSWER.pack(kind, len(content)) + content)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
