# For mypy only, and not installed: BPS has no type information, and without
# this file mypy takes its package for the folder that this one is in.
from typing import Any

def __getattr__(name: str) -> Any: ...
