"""A small instrument, a simulator and a pipeline, to see the plugin at work.

``StarCam`` looks at one field of stars and galaxies.  `.repository.create_repo`
puts a catalogue and pointings into a new Butler repository; eight tasks in numpy
and astropy simulate the raw images and lead from there to a table of objects;
`.summary` says how well that table recovers the simulated truth, and draws it.
Any quantum can be made slow or made to fail (`.star_task`).  Needs the extra ``[demo]``.
"""

__all__: list[str] = []
