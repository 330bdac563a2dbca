# From what a person names to pixels and a Frame: files are found, decoded to upright RGB, fitted to a model.
"""In come paths and patterns; out go items, pixels and the frame that says where a photo lies in them.

This room knows nothing of networks, of runs on the disk, or of who asks.
"""
