# A run on the disk: locked, planned, written, resumed and read.
"""Writes outcomes and arrays to files that are complete or absent, and reads them back.

This package knows nothing of networks or of how features are made; it imports no torch.
"""
