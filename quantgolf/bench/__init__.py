"""Benchmarks: times of kernels, of decoding and of evaluation, and what they are held against."""
