"""Worker processes that are ready: console scripts such as ``pipetask`` without the start of a Python.

Stands alone: `~.pool` is the side of whoever runs jobs, ``template.py`` and ``client.py`` are programs of the
standard library only.
"""
