"""The embedded PanDA: real iDDS in one process, PanDA's task and job API in front of it, and an executor
that runs each PanDA job as a local process group.

It shares no code with the client side, so that one mistake cannot be made on
both sides and cancel out. Only `~lsst.ctrl.bps.panda.local.instance` and
`~lsst.ctrl.bps.panda.local.endpoint` are meant to be imported by others; they
need nothing of iDDS's server.
"""

__all__: list[str] = []
