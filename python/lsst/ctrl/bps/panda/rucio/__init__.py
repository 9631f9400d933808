"""Registration of a run's outputs in Rucio: the step that does it on a worker,
what is checked before, and what became of it.
"""
