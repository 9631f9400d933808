"""Campaigns over several sites: one configuration, split into a run for each
site by a partition of the data, submitted and looked at together.
"""
