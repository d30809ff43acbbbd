"""What `reader_mutants.py` is made of: how a check is changed, and how tests are tried on the changes."""
