"""The program of a process that decodes, in which files with certain last words have the effect of a fault."""

import ctypes
import os
import sys

from embedder_service import decode, decode_worker

CRASH, HANG, LIE = b"CRASH", b"HANG", b"LIE"
sound_picture = decode.picture


def picture(data, **options):
    if data.endswith(CRASH):
        ctypes.string_at(0)
    if data.endswith(HANG):
        while True:
            pass
    if data.endswith(LIE):
        os.write(sys.stdin.fileno(), decode_worker.ANSWER.pack(decode_worker.INVALID, 0xFFFFFFFF))
    return sound_picture(data, **options)


if __name__ == "__main__":
    decode.picture = picture
    decode_worker.main(sys.argv[1], *map(int, sys.argv[2:]))
