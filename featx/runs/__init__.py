# A run on the disk: locked, planned, written, resumed and read.
"""In come outcomes and arrays; out go files that are complete or not there, and what they say when they are read.

This room knows nothing of networks or of how features are made; it imports no torch.
"""
