"""The servers that Lookalike's embedder is compared with: the same model, served as is usual, each written well.

Each is a program: `python -m benchmarks.peers.NAME --bundle DIR --address HOST:PORT`, until SIGTERM.
"""
