# ultralytics' networks: their layers walked as far as the wanted maps reach, filled from files that run no code.
"""In comes a request for a YOLO model; out goes a description, and a network that holds its weights.

This room knows nothing of other libraries; `featx.models.libraries` finds it by name.
"""
