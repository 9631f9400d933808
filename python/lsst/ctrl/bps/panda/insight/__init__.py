"""Look into runs: logs, errors, resources, progress, a page; values only, the
commands print them.
"""
