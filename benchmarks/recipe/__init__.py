"""The strongest Parameter Golf recipe, rebuilt from published facts: what quantgolf is measured against.

`solve` rounds, `low_rank` and `correct` give back what rounding lost in a few tensors, `streams`, `coders` and `file`
make real bytes of it and read them back, `fit` finds the one factor on all clips at which the file just fits, and
`methods` has each method as a function of a checkpoint, its calibration and a limit.
"""
