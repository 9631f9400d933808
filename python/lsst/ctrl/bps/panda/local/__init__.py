"""The embedded PanDA: real iDDS in one process, PanDA's task and job API in
front of it, and an executor that runs each PanDA job as a local process group.

It shares no code with the client side (``wire``, ``rest``), so that one
mistake cannot be made on both sides and cancel out.  Only
`~lsst.ctrl.bps.panda.local.instance` is meant to be imported by others; it
needs nothing of iDDS's server.
"""

__all__: list[str] = []
