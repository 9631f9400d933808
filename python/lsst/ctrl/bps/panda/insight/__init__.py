"""What users want to know about a run: logs, errors, resources, progress.  Returns
data; printing is up to `cli`.
"""
