"""Triton twins of the ops, installed as `smoothfast.kernels`: one file per op under the stem of its schema."""
