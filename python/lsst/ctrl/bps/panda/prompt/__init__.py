"""Images processed as they arrive: from a file on disk to its catalogue within seconds."""

__all__: list[str] = []
