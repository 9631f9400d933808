"""What runs on the worker: files of their own that need the standard library
only, from Python 3.6 on.
"""

__all__: "list[str]" = []
