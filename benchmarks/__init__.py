"""Timings as CSV rows: `smoothfast bench`."""
