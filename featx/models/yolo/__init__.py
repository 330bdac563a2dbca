# ultralytics' networks: their layers walked as far as the wanted maps reach, filled from files that run no code.
"""Turns a request for a YOLO model into a description, and a network with its weights.

This package knows nothing of other libraries; `featx.models.libraries` finds it by name.
"""
