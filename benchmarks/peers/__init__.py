"""What other projects ship, each in its own environment: one small file a peer, `host.py` runs it, `job.py` asks it.

A peer gets a folder with `weights.safetensors` and `job.json`, writes the files of each of its variants by its own
means, and from these alone reads every tensor back by its own means. Peers know nothing of
quantgolf and import only torch, numpy, safetensors and their own library.
"""
