"""What `fuzz.py` is made of: mutations, targets, the loop of one process, and what is tried exhaustively."""
