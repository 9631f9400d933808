"""Programs that run alone on a worker.  The runner needs the standard library only, from Python 3.6 on."""

__all__: "list[str]" = []
