# From what a person names to pixels and a Frame: files are found, decoded to upright RGB, fitted to a model.
"""Turns paths and patterns into items, pixels, and the frame that says where a photo lies in them.

This package knows nothing of networks, of runs on the disk, or of who asks.
"""
